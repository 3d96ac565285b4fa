"""What a machine has, and what of it would make training slow: for one's own eyes and for bug reports."""

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

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "numpy",
    "pillow",
    "simplejpeg",
    "scikit-learn",
    "jsonargparse",
)
EXTRAS = {
    "datasets": ("datasets", "Hugging Face data sets, hf:owner/name"),
    "onnx": ("onnxruntime", "mec export --format onnx"),
    "tiff": ("tifffile", "TIFFs of many channels, bits or pages"),
    "tracking": ("trackeval", "the figures of mec evaluate mot and mots"),
    "video": ("av", "videos as images, films of tracks"),
    "webdataset": ("webdataset", "shards from URLs"),
}
"""What each extra of the package brings, by the library that is imported."""
VARIABLES = r"(CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|MKL_NUM_THREADS|PYTORCH_\w+|NCCL_\w+|MEC_\w+|HF_HOME|TORCH_HOME)"
LAUNCHERS = r"(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|SLURM_(JOB_ID|NTASKS|NNODES|GPUS_ON_NODE|CPUS_PER_TASK))"
NETWORK_DISKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "beegfs", "gpfs", "fuse.sshfs", "afs"}
GIB, WIDTH = 2**30, 100
LITTLE_SHARED, LITTLE_FREE, FEW_FILES, FEW_CORES = 1 * GIB, 5 * GIB, 1024, 4
JPEG_SIDES, DECODING_SECONDS = (500, 375), 0.3
"""Those of ImageNet's usual image."""


