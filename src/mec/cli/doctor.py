"""``mec doctor``: versions and hardware of a machine, and what would be slow on it. For users and bug reports."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import platform
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from mec.errors import InputError

LIBRARIES = "torch torchvision timm lightning numpy pillow simplejpeg scikit-learn jsonargparse".split()
EXTRAS = {
    "datasets": ("datasets", "Hugging Face datasets, hf:owner/name"),
    "onnx": ("onnxruntime", "mec export --format onnx"),
    "tiff": ("tifffile", "TIFFs of many channels, bits or pages"),
    "tracking": ("trackeval", "the metrics of mec evaluate mot and mots"),
    "video": ("av", "videos as datasets, rendered tracks"),
}
"""Extra of the package -> module that shows whether it is installed, and what it is for."""
VARIABLES = (
    r"(CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTORCH_\w+|NCCL_\w+|MEC_\w+|HF_HOME|TORCH_HOME|RANK|"
    r"LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|SLURM_(JOB_ID|NTASKS|NNODES|GPUS_ON_NODE|CPUS_PER_TASK))"
)
NETWORK_FILE_SYSTEMS = "nfs nfs4 cifs smb3 smbfs 9p ceph lustre beegfs gpfs fuse.sshfs afs".split()
GIB = 2**30
MIN_SHARED_MEMORY, MIN_FREE_DISK, MIN_OPEN_FILES, MIN_CORES_PER_GPU = 1 * GIB, 5 * GIB, 1024, 4
DECODING_SECONDS = 0.3
"""How long decoding is timed."""


def doctor(folder: str | os.PathLike[str] = ".") -> str:
    """Return versions, devices, decoder speed and disk of this machine, and what would be slow on it.

    The text is made for bug reports: it shows no user name and writes ~ for the home folder. Takes some seconds. A
    property that cannot be read is reported as such.

    Args:
        folder: folder of images or runs whose disk is checked.
    """
    path = Path(folder).expanduser().resolve()
    if not path.exists():
        raise InputError(f"folder: {folder} does not exist")
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "versions": versions,
        "extras": extras,
        "processor": processor,
        "memory": memory,
        "GPUs": gpus,
        "decoder": decoder,
        "disk": partial(disk, path),
        "shared memory": shared_memory,
        "open files": open_files,
        "environment": environment,
    }
    lines, problems = [], []
    for name, section in sections.items():
        try:
            text, *found = section()
        except Exception as error:
            text, found = f"unknown ({type(error).__name__}: {' '.join(str(error).split())})", []
        lines.append(_paragraph(f"{name:<15}{text}", 15))
        problems += [_paragraph(f"- {problem}", 2) for problem in found]
    report = "\n".join([*lines, "", "possible problems", *(problems or ["- none found"])])
    home = str(Path.home())
    return report if home == "/" else report.replace(home, "~")


def _paragraph(text: str, indent: int) -> str:
    return textwrap.fill(text, 100, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


# Each section yields its text, then problems: what would be slow or fail, and what to change.


def versions() -> Iterator[str]:
    from mec import __version__

    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    yield f"mec {__version__}, {libraries}, Python {platform.python_version()}, {platform.platform()}"


def extras() -> Iterator[str]:
    installed = [name for name, (module, _) in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [f"{name} ({purpose})" for name, (_, purpose) in EXTRAS.items() if name not in installed]
    yield f"{', '.join(installed) or 'none'}{'; absent: ' if absent else ''}{', '.join(absent)}"


def processor() -> Iterator[str]:
    import torch

    from mec.engine.trainer import native_bfloat16

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        model = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[0]
    bf16 = "native" if native_bfloat16() else "emulated"
    yield f"{model}, {cores()} usable cores, {torch.get_num_threads()} PyTorch threads, bf16 {bf16}"
    gpu_count, threads = torch.cuda.device_count(), os.environ.get("OMP_NUM_THREADS", "")
    if gpu_count and cores() < MIN_CORES_PER_GPU * gpu_count:
        needed = MIN_CORES_PER_GPU * gpu_count
        yield f"{cores()} CPU cores for {gpu_count} GPU: loading limits training; use {needed} or more"
    elif not gpu_count and threads.isdigit() and int(threads) < cores():
        yield f"OMP_NUM_THREADS={threads} leaves {cores() - int(threads)} of {cores()} cores idle: unset it"


def cores() -> int:
    """Return the cores this process may use; a container or a scheduler may allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    return allowed


