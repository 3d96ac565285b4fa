"""mec doctor reports the machine correctly and names problems with their remedy."""

import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mec
from mec.cli import doctor as doctor_module
from mec.cli.doctor import doctor
from mec.errors import InputError

GIB = 2**30


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "DECODING_SECONDS", 0.01)


def test_report_holds_the_facts_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    text = one_line(doctor(tmp_path))
    assert f"mec {mec.__version__}," in text
    for name in ("torch", "torchvision", "timm", "lightning", "numpy", "pillow", "simplejpeg"):
        assert f"{name} {version(name)}" in text
    assert platform.python_version() in text
    assert f"{torch.get_num_threads()} PyTorch threads" in text
    assert f"{shutil.disk_usage(tmp_path).total / GIB:.1f} GiB in" in text
    assert "secret" not in text


def test_home_folder_is_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    text = doctor(tmp_path / "images")
    assert str(tmp_path) not in text
    assert "~/images" in one_line(text)


def test_decoding_speed_is_images_per_clock_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(doctor_module.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(doctor_module, "DECODING_SECONDS", 9.0)
    # the clock ticks once per image: eight are decoded before it shows 9 seconds
    assert doctor_module.decoding_speed() == (8 / 9, "")


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder: "):
        doctor(tmp_path / "nowhere")


def test_a_machine_without_problems_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cores=8, threads="", free=50 * GIB, shared=8 * GIB, bf16=True)
    assert doctor(tmp_path).endswith("possible problems\n- none found")


def test_each_problem_of_a_gpu_machine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cores=2, threads="1", free=1 * GIB, shared=GIB // 16, bf16=False)
    monkeypatch.setattr(doctor_module, "MIN_DECODED", 1e9)
    text = one_line(doctor(tmp_path))
    for fact in ("Tesla T4 (16.0 GiB)", "bf16 missing", "2 CPU cores for 1 GPU", "--precision 16-mixed"):
        assert fact in text
    for remedy in ("put --out on another disk", "--shm-size", "decoding is slow"):
        assert remedy in text
    assert "0.1 GiB in /dev/shm" in text or not Path("/dev/shm").exists()
    assert "OMP_NUM_THREADS" not in text


def test_idle_cores_and_a_missing_decoder_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cores=4, threads="1", free=50 * GIB, shared=8 * GIB, bf16=None)
    for name in ("mec.data.decode", "mec.engine.trainer"):  # as if simplejpeg could not be imported
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(doctor_module, "LIBRARIES", ["not-installed"])
    text = one_line(doctor(tmp_path))
    for problem in ("OMP_NUM_THREADS=1 leaves", "JPEGs cannot be decoded", "not-installed missing", "no GPU"):
        assert problem in text


def pretend(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: str, free: int, shared: int, bf16: bool | None
) -> None:
    """Replace the hardware; no GPU if ``bf16`` is None."""

    def disk_usage(folder: object) -> SimpleNamespace:
        return SimpleNamespace(total=shared if folder == "/dev/shm" else 99 * GIB, free=free)

    gpu = SimpleNamespace(name="Tesla T4", total_memory=16 * GIB)
    monkeypatch.setattr(doctor_module, "cores", lambda: cores)
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(doctor_module, "MIN_DECODED", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bf16 is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
