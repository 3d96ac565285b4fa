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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = "torch torchvision timm lightning numpy pillow simplejpeg scikit-learn jsonargparse".split()
EXTRAS = {
    "datasets": ("datasets", "Hugging Face datasets, hf:owner/name"),
    "onnx": ("onnxruntime", "mec export --format onnx"),
    "tiff": ("tifffile", "TIFFs of many channels, bits or pages"),
    "tracking": ("trackeval", "the metrics of mec evaluate mot and mots"),
    "video": ("av", "videos as datasets, rendered tracks"),
}
"""Extra of the package -> module that shows whether it is installed, and what it is for."""
VARIABLES = r"(CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTORCH_\w+|NCCL_\w+|MEC_\w+|HF_HOME|TORCH_HOME)"
LAUNCHERS = r"(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|SLURM_(JOB_ID|NTASKS|NNODES|GPUS_ON_NODE|CPUS_PER_TASK))"
NETWORK_FILE_SYSTEMS = "nfs nfs4 cifs smb3 smbfs 9p ceph lustre beegfs gpfs fuse.sshfs afs".split()
GIB, WIDTH = 2**30, 100
MIN_SHARED_MEMORY, MIN_FREE_DISK, MIN_OPEN_FILES, MIN_CORES_PER_GPU = 1 * GIB, 5 * GIB, 1024, 4
JPEG_SIZE, DECODING_SECONDS = (500, 375), 0.3
"""Width and height of a typical ImageNet image, and how long decoding is timed."""


def doctor(folder: str | os.PathLike[str] = ".") -> str:
    """Return versions, devices, decoder speed and disk of this machine, and what would be slow on it.

    The text is made for bug reports: it shows no user name and writes ~ for the home folder. Takes some seconds. A
    property that cannot be read is reported as such.

    Args:
        folder: folder of images or runs whose disk is checked.
    """
    sections: dict[str, Callable[[], str]] = {
        "versions": versions,
        "extras": extras,
        "system": lambda: f"{platform.platform()}, Python {platform.python_version()}",
        "processor": processor,
        "memory": memory,
        "GPUs": gpus,
        "decoder": decoder,
        "disk": lambda: disk(folder),
        "shared memory": shared_memory,
        "open files": lambda: f"at most {open_files():,}",
        "environment": environment,
    }
    lines = [_paragraph(f"{name:<15}{_text_or_error(read)}", 15) for name, read in sections.items()]
    problems = list(_problems(folder))
    lines += [
        "",
        "possible problems",
        *(_paragraph(f"- {problem}", 2) for problem in problems or ["none found"]),
    ]
    home = str(Path.home())
    return "\n".join(lines) if home == "/" else "\n".join(lines).replace(home, "~")


def _paragraph(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _text_or_error(read: Callable[[], str]) -> str:
    try:
        return read()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {' '.join(str(error).split())})"


def versions() -> str:
    """Return the versions of this package and of the libraries it needs."""

    def installed(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} missing"

    from mec import __version__

    return ", ".join([f"mec {__version__}", *map(installed, LIBRARIES)])


