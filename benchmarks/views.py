"""How fast are two views made, beside the paper's PIL pipeline, torchvision v2, lightly and kornia?

    pip install lightly kornia
    python benchmarks/views.py --data ../shared/data --cifar10 FOLDER [--seconds 3] [--device cuda]

Photographs of 500 x 375 pixels (JPEG, quality 90) made from Caltech-101 and DAVIS frames, two views of 224 px each, by
the paper's recipe; and CIFAR-10's 32 px images in memory. One core first, every pipeline in turns, several rounds;
then end to end through a DataLoader with 1 and 2 workers, each in a process of its own whose memory is watched.
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
from mec.data.loaders import EpochSampler, training_loader
from view_pipelines import Batch, Ours, as_pil, as_tensor, kornia, lightly, paper, pipelines, torchvision_v2

BATCH, SMALL_BATCH = 32, 256
ROUNDS = 3


def rate(function: Batch, images: list[Any], seconds: float, batch: int) -> float:
    """Images a second, over whole batches for at least ``seconds``."""
    function(images[:batch])
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        function([images[(done + i) % len(images)] for i in range(batch)])
        done += batch
    return done / (time.perf_counter() - start)


def in_turns(
    functions: dict[str, Batch], images: list[Any], seconds: float, batch: int = BATCH
) -> dict[str, dict[str, float]]:
    """Median rate over the rounds, and its ratio to the first one's, the medians of ratios within a round."""
    rounds: list[dict[str, float]] = []
    for n in range(ROUNDS):
        rounds.append({name: rate(f, images, seconds, batch) for name, f in functions.items()})
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
    """Real photographs resized to one size, as JPEG files in ``folder``."""
    caltech = sorted(data.glob("caltech101/101_ObjectCategories/*/*.jpg"))
    davis = sorted(data.glob("davis16-subset/**/*.jpg"))
    half = count // 2
    chosen = caltech[:: max(1, len(caltech) // half)][:half] + davis[:: max(1, len(davis) // half)][:half]
    for n, path in enumerate(chosen):
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


def _viewed(views: list[Callable[[Any], Any]], decode: Callable[[Any], Any], encoded: bytes) -> list[torch.Tensor]:
    image = decode(encoded)
    return [view(image) for view in views]


def epochs(name: str, folder: Path, workers: int) -> Iterator[int]:
    """End to end: yields the number of images of each batch that is ready for the network."""
    if name == "mec":
        images, ours = open_dataset(folder), Ours(224)
        sampler = EpochSampler(len(images), BATCH, seed=0)
        loader: Any = training_loader(images, ours.views, sampler, PixelFormat(), torch.device("cpu"), workers)
        while True:
            for batch in loader:
                for x in ours.views(*batch[:3]):
                    x.sub_(ours.mean).div_(ours.std)
                yield len(batch.indices)
            sampler.set_epoch(sampler.epoch + 1)
    one = {
        "PIL (the paper's)": lambda: partial(_viewed, paper(224), as_pil),
        "torchvision v2": lambda: partial(_viewed, torchvision_v2(224), as_tensor),
        "lightly": lambda: partial(_viewed, lightly(224), as_pil),
        "kornia": lambda: as_tensor,
    }
    data = Files(folder, one[name]())
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True)
    after = kornia(224) if name == "kornia" else []
    while True:
        for batch in loader:
            for view in after:
                view(batch.float() / 255)
            yield BATCH


def _proportional_memory(pid: int) -> int:
    """Bytes of a process and its children, shared pages divided among those who share them."""
    total = 0
    for process in [pid, *(int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def end_to_end(name: str, folder: Path, workers: int, seconds: float) -> dict[str, float]:
    """In this process: rate after the first batches, and the peak of its and its workers' memory."""
    torch.set_num_threads(1)
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], _proportional_memory(os.getpid()))

    threading.Thread(target=watch, daemon=True).start()
    batches = epochs(name, folder, workers)
    for _ in range(2 + 2 * workers):
        next(batches)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += next(batches)
    figures = {"images_per_second": done / (time.perf_counter() - start)}
    over.set()
    return figures | {"peak_mib": peak[0] / 2**20}


def on_device(size: int, whole: int | None, device: str, seconds: float, batch: int = 256) -> float:
    """Images a second of ``TwoViews`` alone on an accelerator: of crops, or of whole images resident there."""
    shape = (batch, 2, 3, size, size) if whole is None else (batch, 3, whole, whole)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    views, epoch, done = TwoViews(size), 0, 0
    for epoch in range(3):
        views(images, np.arange(batch), epoch)
    torch.cuda.synchronize()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        epoch += 1
        views(images, np.arange(batch), epoch)
        done += batch
    torch.cuda.synchronize()
    return done / (time.perf_counter() - start)


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
    one: str | None = None, workers: int = 1, folder: str | None = None,
) -> None:  # fmt: skip
    """Measure, print the tables and write benchmarks/results/views.json.

    Args:
        data: the folder with caltech101 and davis16-subset.
        cifar10: a source of CIFAR-10 (see mec.open_dataset); absent: no figures at 32 px.
        seconds: for each pipeline in each round.
        device: cuda measures TwoViews alone there, too.
        one: (used by the script itself) one pipeline end to end.
        workers: of that one.
        folder: of its photographs.
    """
    if one is not None:
        print(json.dumps(end_to_end(one, Path(str(folder)), workers, seconds)))
        return
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as large:
        jpegs = photographs(Path(data), Path(made), (500, 375), 320)
        functions = pipelines(224) | {"mec, worker's part": Ours(224, worker_only=True), "decoder alone": decode_all}
        figures["photographs, 224 px, one core"] = in_turns(functions, jpegs, seconds)
        big = photographs(Path(data), Path(large), (4000, 3000), 32)
        chosen = {k: functions[k] for k in ("PIL (the paper's)", "mec", "mec, worker's part", "decoder alone")}
        figures["photographs of 4000 x 3000, 224 px, one core"] = in_turns(chosen, big, seconds)
        if cifar10 is not None:
            images = open_dataset(cifar10, "train")
            small = [np.array(as_pil(images.load(int(i)))) for i in np.linspace(0, len(images) - 1, 2048).astype(int)]
            figures["CIFAR-10, 32 px, in memory, one core"] = in_turns(pipelines(32), small, seconds, SMALL_BATCH)
        for count in (1, 2):
            rows: dict[str, dict[str, float]] = {}
            for name in pipelines(224):
                command = [sys.executable, __file__, "--data", data, "--one", name, "--workers", str(count)]
                command += ["--folder", made, "--seconds", str(2 * seconds)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows[name] = json.loads(done.stdout.splitlines()[-1])
                first = next(iter(rows.values()))["images_per_second"]
                rows[name]["ratio"] = rows[name]["images_per_second"] / first
            figures[f"end to end, 224 px, {count} worker{'s' if count > 1 else ''}"] = rows
    for title, rows in figures.items():
        _table(title, rows)
    if device == "cuda":
        figures["TwoViews on the accelerator"] = {
            "crops of 224 px": {"images_per_second": on_device(224, None, device, seconds)},
            "32 px images, resident": {"images_per_second": on_device(32, 32, device, seconds)},
        }
        _table("TwoViews on the accelerator", figures["TwoViews on the accelerator"])
    print(write("views", "How fast are two views made, beside other pipelines?", figures=figures))


def decode_all(images: list[Any]) -> None:
    for image in images:
        simplejpeg.decode_jpeg(image)


if __name__ == "__main__":
    jsonargparse.CLI(main, as_positional=False)
