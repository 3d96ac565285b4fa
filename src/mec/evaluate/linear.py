"""Linear probes of a frozen encoder: a fast one on cached features, and the published ones (Liu et al., NeurIPS 2022:
MEC; Chen and He, CVPR 2021: SimSiam)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor

from mec.data.dataset import DataLike
from mec.distributed import process_group
from mec.embedding.extract import best_device, in_memory
from mec.errors import InputError
from mec.evaluate.supervised import (
    PAPER_PROBE,
    SIMSIAM_PROBE,
    overridden,
    protocol_settings,
    train_and_test,
    training_folder,
)
from mec.evaluate.task import Features, accuracies, features_of, log_encoder, open_task, ranking
from mec.models.encoder import EncoderLike
from mec.results import Protocol, Result, to_metrics

INVERSE_PENALTIES = tuple(10.0**e for e in np.arange(-4, 1.1, 0.5))
MAX_SELECTION_IMAGES = 10_000
"""Train images used to select the penalty, or 20 per class if that is more: more images hardly change it."""
BLOCK_ROWS = 8192
MAX_DEVICE_FRACTION = 0.4
"""Fraction of the device's free memory that features may occupy; larger ones are copied to it in every pass."""
PROTOCOLS = {"paper": PAPER_PROBE, "simsiam": SIMSIAM_PROBE}


def linear(
    data: DataLike,
    encoder: EncoderLike,
    protocol: Literal["fast", "paper", "simsiam"] = "fast",
    baselines: bool | None = None,
    crops: Literal["central", "random"] = "central",
    max_iter: int = 200,
    epochs: int | None = None,
    batch_size: int | None = None,
    head_lr: float | None = None,
    seed: int = 0,
    workers: int | None = None,
    labels_csv: str | None = None,
    out: str | None = None,
    resume: bool = False,
) -> Result:
    """Fit a linear classifier on frozen features (an offline linear probe).

    fast: multinomial logistic regression on standardized features of crops that are extracted once. The L2 penalty is
    the best of eleven on a held-out fifth of the train images (of at most 10,000, or 20 per class if that is more); the
    classifier is then refitted on all of them.

    paper: the probe of the paper's code. Data: new crops (RandomResizedCrop) and flips in every epoch. Model: BatchNorm
    without affine, then a linear layer. Training: LARS, learning rate 0.03 for a batch of 256, batch size 4096, cosine
    schedule by epoch, 100 epochs; the last epoch is tested.

    simsiam: the same without the BatchNorm, with learning rate 0.02 and 90 epochs. paper and simsiam are made for a
    million images: on a few thousand they take too few steps.

    The test split is evaluated once.

    Args:
        data: labeled dataset (see ``mec.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        protocol: fast (minutes), or paper or simsiam (hours).
        baselines: also measure the untrained encoder, and with fast raw pixels; null: only if there are at most
            100,000 train images.
        crops: crops of the train images: central, or one random crop and flip of each, as in the paper's probe; fast
            only. For an encoder trained with little cropping the two differ by a few percentage points.
        max_iter: maximum number of iterations of L-BFGS; fast only.
        epochs: number of epochs, in place of the protocol's; paper and simsiam only.
        batch_size: images in a step, in place of the protocol's, with the learning rate scaled; paper and simsiam only.
        head_lr: learning rate for a batch of 256, in place of the protocol's; paper and simsiam only.
        seed: seed of random crops; with paper and simsiam also of the classifier and the order of the images.
        workers: loader processes; null: one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
        out: folder for checkpoints of the training, deleted at the end; null: none are saved; paper and simsiam only.
        resume: continue the training in ``out``; paper and simsiam only.
    """
    if max_iter < 1:
        raise InputError(f"max_iter: expected at least 1, got {max_iter}")
    if protocol not in ("fast", *PROTOCOLS):
        raise InputError(f"protocol: expected fast, {' or '.join(PROTOCOLS)}, got {protocol!r}")
    changes = {"epochs": epochs, "batch_size": batch_size, "head_lr": head_lr}
    if protocol == "fast" and any(value is not None for value in changes.values()):
        raise InputError(f"{', '.join(changes)}: not used by the fast protocol; expected --protocol paper or simsiam")
    if crops not in ("central", "random"):
        raise InputError(f"crops: expected central or random, got {crops!r}")
    if protocol != "fast" and crops != "central":
        raise InputError(f"crops: the {protocol} protocol draws new crops in every epoch; expected --protocol fast")
    if protocol == "fast" and resume:
        raise InputError("resume: the fast protocol saves no checkpoints; expected --protocol paper or simsiam")
    # reject invalid overrides before the data is opened; fast has none and ignores these settings
    settings = overridden(PROTOCOLS.get(protocol, PAPER_PROBE), **changes)
    with process_group() as group:
        task = open_task(data, encoder, baselines, workers, labels_csv, group)
        if protocol == "fast":
            penalty = "chosen on held-out train images"
            details: dict[str, Any] = {"classifier": "logistic regression", "crops": crops, "penalty": penalty}
            all_features = features_of(task, seed if crops == "random" else None)
            rows = {f.name: to_metrics(fast_probe_accuracies(f, len(task.classes), max_iter)) for f in all_features}
        else:
            side = next(iter(task.encoders.values())).image_size
            details = {**protocol_settings(settings, len(task.train)), "image_size": side}
            log_encoder(task)
            identity = {"task": "linear", **task.identity(), **details, "seed": seed}
            with training_folder(out, identity, resume) as folder:
                task = replace(task.with_test_in_memory(), train=in_memory(task.train, task.pixel_format))
                rows = {}
                for name, row in task.encoders.items():
                    label = f"{protocol} probe, {name}"
                    values = train_and_test(task, task.train, row, settings, seed, label, folder and folder / name)
                    rows[name] = to_metrics(values)
        return task.result("linear", Protocol(f"linear-{protocol}", details), rows)


