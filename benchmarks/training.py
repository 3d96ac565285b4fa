"""How many images per second do full training steps process, compared with other libraries, and which part is slow?

    python benchmarks/training.py --device cpu --cifar10 FOLDER        (ResNet-18 at 32 px)
    python benchmarks/training.py --device cuda --photographs FOLDER   (that, and ResNet-50 at 224 px)

mec is ``mec.pretrain`` as a user calls it (training_turns.py), the others are the loops of training_loops.py; lightly
comes with the extra ``bench``. Data loading is included. Each contestant has its own process. On a CPU they alternate,
so that other load affects all of them: a turn restarts the loader, warms up and times full steps. solo-learn 1.0.2 pins
torch 1.9.1 and cannot be installed with this package.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.data import PixelFormat
from mec.data.dataset import read_image
from training_loops import Settings
from training_turns import PLAIN, contestants, serve

PEAKS = {"H200": (494.7e12, 989.4e12), "H100": (494.7e12, 989.4e12), "A100": (156e12, 312e12)}
"""Dense FLOP/s of the SXM modules by their data sheets: TF32, which cuDNN uses for float32, and bfloat16."""
NUM_SYNTHETIC = 1024
"""Synthetic photographs, used if no folder is given."""
PHASES = ("views", "forward", "objective", "backward", "optimizer", "teacher", "rest")
TARGETS = {
    "cuda": "paper's form >= 2.5x plain PyTorch, >= 1.3x the best of lightly, data wait < 5 %",
    "cpu": "paper's form >= 1.5x plain PyTorch",
}


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int | None = None,
    steps: int | None = None,
    rounds: int = 3,
    threads: int | None = None,
    cifar10: str | None = "cifar10",
    photographs: str | None = None,
    compile: bool = False,
) -> None:
    """Measure, print the tables and write benchmarks/results/training.json or training_cuda.json, row by row.

    Args:
        device: cpu, or cuda: one GPU, one round.
        batch_size: images in a step; null: that of each comparison.
        steps: timed steps of a turn; null: 2 on a CPU, two for each loader process on a GPU.
        rounds: turns of each contestant on a CPU.
        threads: CPU threads; null: one per core.
        cifar10: CIFAR-10 as a folder or a name; null: random images.
        photographs: a folder with sub-folders of photographs; null: synthetic ones of 500 x 375 pixels.
        compile: compile mec's encoder with torch.compile, as in runs of 2,000 steps and more on a GPU.
    """
    cores = len(os.sched_getaffinity(0))
    threads, console = threads or cores, Console(width=175)
    torch.set_num_threads(threads)
    comparisons = [("resnet18", 32, 128)] if device == "cpu" else [("resnet50", 224, 256), ("resnet18", 32, 512)]
    comparisons += [] if device == "cpu" else [("resnet50", 224, 1024)]
    workers = min(cores, 16)
    results: dict[str, Any] = {
        "targets": TARGETS[device],
        "peak_flops_per_second": peaks(device),
        "comparisons": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for backbone, image_size, default_batch_size in comparisons:
            size = batch_size or default_batch_size
            step_counts = (1, steps or 2, 0) if device == "cpu" else (workers, steps or 2 * workers, 5)
            num_images = size * (sum(step_counts) + 2)
            data, prepare = (cifar10, small_images) if image_size < 96 else (photographs, large_images)
            path = prepare(data, num_images, Path(folder))
            settings = Settings(backbone, image_size, size, device, path, num_images, workers, threads, *step_counts)
            title = f"{backbone}, {image_size} px, batch {size}"
            recorded = {**asdict(settings), "images": "synthetic" if data is None else Path(data).name}
            rows: dict[str, Any] = {}
            results["comparisons"][title] = {"settings": recorded, "rows": rows}
            for name, turns in alternate(settings, rounds if device == "cpu" else 1, compile):
                rows[name] = row(settings, turns, results["peak_flops_per_second"])
                ratios(rows)
                suffix = "" if device == "cpu" else f"_{device}"
                question = "images per second in training, compared with other loops"
                written = write(f"training{suffix}", question, **results)
            console.print(table(title, rows))
    console.print(f"target: {TARGETS[device]}\n{written}")


def alternate(settings: Settings, rounds: int, compiled: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run the contestants alternately; after each turn, yield its contestant and the measurements of all its turns."""
    with start_processes(settings, compiled) as started:
        turns = {name: [_receive(pipe)] for name, (_, pipe) in started.items()}
        for number in range(rounds):
            for name, (process, pipe) in started.items():
                if "failed" not in turns[name][-1]:
                    pipe.send(True)
                    turns[name].append(_receive(pipe))
                    if settings.device == "cuda":  # free the GPU for the next contestant
                        pipe.close()
                        process.join()
                print(f"  round {number + 1}, {name}: {turns[name][-1]}", flush=True)
                yield name, turns[name]


def _receive(pipe: Any) -> dict[str, Any]:
    try:
        measurements: dict[str, Any] = pipe.recv()
    except EOFError:
        return {"failed": "its process was killed"}
    return measurements


