"""Compare the encoder of a run with the trained one that it started from, and keep the best."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mec.coding import effective_rank
from mec.data.dataset import ImageDataset, evenly_spaced
from mec.data.loaders import evaluation_loader
from mec.distributed import process_group
from mec.embedding.extract import BATCH, feature_function, pixel_format_of
from mec.engine.fsdp import full_encoder
from mec.files import StepCsv
from mec.models.baseline import START_FILE, read_start
from mec.models.encoder import Encoder
from mec.models.foreign_checkpoints import load_weights
from mec.models.io import save_weights
from mec.models.safe_pickle import read_weights
from mec.pretraining.health import FALLEN_RANK_FRACTION

logger = logging.getLogger("mec")

GUARD_FILE, BEST_FILE = "guard.csv", "best.safetensors"
NUM_CHECKS = 6
"""Largest number of checks of a run, after that of the start."""
MAX_IMAGES = 1000
NEIGHBORS = 10
TEMPERATURE = 0.07
"""Temperature of the votes of neighbors, as in the kNN protocol."""
CROP = 0.75
"""Side of the two crops of an image, at opposite corners, as a fraction of the side of the image."""
STANDARD_ERRORS = 2.0
"""Standard errors of a difference from which an encoder is worse than another."""
KEPT_ERRORS = 1.0
"""Standard errors below the best encoder within which the last one is kept: with few images, a loss of some points is
within two."""
SAME_NEIGHBORS = 0.98
"""Fraction of the nearest neighbors of the start, above which the encoder has hardly changed."""
COLUMNS = ("step", "score", "effective_rank", "kept_neighbors")


class StartGuard(lightning.Callback):
    """Checks a few times during the run whether the encoder is worse than the best so far, the start included.

    Up to 1,000 training images get a score each. With labels, 1 if the 10 nearest neighbors among the others classify
    the image correctly, else 0; without, the reciprocal rank of a crop of the image among crops of all, ordered by
    similarity to another crop of it, and 0 if the effective rank of the features has fallen to a fraction. An encoder
    is worse than another if its mean score is lower by two standard errors of the difference; the last one is kept
    unless it is lower than the best by one. The encoder is in evaluation mode meanwhile, without gradient.

    Args:
        dataset: the images of the run.
        patience: checks in a row with an encoder worse than the best one, after which the run stops; None: never.
        start: the encoder with which the run starts; it gets images of its own size.
    """

    def __init__(self, dataset: ImageDataset, patience: int | None, start: Encoder) -> None:
        sample = dataset.subset(evenly_spaced(dataset, MAX_IMAGES))
        self.patience, self.sample = patience, sample
        self.start: Encoder | None = start
        self.has_labels = sample.labels is not None and bool((np.asarray(sample.labels) >= 0).all())
        self.has_labels = self.has_labels and len(np.unique(np.asarray(sample.labels))) > 1
        self.images: Tensor | None = None
        self.labels = torch.empty(0, dtype=torch.int64)
        self.state: dict[str, Any] = {}
        self.last_check = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self.state:
            self._check(trainer, pl_module)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        step, total, minutes = trainer.global_step, pl_module.total_steps, pl_module.recipe.minutes
        if minutes is None or trainer.world_size > 1:  # processes must agree, and their clocks differ
            is_due = step >= self.state["step"] + -(-total // NUM_CHECKS)
        else:  # the first plans of the number of steps are estimates from a few
            is_due = time.monotonic() - self.last_check > 60 * minutes / NUM_CHECKS
        if step >= total or is_due:
            self._check(trainer, pl_module)

    @torch.no_grad()
    def _check(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        encoder, training = full_encoder(pl_module.network.encoder), pl_module.network.encoder.training
        with process_group() as group:
            state = self._measure(encoder, trainer) if group.rank == 0 else {}
            self.state = group.broadcast(state)
        self.start = None
        self.last_check = time.monotonic()
        pl_module.network.encoder.train(training)
        if self.patience is not None and self.state["worse"] >= self.patience:
            logger.warning(f"patience: stopped, because {self.patience} checks in a row were worse than the best one")
            trainer.should_stop = True

    def _measure(self, encoder: Encoder, trainer: lightning.Trainer) -> dict[str, Any]:
        """Return the state after a check of the encoder, or of the start at step 0. Runs in one process."""
        step, folder = trainer.global_step, Path(trainer.default_root_dir)
        if not self.state and self.start is not None:
            encoder = self.start
        features = self._features(encoder, trainer.strategy.root_device)
        scores = own_class(features, self.labels) if self.has_labels else reciprocal_rank(*features.chunk(2, dim=1))
        neighbors, rank = nearest_neighbors(features), effective_rank(features)
        start = self.state.get("start", {"scores": scores, "neighbors": neighbors, "rank": rank})
        if not self.has_labels and rank < FALLEN_RANK_FRACTION * start["rank"]:
            scores = torch.zeros_like(scores)  # crops find each other also in a few directions
        best = self.state.get("best", {"scores": scores, "step": step})
        is_worse = self.state.get("worse", 0) + 1 if worse(scores, best["scores"]) else 0
        if scores.mean() > best["scores"].mean():
            save_weights(encoder, folder / BEST_FILE)
            best = {"scores": scores, "step": step}
        row = {
            "step": step,
            "score": float(scores.mean()),
            "effective_rank": rank,
            "kept_neighbors": kept(neighbors, start["neighbors"]),
        }
        StepCsv(folder / GUARD_FILE, COLUMNS, step).append(row)
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics({f"guard/{name}": v for name, v in row.items() if name != "step"}, step)
        before = "" if step == 0 else f" (start: {self._format(start['scores'])})"
        logger.info(
            f"step {step:,}: {self._title} {self._format(scores)}{before}, effective rank {rank:.0f}, "
            f"{row['kept_neighbors']:.0%} of the start's neighbors kept"
        )
        if is_worse:
            logger.warning(f"step {step:,}: the encoder is worse than that of step {best['step']:,}")
        return {
            "step": step, "scores": scores, "start": start, "best": best, "worse": is_worse,
            "kept": row["kept_neighbors"],
        }  # fmt: skip

    @property
    def _title(self) -> str:
        return "leave-one-out kNN" if self.has_labels else "mean reciprocal rank of the other crop"

    def _format(self, scores: Tensor) -> str:
        return f"{100 * scores.mean():.1f} %" if self.has_labels else f"{scores.mean():.3f}"

    def _features(self, encoder: Encoder, device: torch.device) -> Tensor:
        """Return features (n, d) of whole images; without labels those (n, 2 d) of two crops of each image."""
        if self.images is None or self.images.shape[-1] != encoder.image_size:
            loader = evaluation_loader(self.sample, pixel_format_of(encoder), encoder.image_size, BATCH, workers=0)
            batches = list(loader)
            self.images = torch.cat([batch.images for batch in batches])
            if unreadable := len(self.sample) - len(self.images):
                text = f"checks of the encoder: {unreadable} of {len(self.sample):,} images cannot be read"
                logger.warning(text, extra={"once": True})
            if self.has_labels:
                labels = np.asarray(self.sample.labels)[np.concatenate([batch.indices for batch in batches])]
                self.labels = torch.from_numpy(labels)
        features = feature_function(encoder, device)
        blocks = torch.split(self.images, BATCH)
        if self.has_labels:
            return torch.cat([features(block).cpu() for block in blocks])
        crops = [[features(crop).cpu() for crop in two_crops(block)] for block in blocks]
        return torch.cat([torch.cat(pair, dim=1) for pair in crops])

    def finish(self, encoder: Encoder, folder: Path) -> Encoder:
        """Return the encoder of the run: that at its end, or the best one before, with a warning, if that is better."""
        best, scores, start = self.state["best"], self.state["scores"], self.state["start"]["scores"]
        values = f"{self._title} {self._format(scores)} of {len(scores):,} images (start: {self._format(start)})"
        if not worse(scores, best["scores"], KEPT_ERRORS):
            change = "better than" if worse(start, scores) else "as good as"
            logger.info(f"the encoder is {change} the one it started from: {values}")
            if (same := self.state.get("kept", 0.0)) > SAME_NEIGHBORS:
                logger.warning(
                    f"the encoder has hardly changed in {self.state['step']:,} steps: {same:.0%} of the nearest "
                    "neighbors of images are the same; train for longer"
                )
            return encoder
        if best["step"]:
            kept_encoder = Encoder(encoder.spec, encoder.backbone)
            load_weights(kept_encoder, dict(read_weights(folder / BEST_FILE)), str(folder / BEST_FILE))
        else:
            kept_encoder = read_start(encoder, folder / START_FILE)
        origin = f"of step {best['step']:,}" if best["step"] else "at the start"
        logger.warning(
            f"the last encoder is worse than that {origin} ({self._format(best['scores'])}), which is kept: {values}. "
            "Use a smaller optimizer.backbone_lr, fewer epochs, or --freeze"
        )
        return kept_encoder


def two_crops(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return two overlapping crops of each image (n, c, s, s), uint8 or float in [0, 1], at opposite corners, resized
    to s."""
    size = images.shape[-1]
    side = round(CROP * size)
    images = images if images.is_floating_point() else images.float() / 255
    first, second = images[..., :side, :side], images[..., size - side :, size - side :]
    return tuple(F.interpolate(c, (size, size), mode="bilinear", align_corners=False) for c in (first, second))  # type: ignore[return-value]


