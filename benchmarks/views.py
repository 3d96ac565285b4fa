"""How fast are two views made, compared with the paper's PIL pipeline, torchvision v2, lightly and kornia?

    pip install lightly kornia
    python benchmarks/views.py --data ../shared/data --cifar10 FOLDER [--seconds 3] [--device cuda]

Two views of 224 px, by the paper's recipe, of photographs of 500 x 375 pixels (JPEG, quality 90) from Caltech-101 and
DAVIS; and views of CIFAR-10's 32 px images in memory. First on one core, where the pipelines alternate for several
rounds; then end to end through a DataLoader with 1 and 2 workers, each in its own process with its peak memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import numpy as np
import simplejpeg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from machine import write
from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader
from mec.data.order import EpochSampler
from view_pipelines import (
    BatchFunction,
    MecPipeline,
    as_pil,
    as_tensor,
    kornia,
    lightly,
    paper,
    pipelines,
    torchvision_v2,
)

BATCH, SMALL_BATCH = 32, 256
ROUNDS = 3


def throughput(function: BatchFunction, images: list[Any], seconds: float, batch_size: int) -> float:
    """Return images per second over full batches for at least ``seconds``."""
    function(images[:batch_size])
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function([images[(count + i) % len(images)] for i in range(batch_size)])
        count += batch_size
    return count / (time.perf_counter() - start)


def alternate(
    functions: dict[str, BatchFunction], images: list[Any], seconds: float, batch_size: int = BATCH
) -> dict[str, dict[str, float]]:
    """Return the median throughput over the rounds, and the median of its ratio to the first function's in a round."""
    rounds: list[dict[str, float]] = []
    for n in range(ROUNDS):
        rounds.append({name: throughput(f, images, seconds, batch_size) for name, f in functions.items()})
        print(f"  round {n + 1}: " + ", ".join(f"{k} {v:,.0f}" for k, v in rounds[-1].items()), file=sys.stderr)
    first = next(iter(functions))
    return {
        name: {
            "images_per_second": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r[first] for r in rounds),
        }
        for name in functions
    }