@contextmanager
def start_processes(settings: Settings, compiled: bool) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Start a process with a pipe for each contestant. A process ends when its pipe is closed."""
    context = multiprocessing.get_context("spawn")
    started: dict[str, tuple[Any, Any]] = {}
    for name in contestants(compiled):
        pipe, child_pipe = context.Pipe()
        started[name] = context.Process(target=serve, args=(child_pipe, name, settings, compiled)), pipe
        started[name][0].start()
        child_pipe.close()
    try:
        yield started
    finally:
        for process, pipe in started.values():
            pipe.close()
            process.join(10)
            process.terminate()


def row(settings: Settings, turns: list[dict[str, Any]], peak_flops: dict[str, float]) -> dict[str, Any]:
    """Return medians over the turns of a contestant."""
    timed = [t for t in turns if "seconds" in t]
    if "failed" in turns[-1] or not timed:
        return {"failed": turns[-1].get("failed", "not measured")}
    seconds = statistics.median(t["seconds"] for t in timed)
    precision = timed[-1]["precision"]
    peak = peak_flops["float32" if precision == "32-true" else "bfloat16"]
    return {
        "images_per_second": settings.batch_size / seconds,
        "rounds": [settings.batch_size / t["seconds"] for t in timed],
        "seconds": seconds,
        "data_wait_fraction": statistics.median(t["data_wait"] / t["seconds"] for t in timed),
        "phases": {p: statistics.median(t["phases"].get(p, 0.0) for t in timed) for p in ("data", *PHASES)},
        "peak_mib": max(t["mib"] for t in timed),
        "gflop_per_image": turns[0]["flops"] / 1e9,
        "precision": precision,
        "fraction_of_peak": turns[0]["flops"] * settings.batch_size / seconds / peak,
    }


def ratios(rows: dict[str, Any]) -> None:
    """Add to each row its speedup over the plain recipe and lightly's best, medians of the ratios within a round."""
    measured = {name: r for name, r in rows.items() if "rounds" in r}
    peers = [name for name in measured if name.startswith("lightly")]
    best = max(peers, key=lambda name: float(measured[name]["images_per_second"]), default=None)
    for key, other in (("speedup_over_plain", PLAIN), ("speedup_over_best_peer", best)):
        for r in measured.values():
            if other in measured:
                pairs = zip(r["rounds"], measured[other]["rounds"], strict=False)
                r[key] = statistics.median(a / b for a, b in pairs)


def peaks(device: str) -> dict[str, float]:
    """Return peak FLOP/s in float32 and bfloat16: by data sheet for a known GPU, else of a matrix product."""
    for name, (float32, bfloat16) in PEAKS.items():
        if device == "cuda" and name in torch.cuda.get_device_name():
            return {"float32": float32, "bfloat16": bfloat16}
    return {str(t).split(".")[1]: _measured_peak(device, t) for t in (torch.float32, torch.bfloat16)}


def _measured_peak(device: str, dtype: torch.dtype, side: int = 2048, repeats: int = 5) -> float:
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def small_images(data: str | None, count: int, folder: Path) -> Path:
    """Write an .npz of ``count`` images of 32 px, evenly spaced in the dataset."""
    if data is None:
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    else:
        dataset = mec.open_dataset(data, "pretrain")
        indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
        images = np.stack([read_image(dataset, int(i), PixelFormat()) for i in indices])
        images = np.resize(images, (count, *images.shape[1:]))
    np.savez(folder / "images.npz", images=images)
    return folder / "images.npz"


def large_images(data: str | None, count: int, folder: Path) -> Path:
    """Create a folder with a sub-folder of photographs and a list.txt of ``count`` of them, with repeats if needed."""
    root = Path(data) if data is not None else _synthetic_photographs(folder / "synthetic")
    home = folder / f"photographs-{count}"
    home.mkdir()
    names = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    (home / "all").symlink_to(root.resolve())
    lines = [f"all/{p.relative_to(root)}" for p in names]
    (home / "list.txt").write_text("\n".join(lines[i % len(lines)] for i in range(count)) + "\n")
    return home


def _synthetic_photographs(folder: Path) -> Path:
    """Write smooth shapes with grain, 500 x 375 pixels, as JPEG files of a size typical for photographs."""
    if not folder.exists():
        folder.mkdir()
        random = np.random.default_rng(0)
        for number in range(NUM_SYNTHETIC):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = smooth + random.normal(0, 6, smooth.shape)
            encoded = simplejpeg.encode_jpeg(noisy.clip(0, 255).astype(np.uint8), quality=90)
            (folder / f"{number:04}.jpg").write_bytes(encoded)
    return folder


def table(title: str, rows: dict[str, Any]) -> Table:
    result = Table(title=f"{title}; phases in seconds per step")
    for column in (
        "",
        "images/s",
        "vs plain",
        "vs best peer",
        "data wait",
        *PHASES,
        "peak MiB",
        "precision",
        "of peak FLOP/s",
    ):
        result.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    for name, r in rows.items():
        if "failed" in r:
            result.add_row(name, r["failed"])
            continue
        speedups = (f"{r[key]:.2f}" if key in r else "" for key in ("speedup_over_plain", "speedup_over_best_peer"))
        phases = (f"{r['phases'][p]:.3f}" for p in PHASES)
        last = f"{r['peak_mib']:,.0f}", r["precision"], f"{r['fraction_of_peak']:.0%}"
        speed, data_wait = f"{r['images_per_second']:,.1f}", f"{r['data_wait_fraction']:.1%}"
        result.add_row(name, speed, *speedups, data_wait, *phases, *last)
    return result


if __name__ == "__main__":
    auto_cli(main)
