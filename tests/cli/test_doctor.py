"""What the doctor says is what the machine says; what it lacks is told with what to change; nothing makes it fail."""

import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mec
from mec.cli import doctor as doctors
from mec.cli.doctor import doctor

GIB = 2**30


def words(text: str) -> str:
    return " ".join(text.split())


def advice(folder: Path) -> str:
    return words(doctor(folder).partition("what would be slow or fail")[2])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "DECODING_SECONDS", 0.01)


def test_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "secret")
    text = words(doctor(tmp_path))
    assert f"mec {mec.__version__}," in text
    for name in ("torch", "torchvision", "timm", "lightning", "numpy", "pillow", "simplejpeg"):
        assert f"{name} {version(name)}" in text
    assert platform.python_version() in text
    assert f"{torch.get_num_threads()} threads of PyTorch" in text
    assert f"{shutil.disk_usage(tmp_path).total / GIB:.1f} GiB in" in text
    assert "simplejpeg (libjpeg-turbo)" in text
    assert "OMP_NUM_THREADS=1" in text
    assert "secret" not in text
    assert "could not be found out" not in text


def test_the_home_folder_has_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    text = doctor(tmp_path / "images")
    assert str(tmp_path) not in text
    assert "~/images" in words(text)


def test_decoding_takes_time_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(doctors.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(doctors, "DECODING_SECONDS", 8.0)
    # the clock ticks once an image: seven are done before it shows 8 seconds
    assert doctors.decoding()[1] == pytest.approx(7 / 8)


def test_a_part_that_cannot_be_found_out_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "memory", lambda: 1 / 0)
    text = words(doctor(tmp_path / "nowhere"))
    assert "memory could not be found out (ZeroDivisionError" in text
    assert "disk could not be found out (FileNotFoundError" in text


def test_without_simplejpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    monkeypatch.delitem(sys.modules, "mec.data.decode", raising=False)
    text = words(doctor(tmp_path))
    assert "Pillow, as simplejpeg is missing" in text
    assert "pip install simplejpeg" in text


@pytest.mark.parametrize(("shared", "told"), [(64 * 2**20, True), (8 * GIB, False)])
def test_little_shared_memory(shared: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/shm").exists():
        pytest.skip("a system without /dev/shm")
    usage = shutil.disk_usage

    def small(folder: object) -> object:
        return SimpleNamespace(total=shared, free=shared) if str(folder) == "/dev/shm" else usage(str(folder))

    monkeypatch.setattr(doctors.shutil, "disk_usage", small)
    assert ("--shm-size" in advice(tmp_path)) == told
    assert f"{shared / GIB:.1f} GiB in /dev/shm" in words(doctor(tmp_path))


@pytest.mark.parametrize(("free", "told"), [(GIB, True), (50 * GIB, False)])
def test_a_disk_that_is_nearly_full(free: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors.shutil, "disk_usage", lambda folder: SimpleNamespace(total=99 * GIB, free=free))
    assert ("put --out on another disk" in advice(tmp_path)) == told


@pytest.mark.parametrize(("threads", "told"), [("1", True), ("4", False), ("", False)])
def test_threads_that_stay_idle(threads: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert ("OMP_NUM_THREADS=1 leaves 3 of 4 cores idle" in advice(tmp_path)) == told


def test_a_gpu_with_few_cores_and_without_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    gpu = SimpleNamespace(name="Tesla T4", total_memory=16 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    text = words(doctor(tmp_path))
    assert "Tesla T4 (16.0 GiB)" in text
    assert "bf16 missing" in text
    assert "2 CPU cores for 1 GPU" in text
    assert "--precision 16-mixed" in text


def test_few_open_files_and_a_disk_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "open_files", lambda: 256)
    monkeypatch.setattr(doctors, "file_system", lambda path: "nfs4")
    text = advice(tmp_path)
    assert "ulimit -n" in text
    assert "over the network" in text


def test_the_file_system_of_a_folder() -> None:
    if not Path("/proc/mounts").exists():
        pytest.skip("not Linux")
    assert doctors.file_system(Path("/proc/self")) == "proc"