def fast_probe_accuracies(features: Features, classes: int, max_iter: int = 200) -> dict[str, float]:
    """Return the test accuracies of the fast probe (see ``accuracies``)."""
    C = select_penalty(features.train, features.train_labels, classes, max_iter)
    classifier = LogisticFit(features.train, features.train_labels, classes)(C, max_iter)
    return accuracies(ranking(classifier.scores(features.test)), features.test_labels, classes)


def select_penalty(x: Tensor, y: Tensor, classes: int, max_iter: int) -> float:
    """Return the inverse penalty C with the lowest cross-entropy on a held-out fifth; 1 if a class has a single image,
    which cannot be split. Accuracy is too coarse: with few images, it is equal or one image apart for all penalties."""
    if int(y.bincount()[y].min()) < 2:
        return 1.0
    sample = np.random.default_rng(0).permutation(len(y))[: max(MAX_SELECTION_IMAGES, 20 * classes)]
    rows = torch.from_numpy(np.sort(sample))
    rows = rows[y[rows].bincount(minlength=classes)[y[rows]] > 1]
    # a stratified split needs at least one held-out image per class
    num_held_out = max(int((y[rows].bincount() > 0).sum()), round(len(rows) * 0.2))
    fit_rows, held_rows = train_test_split(rows, test_size=num_held_out, stratify=y[rows], random_state=0)
    fit, held_x, held_y = LogisticFit(x[fit_rows], y[fit_rows], classes), x[held_rows], y[held_rows]
    # from the strongest penalty to the weakest: each fit is warm-started from the previous solution
    scores = [fit(c, max_iter).scores(held_x) for c in INVERSE_PENALTIES]
    return float(INVERSE_PENALTIES[int(np.argmin([float(F.cross_entropy(s, held_y)) for s in scores]))])


@dataclass(frozen=True)
class Logistic:
    """A linear classifier of unstandardized features (n, d): weight (d, classes), bias (classes,)."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Return the scores of features (n, d): (n, classes), on the CPU."""
        device = self.weight.device
        blocks = [(x.to(device) @ self.weight + self.bias).cpu() for x in torch.split(features, BLOCK_ROWS)]
        return torch.cat(blocks) if blocks else torch.empty(0, len(self.bias))


class LogisticFit:
    """Fit features (n, d) float32 on the CPU and labels (n,) with one L2 penalty after another, each from the last fit.

    The objective is scikit-learn's, mean cross-entropy + ||w||^2 / (2 C n) with w the weights of standardized features;
    biases are not penalized. Standardization is folded into the weights, so that (memory-mapped) features are not
    copied.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int) -> None:
        self.device = best_device()
        self.features, self.labels, self.n = features, labels, len(features)
        self.mean, self.scale = (m.to(self.device, torch.float32) for m in _moments(features))
        self.weight = torch.zeros(features.shape[1], classes, device=self.device, requires_grad=True)
        self.bias = torch.zeros(classes, device=self.device, requires_grad=True)
        self._blocks: list[tuple[Tensor, Tensor]] | None = None
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if features.numel() * 4 < MAX_DEVICE_FRACTION * free:
                self._blocks = list(self._blocks_on_device())

    def __call__(self, C: float, max_iter: int) -> Logistic:
        """Return the classifier for the inverse penalty ``C``, after at most ``max_iter`` iterations of L-BFGS."""
        solver = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=max_iter, max_eval=2 * max_iter, tolerance_grad=1e-6,
            tolerance_change=1e-7, history_size=10, line_search_fn="strong_wolfe",
        )  # fmt: skip
        penalty = 1 / (2 * C * self.n)

        def closure() -> Tensor:
            solver.zero_grad()
            weight, bias = self._without_standardization()
            # accumulate the gradient over blocks, then propagate it through the standardization once
            leaves = [t.detach().requires_grad_() for t in (weight, bias)]
            total = torch.zeros((), device=self.device, dtype=torch.float64)
            for x, y in self._blocks or self._blocks_on_device():
                loss = F.cross_entropy(torch.addmm(leaves[1], x, leaves[0]), y, reduction="sum") / self.n
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            torch.autograd.backward([weight, bias], [leaf.grad for leaf in leaves])
            penalized = penalty * self.weight.square().sum()
            penalized.backward()  # type: ignore[no-untyped-call]
            return (total + penalized.detach()).float()

        solver.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return Logistic(*self._without_standardization())

    def _without_standardization(self) -> tuple[Tensor, Tensor]:
        weight = self.weight / self.scale[:, None]
        return weight, self.bias - self.mean @ weight

    def _blocks_on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in zip(torch.split(self.features, BLOCK_ROWS), torch.split(self.labels, BLOCK_ROWS), strict=True):
            yield x.to(self.device), y.to(self.device)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column (d,), float64; the deviation of a constant column is 1."""
    blocks = torch.split(features, BLOCK_ROWS)
    mean = sum((block.double().sum(dim=0) for block in blocks), torch.zeros(())) / len(features)
    variance = sum(((block.double() - mean).square().sum(dim=0) for block in blocks), torch.zeros(())) / len(features)
    deviation = variance.sqrt()
    # rounding gives a constant float32 column a small deviation
    return mean, torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)
