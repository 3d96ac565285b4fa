"""mec doctor reports the machine correctly, names problems with their remedy, and never fails itself."""

import platform
import resource
import shutil
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


def problems(folder: Path) -> str:
    return one_line(doctor(folder).partition("possible problems")[2])


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "DECODING_SECONDS", 0.01)


def test_report_holds_the_facts_and_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    text = one_line(doctor(tmp_path))
    assert f"mec {mec.__version__}," in text
    for name in ("torch", "torchvision", "timm", "lightning", "numpy", "pillow", "simplejpeg"):
        assert f"{name} {version(name)}" in text
    assert platform.python_version() in text
    assert f"{torch.get_num_threads()} PyTorch threads" in text
    assert f"{shutil.disk_usage(tmp_path).total / GIB:.1f} GiB in" in text
    assert "simplejpeg (libjpeg-turbo)" in text
    assert "OMP_NUM_THREADS=1" in text
    assert "secret" not in text
    assert "unknown (" not in text


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
    assert "1 JPEGs of 500 x 375 per second" in next(doctor_module.decoder())


def test_unreadable_properties_are_reported_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "memory", lambda: 1 / 0)
    assert "memory unknown (ZeroDivisionError" in one_line(doctor(tmp_path))


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        doctor(tmp_path / "nowhere")


@pytest.mark.parametrize(("shared", "reported"), [(64 * 2**20, True), (8 * GIB, False)])
def test_little_shared_memory_is_a_problem(shared: int, reported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").exists():
        pytest.skip("a system without /dev/shm")
    usage = SimpleNamespace(total=shared, free=shared)
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda folder: usage)
    text, *found = doctor_module.shared_memory()
    assert ("--shm-size" in "".join(found)) == reported
    assert f"{shared / GIB:.1f} GiB in /dev/shm" in text


@pytest.mark.parametrize(("free", "reported"), [(GIB, True), (50 * GIB, False)])
def test_nearly_full_disk_is_a_problem(
    free: int, reported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda folder: SimpleNamespace(total=99 * GIB, free=free))
    assert ("put --out on another disk" in "".join(doctor_module.disk(tmp_path))) == reported


@pytest.mark.parametrize(("threads", "reported"), [("1", True), ("4", False), ("", False)])
def test_idle_cores_are_a_problem(threads: str, reported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert ("OMP_NUM_THREADS=1 leaves 3 of 4 cores idle" in "".join(doctor_module.processor())) == reported


def test_gpu_with_few_cores_and_without_bf16_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    gpu = SimpleNamespace(name="Tesla T4", total_memory=16 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    text = one_line(doctor(tmp_path))
    assert "Tesla T4 (16.0 GiB)" in text
    assert "bf16 missing" in text
    assert "2 CPU cores for 1 GPU" in text
    assert "--precision 16-mixed" in text


def test_few_open_files_and_a_network_file_system_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    monkeypatch.setattr(doctor_module, "file_system", lambda path: "nfs4")
    text = problems(tmp_path)
    assert "ulimit -n" in text
    assert "network file system" in text


def test_file_system_of_a_folder() -> None:
    if not Path("/proc/mounts").exists():
        pytest.skip("not Linux")
    assert doctor_module.file_system(Path("/proc/self")) == "proc"
