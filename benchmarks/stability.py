"""Which form of the objective is stable at any batch size m, code width d and network, and which learns best?

Trains the same encoder on the digits (and, with --cifar10, on a fifth of CIFAR-10) with each form, for several m, d and
seeds and a fixed number of steps. Reports the final loss, the spectral norm (the Taylor series converges below 1), the
effective rank and the accuracy of frozen features. Nothing is tuned per cell.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.data import PixelFormat
from mec.data.analysis import load_into_memory
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.knn import knn_ranking
from mec.evaluate.task import accuracies, features_of, open_task
from mec.pretraining import ObjectiveSettings, OptimizerSettings, ProjectorSettings, Recipe, TeacherSettings


@dataclass(frozen=True)
class Form:
    """A form of the objective to compare."""

    name: str
    objective: ObjectiveSettings
    teacher: bool = False


FORMS = (
    Form("reduction, exact, default sweep", ObjectiveSettings()),
    Form("reduction, exact, 1/32", ObjectiveSettings("reduction", 1 / 32, None)),
    Form("pooled, exact, 1/32", ObjectiveSettings("pooled", 1 / 32, None)),
    Form("pooled, exact, 1/32, teacher", ObjectiveSettings("pooled", 1 / 32, None), teacher=True),
    Form("cross, order 4, 1/32, teacher (paper)", ObjectiveSettings("cross", 1 / 32, 4, 8), teacher=True),
    Form("cross, order 4, 1/32", ObjectiveSettings("cross", 1 / 32, 4)),
    Form("cross, order 4, 0.25", ObjectiveSettings("cross", 0.25, 4)),
    Form("cross, exact, 1/32", ObjectiveSettings("cross", 1 / 32, None)),
)
# (m, d, steps): fewer steps for larger batches, so that a cell takes seconds
CELLS = ((256, 128, 100), (32, 2048, 120), (1024, 64, 40), (32, 64, 120), (1024, 2048, 30))


def train(data: str, base: Recipe, form: Form, m: int, d: int, steps: int, images: int, seed: int) -> dict[str, float]:
    recipe = replace(
        base,
        seed=seed,
        batch_size=m,
        epochs=max(1, round(steps / (images // m))),
        log_every=max(1, steps // 20),
        objective=form.objective,
        projector=ProjectorSettings(hidden_dim=256, output_dim=d),
        teacher=TeacherSettings(form.teacher, 0.99, max(32, d // 4)),
        # the recipe scales lr with the batch; Adam needs the square root of that factor (Malladi et al. 2022)
        optimizer=OptimizerSettings("adamw", 5e-3 * (256 / m) ** 0.5, 1e-4, 0.9, 1000),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = mec.pretrain(data, Path(folder) / "run", recipe)
        rows = run.metrics()
        task = open_task(data, run, baselines=False)
        (f,) = features_of(task)
    classes = len(task.classes)
    ranked = knn_ranking(f.train, f.train_labels, f.test, [20], classes)[20]
    return {
        "loss": rows[-1]["loss"],
        "min loss": min(r["loss"] for r in rows),
        "spectral norm": rows[-1].get("spectral_norm", float("nan")),  # with an order only
        "effective rank": rows[-1]["effective_rank"],
        "1 shot": float(class_mean_scores(f, classes, 1, 20, 0)["top-1"].mean()),
        "10 shots": float(class_mean_scores(f, classes, 10, 20, 0)["top-1"].mean()),
        "kNN": accuracies(ranked, f.test_labels, classes)["top-1"],
    }


def main(cifar10: str | None = None, trials: int = 2, forms: list[int] | None = None) -> None:
    """Train with every form in every cell.

    Args:
        cifar10: CIFAR-10 as a folder or a name, a fifth of which is another cell; null: digits only.
        trials: seeds of each cell.
        forms: indices of the forms; null: all.
    """
    selected = [FORMS[i] for i in forms] if forms else FORMS
    digits = replace(mec.load_recipe("digits"), image_size=16, small_stem=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cells = [("digits", digits, m, d, steps, 1347) for m, d, steps in CELLS]
        if cifar10 is not None:
            subset = Path(folder) / "cifar10-fifth.npz"
            arrays = {}
            for split in ("train", "test"):
                dataset = load_into_memory(mec.open_dataset(cifar10, split), PixelFormat())[0]
                arrays[f"{split}_images"], arrays[f"{split}_labels"] = dataset.images[::5], dataset.labels[::5]
            np.savez(subset, **arrays)
            color = replace(mec.load_recipe("cifar10-resnet18"), small_stem=False, precision="32-true")
            color = replace(color, backbone_options=digits.backbone_options)
            cells.insert(1, (str(subset), color, 256, 512, 117, len(arrays["train_images"])))
        # one single-threaded run per core: twice the throughput of one run on all cores
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn, torch.set_num_threads, (1,)) as pool:
            jobs = {}
            for cell, form in itertools.product(cells, selected):
                data, base, m, d, steps, images = cell
                runs = [pool.submit(train, data, base, form, m, d, steps, images, seed) for seed in range(trials)]
                jobs[m, d, steps, data, form.name] = runs
            for (m, d, steps, data, name), futures in jobs.items():
                results = [future.result() for future in futures]
                mean = {k: float(np.mean([r[k] for r in results])) for k in results[0]}
                dataset_name = "digits" if data == "digits" else "CIFAR-10, a fifth"
                row = {"data": dataset_name, "m": m, "d": d, "steps": steps, "form": name, "trials": trials}
                rows.append(row | mean)
                print(rows[-1], flush=True)
                # written after every row, so that an interrupted run keeps its rows
                path = write("stability", "which form of the objective is stable over batch size and width", rows=rows)
    table = Table(title="accuracy in percent; mean over seeds")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        percent = {k: f"{100 * row[k]:.1f}" for k in ("1 shot", "10 shots", "kNN")}
        texts = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()} | percent
        table.add_row(*texts.values())
    Console(width=160).print(table)
    print(path)


if __name__ == "__main__":
    auto_cli(main)