def own_class(features: Tensor, labels: Tensor) -> Tensor:
    """Return for features (n, d) and labels (n,) whether the nearest others, by cosine, vote for the own class: (n,),
    1 or 0. The votes are weighted as in the kNN protocol."""
    unit = F.normalize(features, dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    values, neighbors = similarity.topk(min(NEIGHBORS, len(features) - 1), dim=1)
    votes = torch.zeros(len(features), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[neighbors], (values / TEMPERATURE).exp())
    return (votes.argmax(dim=1) == labels).double()


def reciprocal_rank(first: Tensor, second: Tensor) -> Tensor:
    """Return for features (n, d) of two crops of each image 1 / the rank of the own second crop among all second crops,
    by cosine of centered features with the first crop: (n,). Equal cosines rank before it."""
    center = torch.cat([first, second]).mean(dim=0)
    similarity = F.normalize(first - center, dim=1) @ F.normalize(second - center, dim=1).T
    return 1 / (similarity >= similarity.diagonal()[:, None]).sum(dim=1).double()


def nearest_neighbors(features: Tensor) -> Tensor:
    """Return the nearest others of each feature (n, d), by cosine of centered features: (n, 10 or fewer)."""
    unit = F.normalize(features - features.mean(dim=0), dim=1)
    similarity = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return similarity.topk(min(NEIGHBORS, len(features) - 1), dim=1).indices


def kept(neighbors: Tensor, start: Tensor) -> float:
    """Return the fraction of the nearest neighbors (n, k) that are among those of the start, (n, k)."""
    return float((neighbors[:, :, None] == start[:, None, :]).any(dim=2).double().mean())


def worse(scores: Tensor, others: Tensor, errors: float = STANDARD_ERRORS) -> bool:
    """Return whether the mean of ``scores`` (n,) is below that of ``others``, of the same images, by this number of
    standard errors of the difference."""
    difference = others - scores
    error = float(difference.std()) / math.sqrt(len(difference))
    return bool(difference.mean() > errors * error)
