"""Probes beside pretraining: how far the features have come, every few epochs."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from mec.data.dataset import ImageDataset
from mec.data.datasets import open_dataset
from mec.data.datasets.splits import random_split
from mec.data.datasets.webdataset import is_shards
from mec.distributed import broadcast_object, get_rank, process_group
from mec.errors import InputError
from mec.evaluate.accuracy import accuracies
from mec.evaluate.features import Features, extract, with_labels
from mec.evaluate.knn import knn_ranking
from mec.evaluate.linear import probe
from mec.evaluate.task import Source, check_classes, in_memory, pixel_format_of
from mec.files import rows_before_step
from mec.results import Stopwatch

PROBES = "probes.csv"
TIMES = 10
"""Probes in a run, when nobody says how often."""
MOST = {"train": 10_000, "test": 2_500}
"""Images probed: enough to see a point of difference, few enough for any run."""
NEIGHBORS = 20


class OnlineProbe(lightning.Callback):
    """kNN (k = 20) and the fast linear probe on the frozen encoder every few epochs, and after the last.

    The encoder is put into evaluation mode for the time, without gradient, and no generator of random numbers moves
    on: the run ends with the same weights as without. Figures go to ``probes.csv`` in the run folder, to TensorBoard
    and to the console. Features are extracted by all processes of the run, each those of its share of the images.

    Args:
        data: a labeled source; at most 10,000 of its train and 2,500 of its test images are used.
        every: epochs between two probes; None probes ten times in the run.
        workers: loader processes; None is one per core.
        console: where a line of each probe goes; None is standard error.

    Raises:
        InputError: the source has no labels, one class only, or a class without train or test images.
    """

    def __init__(
        self, data: Source, every: int | None = None, workers: int | None = None, console: Console | None = None
    ) -> None:
        if every is not None and every < 1:
            raise InputError(f"every: expected at least 1 epoch, got {every}")
        self.every, self.workers = every, workers
        self.console = console or Console(stderr=True)
        parts: list[ImageDataset] = [open_dataset(data, "train"), open_dataset(data, "test")]
        check_classes(parts[0], parts[1], data)
        self.classes = len(parts[0].classes)
        self.parts = [part.subset(_some(part, MOST[name])) for part, name in zip(parts, MOST, strict=True)]
        self.sizes = [len(part) for part in self.parts]
        self.settled = self.ended = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            _cut(_file(trainer), trainer.global_step)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        epochs = trainer.max_epochs or 1
        every, done = self.every or max(1, epochs // TIMES), trainer.current_epoch + 1
        if not self.ended and (done % every == 0 or done == epochs):
            try:
                self._probe(trainer, pl_module, done)
            except InputError as error:  # of a probe's images: no reason to lose a run
                self.ended = True
                self._say(trainer, f"no more online probes: {error}")

    def _say(self, trainer: lightning.Trainer, line: str) -> None:
        if trainer.is_global_zero:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _probe(self, trainer: lightning.Trainer, pl_module: Any, epoch: int) -> None:
        clock = Stopwatch()
        figures = self.measure(pl_module.whole_encoder(), pl_module.device)
        seconds = clock()
        if trainer.is_global_zero:
            _append(_file(trainer), {"epoch": epoch, "step": trainer.global_step, **figures, "seconds": seconds})
        for logger in trainer.loggers:
            logger.log_metrics({f"probe/{name}": value for name, value in figures.items()}, trainer.global_step)
        sizes = " and ".join(f"{size:,} {name}" for size, name in zip(self.sizes, MOST, strict=True))
        said = "  ".join(f"{name} {100 * value:.1f} %" for name, value in figures.items())
        line = f"epoch {epoch}/{trainer.max_epochs}  online probe: {said}  ({sizes} images, {seconds:.0f} s)"
        self._say(trainer, line)

    def measure(self, encoder: Any, device: torch.device) -> dict[str, float]:
        """Test accuracies of the encoder as it is, as shares; it is left as it was.

        All processes of a run come here, each with the whole encoder, and get the same.
        """
        reading, training = pixel_format_of(encoder), encoder.training
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), process_group():
                if not self.settled:
                    self.parts, self.settled = [in_memory(part, reading, divided=True) for part in self.parts], True
                (train, of_train), (test, of_test) = (
                    with_labels(part, *extract(part, encoder, self.workers, "", device)) for part in self.parts
                )
                f = Features("encoder", train, of_train, test, of_test)
                return broadcast_object(self._figures(f) if get_rank() == 0 else {})
        finally:
            encoder.train(training)

    def _figures(self, f: Features) -> dict[str, float]:
        k = min(NEIGHBORS, len(f.train))
        ranked = knn_ranking(f.train, f.train_labels, f.test, [k], self.classes)[k]
        return {
            "kNN": accuracies(ranked, f.test_labels, self.classes)["top-1"],
            "linear": probe(f, self.classes)["top-1"],
        }


def online_probe(data: Source, every: int | None, workers: int | None = None) -> OnlineProbe | None:
    """The probe of a run on ``data``: None where ``every`` is 0; where it is None, also where ``data`` has no labels,
    or is of shards, which would all have to be read for them."""
    if every == 0 or (every is None and is_shards(os.fspath(data))):
        return None
    try:
        return OnlineProbe(data, every, workers)
    except InputError:
        if every is not None:
            raise
        return None


def _some(dataset: ImageDataset, most: int) -> NDArray[np.int64]:
    if len(dataset) <= most:
        return np.arange(len(dataset))
    return random_split(dataset, most / len(dataset))[1]


def _file(trainer: lightning.Trainer) -> Path:
    return Path(trainer.default_root_dir) / PROBES


def _cut(path: Path, step: int) -> None:
    """A run that is resumed measures again what came after its checkpoint."""
    if not path.exists():
        return
    kept = rows_before_step(path, step + 1)
    path.unlink()
    for row in kept:
        _append(path, row)


def _append(path: Path, row: dict[str, Any]) -> None:
    begins = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if begins:
            writer.writeheader()
        writer.writerow(row)