def memory() -> Iterator[str]:
    text = Path("/proc/meminfo").read_text()
    total, free = (_gib(int(size) * 1024) for size in re.findall(r"(?:MemTotal|MemAvailable): *(\d+)", text))
    limit = ""
    with contextlib.suppress(OSError, ValueError):
        limit = f"; {_gib(int(Path('/sys/fs/cgroup/memory.max').read_text()))} for this container"
    yield f"{total}, {free} free{limit}"


def gpus() -> Iterator[str]:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        names = ", ".join(f"{gpu.name} ({_gib(gpu.total_memory)})" for gpu in devices)
        yield f"{names}; CUDA {torch.version.cuda}, bf16 {'native' if bf16 else 'missing'}"
        if not bf16:
            yield "GPU without bf16: --precision 16-mixed is faster than 32-true"
    elif torch.backends.mps.is_available():
        yield "Apple GPU (MPS)"
    else:
        yield "none usable by PyTorch"
        if Path("/proc/driver/nvidia").exists():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            yield f"NVIDIA GPU that this PyTorch ({built}) cannot use: install a build for the driver, see pytorch.org"
        else:
            yield (
                "no GPU: small images and networks train in minutes to hours (recipes digits and small); "
                "ImageNet does not"
            )


def decoder() -> Iterator[str]:
    """Time the decoding of a JPEG of the size of a typical ImageNet image."""
    import numpy as np
    from PIL import Image

    from mec.data.decode import open_image
    from mec.data.pixels import PixelFormat

    rows, columns = np.mgrid[:375, :500]
    waves = [128 + 60 * np.sin(columns / 9 + c) * np.cos(rows / 7) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (375, 500, 3))
    file = io.BytesIO()
    Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    open_image(file.getvalue()).decode(PixelFormat())
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < DECODING_SECONDS:
        open_image(file.getvalue()).decode(PixelFormat())
        count += 1
    yield f"simplejpeg (libjpeg-turbo), {count / elapsed:,.0f} JPEGs of 500 x 375 per second on one core"


def disk(path: Path) -> Iterator[str]:
    usage, kind = shutil.disk_usage(path), file_system(path)
    yield f"{_gib(usage.free)} free of {_gib(usage.total)} in {path} ({kind or 'unknown file system'})"
    if usage.free < MIN_FREE_DISK:
        yield f"less than {_gib(MIN_FREE_DISK)} free: a run keeps several checkpoints; put --out on another disk"
    if kind in NETWORK_FILE_SYSTEMS:
        yield "network file system: copy the images to a local disk, or read them as shards (.tar)"


def file_system(path: Path) -> str | None:
    """Return the type of the file system of a path, from the longest mount point above it; None outside of Linux."""
    if not Path("/proc/mounts").exists():
        return None
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max((len(Path(point).parts), kind) for point, kind in mounts if path.is_relative_to(point))[1]


def shared_memory() -> Iterator[str]:
    """Read the size of the shared memory, through which loader processes send images."""
    if not Path("/dev/shm").exists():
        yield "not limited"
        return
    size = shutil.disk_usage("/dev/shm").total
    yield f"{_gib(size)} in /dev/shm"
    if size < MIN_SHARED_MEMORY:
        yield "little shared memory for the loader processes: docker run --shm-size=8g, or --workers 0"


def open_files() -> Iterator[str]:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield f"at most {limit:,}"
    if limit < MIN_OPEN_FILES:
        yield f"at most {limit:,} open files, too few for many loader processes: ulimit -n 65536"


def environment() -> Iterator[str]:
    """Read the environment variables that matter, without secrets: a harmless prefix does not make a token public."""
    names = sorted(n for n in os.environ if re.fullmatch(VARIABLES, n) and not re.search("TOKEN|KEY|SECRET", n))
    yield ", ".join(f"{name}={os.environ[name]}" for name in names) or "no relevant variable is set"