def extras() -> str:
    """Return the installed extras, and the purpose of the others."""
    installed = [name for name, (module, _) in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [f"{name} ({what})" for name, (_, what) in EXTRAS.items() if name not in installed]
    return f"{', '.join(installed) or 'none'}{'; absent: ' if absent else ''}{', '.join(absent)}"


def processor() -> str:
    """Return the CPU model, usable cores, PyTorch threads and bfloat16 support."""
    import torch

    from mec.engine.trainer import native_bfloat16

    bf16 = "native" if native_bfloat16() else "emulated"
    return f"{_cpu_model()}, {cores()} usable cores, {torch.get_num_threads()} PyTorch threads, bf16 {bf16}"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        if match := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            return match[1]
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return the cores this process may use; a container or a scheduler may allow fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    return allowed


def memory() -> str:
    """Return total and free memory, and the limit of a container."""
    text = Path("/proc/meminfo").read_text()
    sizes = [int(size) * 1024 for size in re.findall(r"(?:MemTotal|MemAvailable): *(\d+)", text)]
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return f"{_gib(limit)} for this container, of {_gib(sizes[0])}; {_gib(sizes[1])} free on the machine"
    return f"{_gib(sizes[0])}, {_gib(sizes[1])} free"


def gpus() -> str:
    """Return names and memory of the GPUs that PyTorch can use."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        bf16 = "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "missing"
        names = ", ".join(f"{gpu.name} ({_gib(gpu.total_memory)})" for gpu in devices)
        return f"{names}; CUDA {torch.version.cuda}, bf16 {bf16}"
    if torch.backends.mps.is_available():
        return "Apple GPU (MPS)"
    return "none usable by PyTorch"


def decoder() -> str:
    """Return the JPEG decoder and its speed."""
    library, speed = decoding_speed()
    return f"{library}, {speed:,.0f} JPEGs of {JPEG_SIZE[0]} x {JPEG_SIZE[1]} per second on one core"


def decoding_speed() -> tuple[str, float]:
    """Return the library that decodes JPEGs for training, and the images per second on one core."""
    import numpy as np
    from PIL import Image

    width, height = JPEG_SIZE
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(columns / 9 + c) * np.cos(rows / 7) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    library, decode = _jpeg_decoder()
    decode(file.getvalue())
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < DECODING_SECONDS:
        decode(file.getvalue())
        count += 1
    return library, count / elapsed


def _jpeg_decoder() -> tuple[str, Callable[[bytes], object]]:
    try:
        from mec.data.decode import open_image
        from mec.data.pixels import PixelFormat
    except ImportError:
        from PIL import Image

        return "Pillow (simplejpeg is not installed)", lambda data: Image.open(io.BytesIO(data)).convert("RGB")
    return "simplejpeg (libjpeg-turbo)", lambda data: open_image(data).decode(PixelFormat())


def disk(folder: str | os.PathLike[str]) -> str:
    """Return free and total space and the file system of the disk of a folder."""
    usage = shutil.disk_usage(folder)
    path = Path(folder).expanduser().resolve()
    return f"{_gib(usage.free)} free of {_gib(usage.total)} in {path} ({file_system(path) or 'unknown file system'})"


def file_system(path: Path) -> str | None:
    """Return the type of the file system of a path, from the longest mount point above it; None outside of Linux."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    mount_points = [(len(Path(point).parts), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(mount_points)[1] if mount_points else None


def shared_memory() -> str:
    """Return the size of the shared memory, through which loader processes send images."""
    if not Path("/dev/shm").exists():
        return "not limited"
    return f"{_gib(shutil.disk_usage('/dev/shm').total)} in /dev/shm"


def open_files() -> int:
    """Return how many files a process may have open."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def environment() -> str:
    """Return the environment variables that matter, without secrets."""
    names = sorted(name for name in os.environ if re.fullmatch(f"{VARIABLES}|{LAUNCHERS}", name))
    # a harmless prefix does not make a token public
    settings = [f"{name}={os.environ[name]}" for name in names if not re.search("TOKEN|KEY|SECRET", name)]
    return ", ".join(settings) or "no relevant variable is set"


def _problems(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yield what would be slow or fail, and what to change. A check that fails itself is left out."""
    for check in (_check_gpu, _check_cores, _check_threads, _check_decoder, _check_shared_memory, _check_open_files):
        with contextlib.suppress(Exception):
            if problem := check():
                yield problem
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < MIN_FREE_DISK:
            yield f"less than {_gib(MIN_FREE_DISK)} free: a run keeps several checkpoints; put --out on another disk"
    with contextlib.suppress(OSError):
        if file_system(Path(folder).expanduser().resolve()) in NETWORK_FILE_SYSTEMS:
            yield "network file system: copy the images to a local disk, or read them as shards (.tar)"


def _check_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return "GPU without bf16: --precision 16-mixed is faster than 32-true"
        return None
    if torch.backends.mps.is_available():
        return None
    if Path("/proc/driver/nvidia").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return f"NVIDIA GPU that this PyTorch ({built}) cannot use: install a build for the driver, see pytorch.org"
    return "no GPU: small images and networks train in minutes to hours (recipes digits and small); ImageNet does not"


def _check_cores() -> str | None:
    import torch

    needed = MIN_CORES_PER_GPU * max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and cores() < needed:
        return f"{cores()} CPU cores for {torch.cuda.device_count()} GPU: loading limits training; use {needed} or more"
    return None


def _check_threads() -> str | None:
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) < cores() and not torch.cuda.is_available():
        return f"OMP_NUM_THREADS={threads} leaves {cores() - int(threads)} of {cores()} cores idle: unset it"
    return None


def _check_decoder() -> str | None:
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return "simplejpeg is missing, mec cannot read images without it: pip install simplejpeg"
    return None


def _check_shared_memory() -> str | None:
    if Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").total < MIN_SHARED_MEMORY:
        return "little shared memory for the loader processes: docker run --shm-size=8g, or --workers 0"
    return None


def _check_open_files() -> str | None:
    if open_files() < MIN_OPEN_FILES:
        return f"at most {open_files():,} open files, too few for many loader processes: ulimit -n 65536"
    return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
