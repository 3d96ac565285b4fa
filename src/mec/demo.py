"""Pretrain, evaluate and report on the handwritten digits that come with scikit-learn. No download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.manifold import TSNE

from mec.data import ImageDataset, open_dataset
from mec.errors import InputError
from mec.evaluate.few_shot import few_shot_metrics
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features, Task, accuracies, features_of, open_task
from mec.files import atomic_write
from mec.pretraining import load_recipe, pretrain
from mec.pretraining.run_folder import contains_run
from mec.report import write_report
from mec.results import TOP_5, Metric, Protocol, Result, Stopwatch, cells, titles, to_metrics

SHOTS = (1, 5, 10)
FIRST = "1 shot"  # the metric of the headline
TRIALS = 20
NEIGHBORS = 20
MAX_QUERIES = SHOWN_NEIGHBORS = 8  # in the figure


def demo(out: str | os.PathLike[str] = "demo", epochs: int | None = None, seed: int = 0) -> Result:
    """Pretrain on handwritten digits without labels, then compare raw pixels, the untrained encoder and MEC.

    Writes the run, its result, ``demo.png`` and ``report.html`` into ``out``. Takes two minutes on two CPU cores.

    Args:
        out: run folder; if it contains a run already, a number is appended to its name.
        epochs: epochs of pretraining; null: those of the recipe.
        seed: seed of weights and views.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    console = Console(soft_wrap=True)
    clock = Stopwatch()
    folder = _new_folder(Path(out))
    recipe = replace(load_recipe("digits"), seed=seed)
    run = pretrain("digits", folder, replace(recipe, epochs=epochs or recipe.epochs))
    task = open_task("digits", run)
    features = list(features_of(task))
    result = measure(task, features, clock)
    result.append_to(folder)
    _plot(_headline(result), run.metrics(), features[0].test, open_dataset("digits", "test"), folder / "demo.png")
    console.print(_table(result))
    console.print(
        f"Accuracy on {len(task.test)} test digits. n shots: n labels per class, nearest class mean, mean ± std of "
        f"{TRIALS} trials. All labels: kNN (k = {NEIGHBORS}) and a linear classifier.\n"
        f"Figure: {folder / 'demo.png'}. Total time: {result.seconds:.0f} s.",
        highlight=False,
        markup=False,
    )
    page = write_report([folder])
    console.print(f"Report: {page} (open it in a browser).", highlight=False, markup=False)
    return result


def measure(task: Task, features: list[Features], clock: Stopwatch) -> Result:
    """Evaluate few-shot, kNN and linear classifiers on the features of every row of the task."""
    classes = len(task.classes)
    rows: dict[str, list[Metric]] = {}
    for f in features:
        ranked = knn_ranking(f.train, f.train_labels, f.test, [NEIGHBORS], classes)[NEIGHBORS]
        all_labels = {
            "kNN": accuracies(ranked, f.test_labels, classes)["top-1"],
            "linear": fast_probe_accuracies(f, classes)["top-1"],
        }
        few_shot = few_shot_metrics(f, classes, SHOTS, TRIALS, seed=0)
        rows[f.name] = [m for m in few_shot if not m.name.endswith(TOP_5)] + to_metrics(all_labels)
    return Result(
        task="demo",
        protocol=Protocol("demo", {"few_shot_classifier": "nearest class mean", "trials": TRIALS, "k": NEIGHBORS}),
        dataset=task.dataset,
        encoder=task.encoder,
        rows=rows,
        seconds=clock(),
    )


def _table(result: Result) -> Table:
    table = Table()
    columns = titles(result.rows.values())
    table.add_column("features")
    for title in columns.values():
        table.add_column(title, justify="right")
    for row, name in (("raw pixels", "raw pixels"), ("untrained", "untrained"), ("encoder", "MEC")):
        table.add_row(name, *cells(result.rows[row], columns), style="bold" if row == "encoder" else "")
    return table


def _new_folder(folder: Path) -> Path:
    """Return ``folder``, or the first of folder-2, folder-3, ... that contains no run."""
    number, candidate = 1, folder
    while contains_run(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _headline(result: Result) -> str:
    accuracy = {row: f"{100 * result.metric(FIRST, row).value:.0f} %" for row in result.rows}
    return (
        f"One label per digit: {accuracy['encoder']} of {result.dataset.counts['test']} test images are classified "
        f"correctly (raw pixels {accuracy['raw pixels']}, untrained {accuracy['untrained']})"
    )


def _plot(
    headline: str, metrics: Sequence[dict[str, float]], features: torch.Tensor, test: ImageDataset, path: Path
) -> None:
    """Plot the rows of metrics.csv, and the test set with its features (n, d), as PNG."""
    assert test.images is not None
    assert test.labels is not None
    figure = Figure(figsize=(13, 4.6), dpi=120, layout="constrained")
    figure.suptitle(headline, fontsize=15, weight="bold")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.0, 1.0])
    _plot_curves(left, metrics)
    _plot_features(middle, features, test.labels, test.classes)
    _plot_neighbors(right, features, test.labels, test.images)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _plot_curves(axes: Axes, metrics: Sequence[dict[str, float]]) -> None:
    steps = [row["step"] for row in metrics]
    axes.plot(steps, [row["loss"] for row in metrics], color="tab:blue")
    axes.set(title="Training without labels", xlabel="step")
    axes.set_ylabel("loss", color="tab:blue")
    right = axes.twinx()
    right.plot(steps, [row["effective_rank"] for row in metrics], color="tab:orange")
    right.set_ylabel("effective rank of the codes", color="tab:orange")
    right.set_ylim(bottom=0)


def _plot_features(axes: Axes, features: torch.Tensor, labels: np.ndarray, classes: Sequence[str]) -> None:
    perplexity = min(30, (len(features) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(F.normalize(features, dim=1).numpy())
    axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=8)
    for label, name in enumerate(classes):
        members = points[labels == label]
        if len(members):
            axes.annotate(name, np.median(members, axis=0), fontsize=13, weight="bold", ha="center", va="center")
    axes.set(title="Features of test images (t-SNE)", xticks=[], yticks=[])


def _plot_neighbors(axes: Axes, features: torch.Tensor, labels: np.ndarray, images: np.ndarray) -> None:
    unit = F.normalize(features - features.mean(dim=0), dim=1)
    queries = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)[:MAX_QUERIES]]
    nearest = (unit[queries] @ unit.T).topk(SHOWN_NEIGHBORS + 1, dim=1).indices.numpy()
    h, w, c = images.shape[1:]
    gap = max(1, h // 8)
    grid = np.full((len(queries) * (h + gap), (SHOWN_NEIGHBORS + 2) * (w + gap), c), 255, dtype=np.uint8)
    for row, (query, indices) in enumerate(zip(queries, nearest, strict=True)):
        cells = [query, None, *[i for i in indices if i != query][:SHOWN_NEIGHBORS]]  # None: an empty column
        for column, index in enumerate(cells):
            if index is not None:
                y, x = row * (h + gap), column * (w + gap)
                grid[y : y + h, x : x + w] = images[index]
    axes.imshow(grid.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set(title="Test images and nearest neighbors", xticks=[], yticks=[])
    axes.set_frame_on(False)