def photographs(data: Path, folder: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Resize real photographs to one size and write them as JPEG files to ``folder``."""
    caltech = sorted(data.glob("caltech101/101_ObjectCategories/*/*.jpg"))
    davis = sorted(data.glob("davis16-subset/**/*.jpg"))
    half = count // 2
    paths = caltech[:: max(1, len(caltech) // half)][:half] + davis[:: max(1, len(davis) // half)][:half]
    for n, path in enumerate(paths):
        with Image.open(path) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / f"{n:04}.jpg", quality=90)
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


class Files(Dataset[Any]):
    def __init__(self, folder: Path, prepare: Callable[[Any], Any]) -> None:
        self.paths, self.prepare = sorted(folder.glob("*.jpg")), prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.prepare(self.paths[index].read_bytes())


def _make_views(views: list[Callable[[Any], Any]], decode: Callable[[Any], Any], encoded: bytes) -> list[torch.Tensor]:
    image = decode(encoded)
    return [view(image) for view in views]


def epochs(name: str, folder: Path, workers: int) -> Iterator[int]:
    """Run a pipeline through its loader; yield the number of images of each batch that is ready for the network."""
    if name == "mec":
        images, pipeline = open_dataset(folder), MecPipeline(224)
        sampler = EpochSampler(len(images), BATCH, seed=0)
        loader: Any = training_loader(images, pipeline.views, sampler, PixelFormat(), torch.device("cpu"), workers)
        while True:
            for batch in loader:
                for x in pipeline.views(*batch[:3]):
                    x.sub_(pipeline.mean).div_(pipeline.std)
                yield len(batch.indices)
            sampler.set_epoch(sampler.epoch + 1)
    transforms = {
        "PIL (the paper's)": lambda: partial(_make_views, paper(224), as_pil),
        "torchvision v2": lambda: partial(_make_views, torchvision_v2(224), as_tensor),
        "lightly": lambda: partial(_make_views, lightly(224), as_pil),
        "kornia": lambda: as_tensor,
    }
    data = Files(folder, transforms[name]())
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)
    batch_views = kornia(224) if name == "kornia" else []
    while True:
        for batch in loader:
            for view in batch_views:
                view(batch.float() / 255)
            yield BATCH


def _proportional_memory(pid: int) -> int:
    """Return the bytes of a process and its children; shared pages are divided among the processes that share them."""
    total = 0
    for process in [pid, *(int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def end_to_end(name: str, folder: Path, workers: int, seconds: float) -> dict[str, float]:
    """Return the throughput after the first batches and the peak memory of this process and its workers."""
    torch.set_num_threads(1)
    peak, finished = [0], threading.Event()

    def watch() -> None:
        while not finished.wait(0.2):
            peak[0] = max(peak[0], _proportional_memory(os.getpid()))

    threading.Thread(target=watch, daemon=True).start()
    batches = epochs(name, folder, workers)
    for _ in range(2 + 2 * workers):
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += next(batches)
    metrics = {"images_per_second": count / (time.perf_counter() - start)}
    finished.set()
    return metrics | {"peak_mib": peak[0] / 2**20}


def device_throughput(size: int, image_size: int | None, device: str, seconds: float, batch_size: int = 256) -> float:
    """Return images per second of ``TwoViews`` alone on an accelerator, on crops or on images of ``image_size``."""
    shape = (batch_size, 2 * 3 * size**2) if image_size is None else (batch_size, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    views, epoch, count = TwoViews(size), 0, 0
    for epoch in range(3):
        views(images, np.arange(batch_size), epoch)
    torch.cuda.synchronize()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        epoch += 1
        views(images, np.arange(batch_size), epoch)
        count += batch_size
    torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def _table(title: str, rows: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    for column in ("", "images/s", "ratio to PIL", "peak MiB"):
        table.add_column(column, justify="left" if not column else "right")
    for name, f in rows.items():
        ratio, memory = f.get("ratio"), f.get("peak_mib")
        table.add_row(
            name,
            f"{f['images_per_second']:,.0f}",
            f"{ratio:.1f}" if ratio else "",
            f"{memory:,.0f}" if memory else "",
        )
    Console(width=100).print(table)


def main(
    data: str, cifar10: str | None = None, seconds: float = 3.0, device: Literal["cpu", "cuda"] = "cpu",
    pipeline: str | None = None, workers: int = 1, folder: str | None = None,
) -> None:  # fmt: skip
    """Measure, print the tables and write benchmarks/results/views.json.

    Args:
        data: folder with caltech101 and davis16-subset.
        cifar10: CIFAR-10 as a folder or a name (see mec.open_dataset); null: do not measure 32 px.
        seconds: timing of each pipeline in each round.
        device: cuda also measures TwoViews alone on the GPU.
        pipeline: (used by the script itself) measure one pipeline end to end.
        workers: loader processes of that pipeline.
        folder: its photographs.
    """
    if pipeline is not None:
        print(json.dumps(end_to_end(pipeline, Path(str(folder)), workers, seconds)))
        return
    torch.set_num_threads(1)
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as small_folder, tempfile.TemporaryDirectory() as large_folder:
        jpegs = photographs(Path(data), Path(small_folder), (500, 375), 320)
        functions = pipelines(224) | {
            "mec, worker only": MecPipeline(224, worker_only=True),
            "mec, 2 views and 4 of 96 px": MecPipeline(224, local_sizes=[96] * 4),
            "decoder only": decode_all,
        }
        metrics["photographs, 224 px, one core"] = alternate(functions, jpegs, seconds)
        large_jpegs = photographs(Path(data), Path(large_folder), (4000, 3000), 32)
        selected = {k: functions[k] for k in ("PIL (the paper's)", "mec", "mec, worker only", "decoder only")}
        metrics["photographs of 4000 x 3000, 224 px, one core"] = alternate(selected, large_jpegs, seconds)
        if cifar10 is not None:
            images = open_dataset(cifar10, "train")
            small = [np.array(as_pil(images.load(int(i)))) for i in np.linspace(0, len(images) - 1, 2048).astype(int)]
            metrics["CIFAR-10, 32 px, in memory, one core"] = alternate(pipelines(32), small, seconds, SMALL_BATCH)
        for count in (1, 2):
            rows: dict[str, dict[str, float]] = {}
            for name in pipelines(224):
                command = [sys.executable, __file__, "--data", data, "--pipeline", name, "--workers", str(count)]
                command += ["--folder", small_folder, "--seconds", str(2 * seconds)]
                completed = subprocess.run(command, capture_output=True, text=True, check=True)
                rows[name] = json.loads(completed.stdout.splitlines()[-1])
                first = next(iter(rows.values()))["images_per_second"]
                rows[name]["ratio"] = rows[name]["images_per_second"] / first
            metrics[f"end to end, 224 px, {count} worker{'s' if count > 1 else ''}"] = rows
    for title, rows in metrics.items():
        _table(title, rows)
    if device == "cuda":
        metrics["TwoViews on the accelerator"] = {
            "crops of 224 px": {"images_per_second": device_throughput(224, None, device, seconds)},
            "32 px images, uncropped": {"images_per_second": device_throughput(32, 32, device, seconds)},
        }
        _table("TwoViews on the accelerator", metrics["TwoViews on the accelerator"])
    print(write("views", "images per second of two views, compared with other pipelines", metrics=metrics))


def decode_all(images: list[Any]) -> None:
    for image in images:
        simplejpeg.decode_jpeg(image)


if __name__ == "__main__":
    jsonargparse.CLI(main, as_positional=False)
