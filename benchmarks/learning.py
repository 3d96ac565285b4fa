"""What makes the recipe cifar10-cpu learn? One change at a time, at an equal number of FLOPs.

Settings are compared on held-out train images, the default split. A run whose row is in the json is not repeated.

python benchmarks/learning.py --tflop 8 --data FOLDER   (a folder with train/CLASS/ and test/CLASS/, or cifar10)
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import mec
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import accuracies, features_of, open_task
from mec.models.siamese import Projector
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import make_recipe, read_settings
from run_pool import read_rows, run_jobs, without_row

NAME = "learning"
QUESTION = "what makes the recipe cifar10-cpu learn: one change at a time, at an equal number of FLOPs"
HELD_OUT, BANK = 5000, 10_000
"""Held-out train images, and train images whose features kNN and the linear probe use."""
PLAIN = {"blur": 0.0, "solarize": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "first convolution random": {"whiten_stem": False},
    "narrow ResNet-18": {
        "backbone": "resnet18",
        "backbone_options": {"layers": [1, 1, 1, 1], "channels": [64, 128, 192, 256], "zero_init_last": False},
    },
    "1.5 times as wide": {"backbone_options": {"width_factor": 1.5}},
    "views of 32 px": {"image_size": 32},
    "evaluated at 24 px": {"evaluation_scale": 1.0},
    "batch of 64": {"batch_size": 64},
    "batch of 256": {"batch_size": 256},
    "4 views, batch of 64": {"batch_size": 64, "extra_views": {"count": 2, "crop_scale": [0.2, 1.0]} | PLAIN},
    "2 views and 4 of 16 px": {"extra_views": {"count": 4, "image_size": 16, "crop_scale": [0.05, 0.3]} | PLAIN},
    "crops of at least 0.3": {"view_1": {"crop_scale": [0.3, 1.0]}, "view_2": {"crop_scale": [0.3, 1.0]}},
    "twice the lr": {"optimizer": {"lr": 0.012}},
    "Muon": {"optimizer": {"name": "muon", "lr": 0.012, "options": {"betas": [0.9, 0.99]}}},
    "projector 2048-2048": {"projector": {"hidden_dim": 2048, "output_dim": 2048}},
}


@dataclass(frozen=True)
class Run:
    """A run; ``split`` are the images that are classified, with train images as the bank."""

    variant: str
    tflop: float
    split: Literal["held-out", "test"]
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def recipe_of(run: Run, num_images: int) -> Recipe:
    """Return the recipe with the number of steps that cost the FLOPs of the run."""
    settings = _merge(read_settings("cifar10-cpu"), VARIANTS[run.variant])
    recipe = replace(make_recipe(settings), seed=run.seed, precision="32-true", workers=0)
    steps = max(1, round(run.tflop * 1e12 / step_flops(recipe)))
    # warm-up is a number of epochs: keep its fraction of the recipe
    warmup = recipe.optimizer.warmup_epochs / recipe.epochs * steps * recipe.batch_size / num_images
    return replace(recipe, steps=steps, optimizer=replace(recipe.optimizer, warmup_epochs=warmup))


def step_flops(recipe: Recipe) -> float:
    """Return the FLOPs of a step: forward passes of encoder and projector, three times with the backward passes."""
    local = [recipe.local_size] * recipe.num_local
    sizes = [recipe.image_size] * (2 + recipe.extra_views.count - len(local)) + local
    encoder = mec.create_encoder(recipe.backbone, recipe.image_size, options=recipe.backbone_options).eval()
    settings = recipe.projector
    projector = Projector(encoder.num_features, settings.hidden_dim, settings.output_dim).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for size in sizes:
            projector(encoder(torch.zeros(1, 3, size, size)))
    return 3.0 * recipe.batch_size * counter.get_total_flops()


def run_one(run: Run, images: Path) -> dict[str, Any]:
    """Pretrain, and evaluate the frozen features of the last epoch and of the start."""
    logging.getLogger("mec").setLevel(logging.WARNING)
    arrays = np.load(images)
    x, labels = arrays["train"], arrays["train_labels"]
    order = np.random.default_rng(0).permutation(len(x))  # folders are sorted by class
    held_out, kept = order[:HELD_OUT], order[HELD_OUT:]
    queries = (x[held_out], labels[held_out])
    if run.split == "test":
        kept, queries = order, (arrays["test"], arrays["test_labels"])
    recipe = recipe_of(run, len(kept))
    with tempfile.TemporaryDirectory() as folder:
        trained = mec.pretrain(x[kept], Path(folder) / "run", recipe)
        final = trained.metrics()[-1]
        bank = kept[:BANK]
        task = open_task({"train": (x[bank], labels[bank]), "test": queries}, trained)
        row: dict[str, Any] = {"steps": recipe.steps, "final_effective_rank": final["effective_rank"]}
        for features in itertools.islice(features_of(task), 2):  # without raw pixels, whose probe is slow
            ranked = knn_ranking(features.train, features.train_labels, features.test, [20], 10)[20]
            row[features.name] = {
                "kNN": 100 * accuracies(ranked, features.test_labels, 10)["top-1"],
                "linear": 100 * fast_probe_accuracies(features, 10)["top-1"],
            }
    return row


def main(
    data: str = "cifar10",
    tflop: float = 8.0,
    variants: list[str] | None = None,
    seeds: list[int] = [0],  # noqa: B006
    split: Literal["held-out", "test"] = "held-out",
) -> None:
    """Run the variants that are not in the json yet, one on each core, and print the means over seeds.

    Args:
        data: cifar10, or a folder with train and test.
        tflop: FLOPs of a run, in 10^12.
        variants: names of the changes; null: all.
        seeds: seeds of weights, batches and views.
        split: held-out: a tenth of the train images, to choose settings; test: train on all, look at the test images.
    """
    jobs = [Run(variant, tflop, split, seed) for seed, variant in itertools.product(seeds, variants or VARIANTS)]
    missing = without_row(jobs, read_rows(NAME))
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            images = Path(folder) / "images.npz"
            np.savez(images, **_load_images(data))
            run_jobs(NAME, QUESTION, missing, partial(run_one, images=images))
    print_table([row for row in read_rows(NAME) if (row["tflop"], row["split"]) == (tflop, split)])


def _load_images(data: str) -> dict[str, Any]:
    arrays = {}
    for split in ("train", "test"):
        dataset = mec.open_dataset(data, split)
        arrays[split] = np.stack([mec.data.dataset.read_image(dataset, i) for i in range(len(dataset))])
        arrays[f"{split}_labels"] = np.asarray(dataset.labels)
    return arrays


def _merge(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes; mappings are merged, but those of an architecture and of an optimizer's options."""
    merged = dict(settings)
    for name, value in changes.items():
        nested = isinstance(value, dict) and name not in ("backbone_options", "options")
        merged[name] = _merge(merged.get(name, {}), value) if nested else value
    return merged


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table(title="CIFAR-10, accuracy in percent: mean over seeds, and of the untrained encoder")
    for column in ("variant", "seeds", "steps", "kNN", "linear", "untrained kNN", "untrained linear"):
        table.add_column(column)
    for variant in VARIANTS:
        group = [row for row in rows if row["variant"] == variant]
        if group:
            means = [
                np.mean([row[name][metric] for row in group])
                for name in ("encoder", "untrained")
                for metric in ("kNN", "linear")
            ]
            table.add_row(variant, str(len(group)), str(group[0]["steps"]), *(f"{mean:.1f}" for mean in means))
    Console().print(table)


if __name__ == "__main__":
    auto_cli(main)
