"""``mec doctor``: versions and hardware of a machine, and what would be slow on it. For users and bug reports."""

from __future__ import annotations

import contextlib
import io
import math
import os
import platform
import re
import shutil
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mec.errors import InputError

LIBRARIES = "torch torchvision timm lightning numpy pillow simplejpeg scikit-learn jsonargparse".split()
OPTIONAL_LIBRARIES = "datasets onnx onnxruntime tifffile imagecodecs trackeval av".split()
GIB = 2**30
MIN_SHARED_MEMORY, MIN_FREE_DISK, MIN_CORES_PER_GPU = 1 * GIB, 5 * GIB, 4
MIN_DECODED = 150  # JPEGs per second and core; a usual core decodes 500 or more
DECODING_SECONDS = 0.3  # how long decoding is timed


def doctor(folder: str | os.PathLike[str] = ".") -> str:
    """Return versions, devices, decoder speed and disk of this machine, and what would be slow on it.

    The text is made for bug reports: it shows no user name and writes ~ for the home folder.

    Args:
        folder: folder of images or runs whose disk is checked.
    """
    import torch

    from mec import __version__

    path = Path(folder).expanduser().resolve()
    if not path.exists():
        raise InputError(f"folder: {folder} does not exist")
    processor, threads = platform.processor() or platform.machine(), os.environ.get("OMP_NUM_THREADS", "")
    with contextlib.suppress(OSError, IndexError):
        processor = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    bf16 = "unknown"
    with contextlib.suppress(ImportError):  # a missing decoder is reported below
        from mec.engine.trainer import native_bfloat16

        bf16 = "native" if native_bfloat16() else "emulated"
    gpu_count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(i) for i in range(gpu_count)]
    gpu_bf16 = bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False)
    gpu = "Apple GPU (MPS)" if torch.backends.mps.is_available() else "none usable by PyTorch"
    if gpus:
        names = ", ".join(f"{device.name} ({_gib(device.total_memory)})" for device in gpus)
        gpu = f"{names}; CUDA {torch.version.cuda}, bf16 {'native' if gpu_bf16 else 'missing'}"
    speed, failure = decoding_speed()
    disk = shutil.disk_usage(path)
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else math.inf
    facts = [
        ("versions", f"mec {__version__}, {', '.join(map(_version, LIBRARIES))}, Python {platform.python_version()}"),
        ("system", platform.platform()),
        ("extras", ", ".join(map(_version, OPTIONAL_LIBRARIES))),
        ("processor", f"{processor}, {cores()} usable cores, {torch.get_num_threads()} PyTorch threads, bf16 {bf16}"),
        ("memory", _gib(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))),
        ("GPUs", gpu),
        ("decoder", failure or f"simplejpeg, {speed:,.0f} JPEGs of 500 x 375 per second on one core"),
        ("disk", f"{_gib(disk.free)} free of {_gib(disk.total)} in {path}"),
        ("shared memory", f"{_gib(shared)} in /dev/shm" if math.isfinite(shared) else "not limited"),
    ]  # fmt: skip
    needed = MIN_CORES_PER_GPU * len(gpus)
    problems = [
        (cores() < needed,
         f"{cores()} CPU cores for {len(gpus)} GPU: loading limits training; use {needed} or more"),
        (not gpus and threads.isdigit() and int(threads) < cores(),
         f"OMP_NUM_THREADS={threads} leaves some of {cores()} cores idle: unset it"),
        (bool(gpus) and not gpu_bf16, "GPU without bf16: --precision 16-mixed is faster than 32-true"),
        (not gpus and Path("/proc/driver/nvidia").exists(),
         f"NVIDIA GPU that this PyTorch (CUDA: {torch.version.cuda}) cannot use: install a build for the driver, see "
         "pytorch.org"),
        (gpu == "none usable by PyTorch",
         "no GPU: small images and networks train in minutes to hours (recipes digits and small); ImageNet does not"),
        (bool(failure), "JPEGs cannot be decoded: pip install --force-reinstall simplejpeg"),
        (not failure and speed < MIN_DECODED, "decoding is slow: use more cores and --workers, or smaller images"),
        (disk.free < MIN_FREE_DISK,
         f"less than {_gib(MIN_FREE_DISK)} free: a run keeps several checkpoints; put --out on another disk"),
        (shared < MIN_SHARED_MEMORY,
         "little shared memory for the loader processes: docker run --shm-size=8g, or --workers 0"),
    ]  # fmt: skip
    lines = [_paragraph(f"{name:<15}{fact}", 15) for name, fact in facts]
    found = [_paragraph(f"- {problem}", 2) for is_present, problem in problems if is_present]
    report = "\n".join([*lines, "", "possible problems", *(found or ["- none found"])])
    home = str(Path.home())
    return report if home == "/" else report.replace(home, "~")


def _paragraph(text: str, indent: int) -> str:
    return textwrap.fill(text, 100, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


def cores() -> int:
    """Return the cores this process may use; a container or a scheduler may allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    return allowed


def decoding_speed() -> tuple[float, str]:
    """Return the decoded JPEGs of a typical ImageNet size per second, and the reason if they cannot be decoded."""
    import numpy as np
    from PIL import Image

    try:
        from mec.data.decode import open_image
        from mec.data.pixels import PixelFormat
    except ImportError as error:  # no simplejpeg, or a build for another processor
        return 0.0, f"not usable ({error})"
    noise = Image.fromarray(np.random.default_rng(0).integers(64, 192, (188, 250, 3), dtype=np.uint8))
    file = io.BytesIO()
    noise.resize((500, 375)).save(file, "JPEG", quality=90)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < DECODING_SECONDS:
        open_image(file.getvalue()).decode(PixelFormat())
        count += 1
    return count / elapsed, ""
