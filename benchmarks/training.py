"""How many images a second do whole training steps take, data loading included, beside others, and where is the time?

    python benchmarks/training.py --device cpu --cifar10 FOLDER        (ResNet-18 at 32 px)
    python benchmarks/training.py --device cuda --photographs FOLDER   (that, and ResNet-50 at 224 px)

mec is ``mec.pretrain`` as a user starts it (training_turns.py), the others are the loops of training_loops.py, lightly
with the extra ``bench``. Each has a process of its own, and on a CPU they take turns, so that a disturbance meets all:
a turn starts the loader anew, warms up and is timed over whole steps. solo-learn 1.0.2 pins torch 1.9.1, and cannot be
installed beside this package.
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
from training_loops import Setting
from training_turns import PLAIN, contestants, serve

PEAKS = {"H200": (494.7e12, 989.4e12), "H100": (494.7e12, 989.4e12), "A100": (156e12, 312e12)}
"""Dense FLOP/s of the SXM modules by their data sheets: TF32, in which cuDNN takes float32, and bfloat16."""
MADE = 1024
"""Photographs made where no folder of them is given."""
PARTS = ("views", "forward", "objective", "backward", "optimizer", "teacher", "rest")
TARGETS = {
    "cuda": "paper's form >= 2.5x plain PyTorch, >= 1.3x the best of lightly, data wait < 5 %",
    "cpu": "paper's form >= 1.5x plain PyTorch",
}


def main(
    device: Literal["cpu", "cuda"] = "cpu",
    batch: int | None = None,
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
        batch: images in a step, in place of each comparison's own.
        steps: timed in a turn; None: 2 on a CPU, two for each loader process on a GPU.
        rounds: of turns, on a CPU.
        threads: of the CPU; None: as many as cores.
        cifar10: a source of CIFAR-10; null: made images.
        photographs: a folder with sub-folders of photographs; null: made ones of 500 x 375 pixels.
        compile: mec's encoder through torch.compile, as in runs of 2,000 steps and more on a GPU.
    """
    cores = len(os.sched_getaffinity(0))
    threads, console = threads or cores, Console(width=175)
    torch.set_num_threads(threads)
    asked = [("resnet18", 32, 128)] if device == "cpu" else [("resnet50", 224, 256), ("resnet18", 32, 512)]
    asked += [] if device == "cpu" else [("resnet50", 224, 1024)]
    workers = min(cores, 16)
    figures: dict[str, Any] = {
        "targets": TARGETS[device],
        "peak_flops_per_second": peaks(device),
        "comparisons": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for backbone, size, usual in asked:
            many = batch or usual
            counts = (1, steps or 2, 0) if device == "cpu" else (workers, steps or 2 * workers, 5)
            shown = many * (sum(counts) + 2)
            source, path = (cifar10, small_images) if size < 96 else (photographs, large_images)
            setting = Setting(
                backbone, size, many, device, path(source, shown, Path(folder)), shown, workers, threads, *counts
            )
            title = f"{backbone}, {size} px, batch {many}"
            of_setting = {**asdict(setting), "images": "made" if source is None else Path(source).name}
            rows: dict[str, Any] = {}
            figures["comparisons"][title] = {"setting": of_setting, "rows": rows}
            for name, turns in in_turns(setting, rounds if device == "cpu" else 1, compile):
                rows[name] = row(setting, turns, figures["peak_flops_per_second"])
                ratios(rows)
                suffix = "" if device == "cpu" else f"_{device}"
                written = write(f"training{suffix}", "images a second in training, beside other loops", **figures)
            console.print(table(title, rows))
    console.print(f"wanted: {TARGETS[device]}\n{written}")


def in_turns(setting: Setting, rounds: int, compiled: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """After each turn: whose it was, and the figures of all its turns so far."""
    with running(setting, compiled) as started:
        turns = {name: [_answer(pipe)] for name, (_, pipe) in started.items()}
        for number in range(rounds):
            for name, (process, pipe) in started.items():
                if "failed" not in turns[name][-1]:
                    pipe.send(True)
                    turns[name].append(_answer(pipe))
                    if setting.device == "cuda":  # the next has the whole GPU
                        pipe.close()
                        process.join()
                print(f"  round {number + 1}, {name}: {turns[name][-1]}", flush=True)
                yield name, turns[name]


def _answer(pipe: Any) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = pipe.recv()
    except EOFError:
        return {"failed": "its process was killed"}
    return answer


@contextmanager
def running(setting: Setting, compiled: bool) -> Iterator[dict[str, tuple[Any, Any]]]:
    """A process for each contestant, and the pipe to it; an end of the pipe ends it."""
    context = multiprocessing.get_context("spawn")
    started: dict[str, tuple[Any, Any]] = {}
    for name in contestants(compiled):
        pipe, other = context.Pipe()
        started[name] = context.Process(target=serve, args=(other, name, setting, compiled)), pipe
        started[name][0].start()
        other.close()
    try:
        yield started
    finally:
        for process, pipe in started.values():
            pipe.close()
            process.join(10)
            process.terminate()


def row(setting: Setting, turns: list[dict[str, Any]], peak: dict[str, float]) -> dict[str, Any]:
    """Medians over the turns."""
    timed = [t for t in turns if "seconds" in t]
    if "failed" in turns[-1] or not timed:
        return {"failed": turns[-1].get("failed", "not measured")}
    seconds = statistics.median(t["seconds"] for t in timed)
    precision = timed[-1]["precision"]
    of_peak = peak["float32" if precision == "32-true" else "bfloat16"]
    return {
        "images_per_second": setting.batch / seconds,
        "rounds": [setting.batch / t["seconds"] for t in timed],
        "seconds": seconds,
        "data_wait_fraction": statistics.median(t["waited"] / t["seconds"] for t in timed),
        "parts": {p: statistics.median(t["parts"].get(p, 0.0) for t in timed) for p in ("data", *PARTS)},
        "peak_mib": max(t["mib"] for t in timed),
        "gflop_per_image": turns[0]["flops"] / 1e9,
        "precision": precision,
        "share_of_peak": turns[0]["flops"] * setting.batch / seconds / of_peak,
    }


def ratios(rows: dict[str, Any]) -> None:
    """Adds to each row its ratio to the plain recipe and to the better of lightly's, medians within the rounds."""
    measured = {name: r for name, r in rows.items() if "rounds" in r}
    peers = [name for name in measured if name.startswith("lightly")]
    best = max(peers, key=lambda name: float(measured[name]["images_per_second"]), default=None)
    for key, other in (("to_plain", PLAIN), ("to_best_peer", best)):
        for r in measured.values():
            if other in measured:
                pairs = zip(r["rounds"], measured[other]["rounds"], strict=False)
                r[key] = statistics.median(a / b for a, b in pairs)


def peaks(device: str) -> dict[str, float]:
    """FLOP/s in float32 and bfloat16: of a GPU that is known, else of a large matrix product here."""
    for name, (single, half) in PEAKS.items():
        if device == "cuda" and name in torch.cuda.get_device_name():
            return {"float32": single, "bfloat16": half}
    return {str(t).split(".")[1]: _measured_peak(device, t) for t in (torch.float32, torch.bfloat16)}


def _measured_peak(device: str, dtype: torch.dtype, side: int = 2048, times: int = 5) -> float:
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def small_images(source: str | None, count: int, folder: Path) -> Path:
    """An .npz of ``count`` images of 32 px, evenly from the source."""
    if source is None:
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    else:
        dataset = mec.open_dataset(source, "pretrain")
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
        images = np.stack([read_image(dataset, int(i), PixelFormat()) for i in chosen])
        images = np.resize(images, (count, *images.shape[1:]))
    np.savez(folder / "images.npz", images=images)
    return folder / "images.npz"


def large_images(source: str | None, count: int, folder: Path) -> Path:
    """A folder with a sub-folder of photographs, and list.txt, which names ``count`` of them, again and again."""
    root = Path(source) if source is not None else _made_photographs(folder / "made")
    home = folder / f"photographs-{count}"
    home.mkdir()
    names = sorted(p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    (home / "all").symlink_to(root.resolve())
    listed = [f"all/{p.relative_to(root)}" for p in names]
    (home / "list.txt").write_text("\n".join(listed[i % len(listed)] for i in range(count)) + "\n")
    return home


def _made_photographs(folder: Path) -> Path:
    """Smooth shapes and some grain, 500 x 375 pixels, as JPEG files of the size that photographs have."""
    if not folder.exists():
        folder.mkdir()
        random = np.random.default_rng(0)
        for number in range(MADE):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
            grained = smooth + random.normal(0, 6, smooth.shape)
            encoded = simplejpeg.encode_jpeg(grained.clip(0, 255).astype(np.uint8), quality=90)
            (folder / f"{number:04}.jpg").write_bytes(encoded)
    return folder


def table(title: str, rows: dict[str, Any]) -> Table:
    shown = Table(title=f"{title}; parts in seconds a step")
    for column in (
        "",
        "images/s",
        "x plain",
        "x peer",
        "data wait",
        *PARTS,
        "peak MiB",
        "precision",
        "of peak",
    ):
        shown.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    for name, r in rows.items():
        if "failed" in r:
            shown.add_row(name, r["failed"])
            continue
        against = (f"{r[key]:.2f}" if key in r else "" for key in ("to_plain", "to_best_peer"))
        parts = (f"{r['parts'][p]:.3f}" for p in PARTS)
        last = f"{r['peak_mib']:,.0f}", r["precision"], f"{r['share_of_peak']:.0%}"
        shown.add_row(name, f"{r['images_per_second']:,.1f}", *against, f"{r['data_wait_fraction']:.1%}", *parts, *last)
    return shown


if __name__ == "__main__":
    auto_cli(main)
