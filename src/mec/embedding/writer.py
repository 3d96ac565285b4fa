"""The embeddings of a source on their way to one file, in parts: what was interrupted goes on where it was."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from mec.data.corrupt import CorruptImage
from mec.data.loaders import evaluation_loader
from mec.data.transforms.crop import Batch
from mec.distributed import all_gather_objects, get_rank, shard_range, world_size
from mec.embedding.extract import feature_function
from mec.embedding.images import BATCH, log_corrupt, new_corrupt_log, pixel_format_of
from mec.embedding.neighbors import best_device
from mec.embedding.table import BLOCK, Whole, writing
from mec.engine.progress import ProgressBar, log
from mec.errors import InputError
from mec.models.encoder import Encoder

PART, PART_SECONDS = 8192, 300
"""Images, or seconds, after which what was embedded is written: as much is lost by an interruption."""


@dataclass
class Part:
    """Images that were tried, of which some could not be read: the others have an embedding."""

    tried: list[NDArray[np.int64]] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def full(self) -> bool:
        return sum(map(len, self.tried)) >= PART or time.monotonic() - self.begun > PART_SECONDS

    def write(self, path: Path) -> None:
        tensors = {"tried": np.concatenate(self.tried), "numbers": np.concatenate(self.numbers)}
        with writing(path) as temporary:
            temporary.write_bytes(save(tensors | {"embeddings": np.concatenate(self.embeddings)}))


class Making:
    """The embeddings of a source, in parts that several processes may write into one folder.

    ``part`` and ``place`` (n,) say where that of each image is; -1: nowhere, and the place of one that was tried and
    could not be read. InputError: a part is damaged, or the processes see different folders.
    """

    def __init__(self, whole: Whole, encoder: Encoder, folder: Path, workers: int | None) -> None:
        self.whole, self.encoder, self.folder, self.workers = whole, encoder, folder, workers
        self.skipped = new_corrupt_log(len(whole))
        self.part, self.place = (np.full(len(whole), -1, dtype=np.int32) for _ in range(2))
        self.files: list[Path] = []
        for file in sorted(folder.glob("[0-9]*.safetensors")):
            self._add(file)
        self.done = int((self.part >= 0).sum())
        # the parts of a call come after those of calls before: what was tried again counts as it was found last
        self.serial = 1 + max((int(file.name[:6]) for file in self.files), default=-1)
        self.written: list[Path] = []
        if len(set(all_gather_objects((folder.exists(), *(file.name for file in self.files))))) > 1:
            raise self._not_seen()

    def _not_seen(self) -> InputError:
        return InputError(f"out: {self.folder} is not the same for all processes; take a disk that all of them see")

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, "np") as part:
                tried, numbers = part.get_tensor("tried"), part.get_tensor("numbers")
        except (SafetensorError, OSError) as error:
            raise InputError(f"out: {file} is damaged, remove it ({error})") from error
        self.part[tried], self.place[tried] = len(self.files), -1
        self.place[numbers] = np.arange(len(numbers))
        self.files.append(file)

    def run(self) -> None:
        """Embed what is missing, and try again what could not be read: each process its share. The first then knows
        the parts of all, and says or refuses what was lost."""
        if self.done:
            log(f"going on: {self.done:,} of {len(self.whole):,} images are there")
        self._check_room()
        features = feature_function(self.encoder, best_device())
        self.skipped.write_to(self.folder / (f"skipped-{get_rank()}.csv" if get_rank() else "skipped.csv"))
        missing, lost = self.part < 0, (self.part >= 0) & (self.place < 0)
        with ProgressBar("embeddings", len(self.whole), self.done) as shown:
            for todo in (missing, lost):
                part = Part()
                try:
                    for tried, numbers, batch in self._batches(todo):
                        self.skipped.add(batch.corrupt, len(tried))
                        part.embeddings.append(self._embedded(features, batch, numbers))
                        part.numbers.append(numbers)
                        part.tried.append(tried)
                        shown.advance(len(tried) * world_size() if todo is missing else 0)
                        if part.full():
                            part = self._written(part)
                finally:  # on Ctrl-C too
                    self._written(part)
        self._join()

    def _join(self) -> None:
        found = all_gather_objects(([file.name for file in self.written], self.skipped.reasons))
        if get_rank() > 0:
            return
        for files, reasons in found[1:]:
            self.skipped.reasons |= reasons
            for file in files:
                if not (self.folder / file).exists():
                    raise self._not_seen()
                self._add(self.folder / file)
        if (self.part < 0).any():
            raise InputError(f"out: {self.folder} lacks parts; is another process at it? Call again to go on")
        lost = new_corrupt_log(len(self.whole))
        lost.add([CorruptImage(*row) for row in self.lost()], len(self.whole))
        log_corrupt(lost)

    def lost(self) -> Iterator[tuple[str, str]]:
        """Title and reason of each image that could not be read."""
        for number in np.flatnonzero(self.place < 0).tolist():
            title = str(self.whole.row(number)[0])
            yield title, self.skipped.reasons.get(title, "")

    def _check_room(self) -> None:
        # twice: in parts, and in the file before they go
        need = 4 * self.encoder.num_features * (2 * len(self.whole) - self.done)
        free = shutil.disk_usage(self.folder).free
        if free < need:
            gib = f"{need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB"
            raise InputError(f"out: the embeddings and their parts need {gib} are free in {self.folder.parent}")

    def _written(self, part: Part) -> Part:
        if part.tried:
            # not the name of what a process of an earlier call, not yet ended, may write
            file = self.folder / f"{self.serial:06}-{get_rank()}-{os.getpid()}.safetensors"
            part.write(file)
            self._add(file)
            self.written.append(file)
            self.serial += 1
        return Part()

    def _batches(self, todo: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Batch]]:
        """Numbers of the images of a batch and of those that could be read, and the batch.

        Batches are of the same images after an interruption, and for any number of processes, for parts and shares
        are of whole ones: so are the last bits.
        """
        start, reading = 0, pixel_format_of(self.encoder)
        for dataset in self.whole.splits.values():
            mine = np.flatnonzero(todo[start : start + len(dataset)])
            mine = mine[shard_range(len(mine), BATCH)]
            if len(mine):
                some = dataset if len(mine) == len(dataset) else dataset.subset(mine)
                loader = evaluation_loader(some, reading, self.encoder.image_size, BATCH, self.workers)
                keys: Any = loader.sampler
                for asked, batch in zip(keys, loader, strict=True):
                    yield start + mine[asked.start : asked.stop], start + mine[batch.indices], batch
            start += len(dataset)

    def _embedded(
        self, features: Callable[[Tensor], Tensor], batch: Batch, numbers: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not len(numbers):
            return np.empty((0, self.encoder.num_features), dtype=np.float32)
        found: NDArray[np.float32] = features(batch.images).cpu().numpy()
        broken = ~np.isfinite(found).all(axis=1)
        if broken.any():
            title = self.whole.row(int(numbers[broken.argmax()]))[0]
            raise InputError(f"encoder: the embedding of {title} has values that are not finite numbers")
        return found

    def blocks(self, numbers: NDArray[np.int64]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """The embeddings (m, d) of images that have one, a block at a time."""
        for start in range(0, len(numbers), BLOCK):
            some = numbers[start : start + BLOCK]
            found = np.empty((len(some), self.encoder.num_features), dtype=np.float32)
            parts, places = self.part[some], self.place[some]
            # what follows each other in a part is read at once
            bounds = np.flatnonzero((np.diff(parts) != 0) | (np.diff(places) != 1)) + 1
            for rows in np.split(np.arange(len(some)), bounds):
                with safe_open(self.files[parts[rows[0]]], "np") as part:
                    found[rows] = part.get_slice("embeddings")[places[rows[0]] : places[rows[-1]] + 1]
            yield some.tolist(), found
