"""Evaluate the features every few epochs during pretraining, with kNN and a linear probe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from mec.data.dataset import DataLike, ImageDataset, data_name, is_path
from mec.data.datasets import open_splits
from mec.data.datasets.webdataset import is_shard_source
from mec.data.splits import random_split
from mec.distributed import process_group
from mec.embedding.extract import extract, in_memory, pixel_format_of, with_labels
from mec.engine.fsdp import full_encoder
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import fast_probe_accuracies
from mec.evaluate.task import Features, accuracies, check_classes
from mec.files import StepCsv
from mec.results import Stopwatch

logger = logging.getLogger("mec")

PROBES_FILE = "probes.csv"
COLUMNS = ("epoch", "step", "knn_top1", "linear_top1", "seconds")
DEFAULT_PROBES = 10
"""Number of probes in a run if ``every_n_epochs`` is None."""
MAX_IMAGES = {"train": 10_000, "test": 2_500}
"""Images of each split: enough to see a difference of a percentage point, few enough for any run."""
NEIGHBORS = 20


class OnlineProbe(lightning.Callback):
    """kNN (k = 20) and the fast linear probe on the frozen encoder before the first step, every few epochs, and after
    the last.

    The encoder is in evaluation mode meanwhile, without gradient, and the states of the random number generators are
    restored: the run ends with the same weights as without probes. Accuracies are written to ``probes.csv`` in the run
    folder, to the trainer's loggers and to the log. Features are extracted by all processes of the run, each of
    its slice of the images.

    Args:
        data: a labeled dataset; at most 10,000 of its train and 2,500 of its test images are used.
        every_n_epochs: epochs between two probes; None probes ten times in the run, and before it.
        workers: loader processes; None is one per core.

    Raises:
        InputError: the dataset has no labels, a single class, or a class without train or test images.
    """

    def __init__(self, data: DataLike, every_n_epochs: int | None = None, workers: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise InputError(f"every_n_epochs: expected at least 1, got {every_n_epochs}")
        self.every_n_epochs, self.workers = every_n_epochs, workers
        splits = open_splits(data)
        train, test = splits.select("train"), splits.select("test")
        check_classes(train, test, data)
        self.num_classes = len(train.classes)
        self.sampled = [_sample(train, MAX_IMAGES["train"]), _sample(test, MAX_IMAGES["test"])]
        self.datasets = list(self.sampled)  # later this process's slices, in memory
        self.sizes = [len(dataset) for dataset in self.datasets]
        self.loaded = self.failed = False

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        epochs = trainer.max_epochs or 1
        interval, epoch = self.every_n_epochs or max(1, epochs // DEFAULT_PROBES), trainer.current_epoch + 1
        if epoch % interval == 0 or epoch == epochs:
            self._try_to_probe(trainer, pl_module, epoch)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0:
            self._try_to_probe(trainer, pl_module, epoch=0)

    def _try_to_probe(self, trainer: lightning.Trainer, pl_module: Any, epoch: int) -> None:
        if not self.failed:
            try:
                self._probe(trainer, pl_module, epoch)
            except InputError as error:  # too many corrupt images: they end the probes, not the run
                self.failed = True
                logger.warning(f"no more online probes: {error}")

    def _probe(self, trainer: lightning.Trainer, pl_module: Any, epoch: int) -> None:
        clock = Stopwatch()
        with ProgressBar("online probe"):
            top1 = self.evaluate(full_encoder(pl_module.network.encoder), pl_module.device)
        seconds = clock()
        if trainer.is_global_zero:
            path, step = Path(trainer.default_root_dir) / PROBES_FILE, trainer.global_step
            StepCsv(path, COLUMNS, step).append({"epoch": epoch, "step": step, **top1, "seconds": seconds})
        for metrics_logger in trainer.loggers:
            metrics_logger.log_metrics({f"probe/{name}": value for name, value in top1.items()}, trainer.global_step)
        sizes = " and ".join(f"{size:,} {split}" for size, split in zip(self.sizes, MAX_IMAGES, strict=True))
        logger.info(
            f"epoch {epoch}/{trainer.max_epochs}  online probe: kNN {100 * top1['knn_top1']:.1f} %  "
            f"linear {100 * top1['linear_top1']:.1f} %  ({sizes} images, {seconds:.0f} s)",
        )

    def evaluate(self, encoder: Any, device: torch.device) -> dict[str, float]:
        """Return top-1 test accuracies in [0, 1]. All processes must call this with the full encoder, and get the
        same result."""
        pixel_format, training, label = pixel_format_of(encoder), encoder.training, "online probe, features"
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), process_group() as group:
                if not self.loaded:
                    self.datasets = [in_memory(dataset, pixel_format, group) for dataset in self.datasets]
                    self.loaded = True
                (train, train_labels), (test, test_labels) = (
                    with_labels(dataset, *extract(dataset, encoder, self.workers, label, device, group), group)
                    for dataset in self.datasets
                )
                features = Features("encoder", train, train_labels, test, test_labels)
                return group.broadcast(self._top1(features) if group.rank == 0 else {})
        finally:
            encoder.train(training)

    def _top1(self, features: Features) -> dict[str, float]:
        k = min(NEIGHBORS, len(features.train))
        ranked = knn_ranking(features.train, features.train_labels, features.test, [k], self.num_classes)[k]
        return {
            "knn_top1": accuracies(ranked, features.test_labels, self.num_classes)["top-1"],
            "linear_top1": fast_probe_accuracies(features, self.num_classes)["top-1"],
        }


def create_online_probe(data: DataLike, every_n_epochs: int | None, workers: int | None = None) -> OnlineProbe | None:
    """Return the probe of a run on ``data``, or None if ``every_n_epochs`` is 0; if that is None, also for data without
    labels, or in shards, whose labels cannot be read without reading all of them."""
    if every_n_epochs == 0 or (every_n_epochs is None and is_path(data) and is_shard_source(data_name(data))):
        return None
    splits = open_splits(data)
    try:
        return OnlineProbe(splits, every_n_epochs, workers)
    except InputError as error:
        if every_n_epochs is not None:
            raise
        labels = splits.train.labels
        has_labels = labels is not None and bool((np.asarray(labels) >= 0).any())
        logger.info(f"no online probes: {error if has_labels else 'the images have no labels'}")
        return None


def _sample(dataset: ImageDataset, max_images: int) -> ImageDataset:
    if len(dataset) <= max_images:
        return dataset
    return dataset.subset(random_split(dataset, max_images / len(dataset))[1])