def doctor(folder: str | os.PathLike[str] = ".") -> str:
    """Versions, devices, decoder and disk of this machine, and what would be slow on it.

    A text to paste into a bug report: it has no user name, and what lies in the home folder is shown with ~.
    Some seconds; a part that cannot be found out says so.

    Args:
        folder: of images or runs, whose disk is looked at.
    """
    parts: dict[str, Callable[[], str]] = {
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
    lines = [_paragraph(f"{name:<15}{_told(find)}", 15) for name, find in parts.items()]
    slow = list(_slow(folder))
    lines += [
        "",
        "what would be slow or fail",
        *(_paragraph(f"- {what}", 2) for what in slow or ["nothing that was looked for"]),
    ]
    home = str(Path.home())
    return "\n".join(lines) if home == "/" else "\n".join(lines).replace(home, "~")


def _paragraph(text: str, indent: int) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _told(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:
        return f"could not be found out ({type(error).__name__}: {' '.join(str(error).split())})"


def versions() -> str:
    def one(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} missing"

    from mec import __version__

    return ", ".join([f"mec {__version__}", *map(one, LIBRARIES)])


def extras() -> str:
    """Those that are installed, and what the others are for."""
    there = [name for name, (module, _) in EXTRAS.items() if importlib.util.find_spec(module)]
    absent = [f"{name} ({what})" for name, (_, what) in EXTRAS.items() if name not in there]
    return f"{', '.join(there) or 'none'}{'; absent: ' if absent else ''}{', '.join(absent)}"


def processor() -> str:
    import torch

    from mec.engine.trainer import native_bfloat16

    halved = "native" if native_bfloat16() else "emulated"
    return f"{_model()}, {cores()} cores to use, {torch.get_num_threads()} threads of PyTorch, bf16 {halved}"


def _model() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()


def cores() -> int:
    """Those this process may use: fewer than the machine has where a container or a scheduler says so."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    return allowed


def memory() -> str:
    text = Path("/proc/meminfo").read_text()
    sizes = [int(size) * 1024 for size in re.findall(r"(?:MemTotal|MemAvailable): *(\d+)", text)]
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return f"{_gib(limit)} for this container, of {_gib(sizes[0])}; {_gib(sizes[1])} free on the machine"
    return f"{_gib(sizes[0])}, {_gib(sizes[1])} free"


def gpus() -> str:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        halved = "native" if torch.cuda.is_bf16_supported(including_emulation=False) else "missing"
        listed = ", ".join(f"{gpu.name} ({_gib(gpu.total_memory)})" for gpu in found)
        return f"{listed}; CUDA {torch.version.cuda}, bf16 {halved}"
    if torch.backends.mps.is_available():
        return "Apple's, through MPS"
    return "none that PyTorch can use"


def decoder() -> str:
    return f"{decoding()[0]}, {decoding()[1]:,.0f} JPEGs of {JPEG_SIDES[0]} x {JPEG_SIDES[1]} a second on one core"


def decoding() -> tuple[str, float]:
    """The library that decodes JPEGs for training, and how many it does in a second on one core."""
    import numpy as np
    from PIL import Image

    width, height = JPEG_SIDES
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 60 * np.sin(columns / 9 + c) * np.cos(rows / 7) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    name, decode = _decode()
    decode(file.getvalue())
    done, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < DECODING_SECONDS:
        decode(file.getvalue())
        done += 1
    return name, done / passed


def _decode() -> tuple[str, Callable[[bytes], object]]:
    try:
        from mec.data.decode import open_image
        from mec.data.pixels import PixelFormat
    except ImportError:
        from PIL import Image

        return "Pillow, as simplejpeg is missing", lambda data: Image.open(io.BytesIO(data)).convert("RGB")
    return "simplejpeg (libjpeg-turbo)", lambda data: open_image(data).decode(PixelFormat())


def disk(folder: str | os.PathLike[str]) -> str:
    usage = shutil.disk_usage(folder)
    path = Path(folder).expanduser().resolve()
    return f"{_gib(usage.free)} free of {_gib(usage.total)} in {path} ({file_system(path) or 'of unknown kind'})"


def file_system(path: Path) -> str | None:
    """Its kind, as Linux calls it: that of the longest mount point above the path; None on other systems."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    above = [(len(Path(point).parts), kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(above)[1] if above else None


def shared_memory() -> str:
    if not Path("/dev/shm").exists():
        return "as much as there is memory"
    return f"{_gib(shutil.disk_usage('/dev/shm').total)} in /dev/shm"


def open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def environment() -> str:
    names = sorted(name for name in os.environ if re.fullmatch(f"{VARIABLES}|{LAUNCHERS}", name))
    # a token may stand in a variable whose name only sounds harmless
    shown = [f"{name}={os.environ[name]}" for name in names if not re.search("TOKEN|KEY|SECRET", name)]
    return ", ".join(shown) or "none of the variables that matter is set"


def _slow(folder: str | os.PathLike[str]) -> Iterator[str]:
    """What would be slow or fail, and what to change; what cannot be found out is passed over."""
    for find in (_no_gpu, _few_cores, _few_threads, _slow_decoder, _little_shared_memory, _few_files):
        with contextlib.suppress(Exception):
            if found := find():
                yield found
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < LITTLE_FREE:
            yield f"less than {_gib(LITTLE_FREE)} free: a run keeps several checkpoints; put --out on another disk"
    with contextlib.suppress(OSError):
        if file_system(Path(folder).expanduser().resolve()) in NETWORK_DISKS:
            yield "a disk over the network: copy the images to a local one, or read them as shards (.tar)"


def _no_gpu() -> str | None:
    import torch

    if torch.cuda.is_available():
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return "the GPU has no bf16: --precision 16-mixed is faster than its 32 bits"
        return None
    if torch.backends.mps.is_available():
        return None
    if Path("/proc/driver/nvidia").exists():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return (
            f"an NVIDIA GPU that this PyTorch ({built}) cannot use: install one that fits the driver, see pytorch.org"
        )
    return "no GPU: small images and networks train in minutes to hours (recipes digits and small), ImageNet does not"


def _few_cores() -> str | None:
    import torch

    needed = FEW_CORES * max(1, torch.cuda.device_count())
    if torch.cuda.is_available() and cores() < needed:
        return f"{cores()} CPU cores for {torch.cuda.device_count()} GPU: it waits for images; give it {needed} or more"
    return None


def _few_threads() -> str | None:
    import torch

    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) < cores() and not torch.cuda.is_available():
        return f"OMP_NUM_THREADS={wanted} leaves {cores() - int(wanted)} of {cores()} cores idle: unset it"
    return None


def _slow_decoder() -> str | None:
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return "no simplejpeg, without which mec reads no images: pip install simplejpeg"
    return None


def _little_shared_memory() -> str | None:
    if Path("/dev/shm").exists() and shutil.disk_usage("/dev/shm").total < LITTLE_SHARED:
        return "little shared memory, through which loaders send images: docker run --shm-size=8g, or --workers 0"
    return None


def _few_files() -> str | None:
    if open_files() < FEW_FILES:
        return f"at most {open_files():,} open files, of which loaders take many: ulimit -n 65536"
    return None


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
