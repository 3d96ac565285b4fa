"""Write the embeddings of a dataset in parts (.safetensors files), so that an interrupted run resumes."""

from __future__ import annotations

import logging
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
from mec.distributed import ProcessGroup
from mec.embedding.extract import feature_function
from mec.embedding.images import BATCH, log_corrupt, new_corrupt_log, pixel_format_of
from mec.embedding.neighbors import best_device
from mec.embedding.table import BLOCK_ROWS, AllSplits, write_output
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

PART_IMAGES, PART_SECONDS = 8192, 300
"""Images or seconds after which a part is written. An interruption loses at most one part."""


@dataclass
class Part:
    """A part in memory, later one .safetensors file: embeddings of the readable ones among the attempted images.

    Attributes:
        attempted: indices of all images, the corrupt ones included.
        indices: indices of the readable images.
        embeddings: their embeddings.
        started: start time, to write a part after PART_SECONDS.
    """

    attempted: list[NDArray[np.int64]] = field(default_factory=list)
    indices: list[NDArray[np.int64]] = field(default_factory=list)
    embeddings: list[NDArray[np.float32]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def is_full(self) -> bool:
        return sum(map(len, self.attempted)) >= PART_IMAGES or time.monotonic() - self.started > PART_SECONDS

    def write(self, path: Path) -> None:
        tensors = {"attempted": np.concatenate(self.attempted), "indices": np.concatenate(self.indices)}
        with write_output(path) as temporary:
            temporary.write_bytes(save(tensors | {"embeddings": np.concatenate(self.embeddings)}))


class EmbeddingWriter:
    """Resumable writer of the embeddings of all images of a dataset.

    Several processes write parts into one folder.

    The embedding of image i is row ``part_row[i]`` of file ``part[i]``. ``part`` is -1 for an image that is not yet
    embedded; ``part_row`` is -1 for such an image and for a corrupt one.

    Raises:
        InputError: a part is damaged, or the processes see different folders.
    """

    def __init__(
        self, images: AllSplits, encoder: Encoder, folder: Path, workers: int | None, group: ProcessGroup
    ) -> None:
        self.images, self.encoder, self.folder, self.workers = images, encoder, folder, workers
        self.group = group
        self.corrupt_log = new_corrupt_log(len(images), group)
        self.part, self.part_row = (np.full(len(images), -1, dtype=np.int32) for _ in range(2))
        self.files: list[Path] = []
        for file in sorted(folder.glob("[0-9]*.safetensors")):
            self._add_file(file)
        self.num_done = int((self.part >= 0).sum())
        # parts of this call are numbered after those of earlier calls: the last attempt at an image counts
        self.next_number = 1 + max((int(file.name[:6]) for file in self.files), default=-1)
        self.own_files: list[Path] = []
        if len(set(self.group.all_gather((folder.exists(), *(file.name for file in self.files))))) > 1:
            raise self._folder_error()

    def _folder_error(self) -> InputError:
        return InputError(f"out: {self.folder} differs between the processes; expected a folder on a shared disk")

    def _add_file(self, file: Path) -> None:
        try:
            with safe_open(file, "np") as part:
                attempted, indices = part.get_tensor("attempted"), part.get_tensor("indices")
        except (SafetensorError, OSError) as error:
            raise InputError(f"out: {file} is damaged, remove it ({error})") from error
        self.part[attempted], self.part_row[attempted] = len(self.files), -1
        self.part_row[indices] = np.arange(len(indices))
        self.files.append(file)

    def run(self) -> None:
        """Embed the missing images and retry the corrupt ones, each process its slice of both.

        Rank 0 then merges the parts of all processes and logs the corrupt images.
        """
        if self.num_done:
            logger.info(f"resuming: {self.num_done:,} of {len(self.images):,} images are embedded")
        self._check_disk_space()
        features = feature_function(self.encoder, best_device())
        self.corrupt_log.write_to(
            self.folder / (f"corrupt-{self.group.rank}.csv" if self.group.rank else "corrupt.csv")
        )
        missing, corrupt = self.part < 0, (self.part >= 0) & (self.part_row < 0)
        with ProgressBar("embeddings", len(self.images), self.num_done) as progress:
            for mask in (missing, corrupt):
                part = Part()
                try:
                    for attempted, indices, batch in self._batches(mask):
                        self.corrupt_log.add(batch.corrupt, len(attempted))
                        part.embeddings.append(self._embed(features, batch, indices))
                        part.indices.append(indices)
                        part.attempted.append(attempted)
                        # assumes that the other processes are about as far; retries are not counted twice
                        progress.advance(len(attempted) * self.group.world_size if mask is missing else 0)
                        if part.is_full():
                            part = self._write(part)
                finally:  # on Ctrl-C too
                    self._write(part)
        self._merge_parts()

    def _merge_parts(self) -> None:
        results = self.group.all_gather(([file.name for file in self.own_files], self.corrupt_log.reasons))
        if self.group.rank > 0:
            return
        for files, reasons in results[1:]:
            self.corrupt_log.reasons |= reasons
            for file in files:
                if not (self.folder / file).exists():
                    raise self._folder_error()
                self._add_file(self.folder / file)
        if (self.part < 0).any():
            raise InputError(
                f"out: {self.folder} is missing parts; was another process writing to it? Run the command again"
            )
        # a new log: those of the processes include images that a retry could read
        corrupt_log = new_corrupt_log(len(self.images), self.group)
        corrupt_log.add([CorruptImage(*row) for row in self.corrupt_images()], len(self.images))
        log_corrupt(corrupt_log)

    def corrupt_images(self) -> Iterator[tuple[str, str]]:
        """Yield title and reason of each corrupt image."""
        for index in np.flatnonzero(self.part_row < 0).tolist():
            title = str(self.images.row(index)[0])
            yield title, self.corrupt_log.reasons.get(title, "")

    def _check_disk_space(self) -> None:
        # for a moment the embeddings exist twice: in the parts and in the final file
        need = 4 * self.encoder.num_features * (2 * len(self.images) - self.num_done)
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise InputError(
                f"out: expected {need / 2**30:.1f} GiB of free disk for the embeddings and their parts, got "
                f"{free / 2**30:.1f} GiB in {self.folder.parent}"
            )

    def _write(self, part: Part) -> Part:
        """Write a part, unless it is empty, and return a new one."""
        if part.attempted:
            # the process id keeps names apart from those of an earlier call that is still writing
            file = self.folder / f"{self.next_number:06}-{self.group.rank}-{os.getpid()}.safetensors"
            part.write(file)
            self._add_file(file)
            self.own_files.append(file)
            self.next_number += 1
        return Part()

    def _batches(self, mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Batch]]:
        """Yield the indices of the images of a batch, those of its readable images, and the batch.

        Parts and the slices of processes consist of whole batches, so that batches hold the same images after an
        interruption and for any number of processes: embeddings are bitwise identical, except for corrupt images that
        could be read on retry, whose batches differ.
        """
        start, pixel_format = 0, pixel_format_of(self.encoder)
        for dataset in self.images.splits.values():
            own = np.flatnonzero(mask[start : start + len(dataset)])
            own = own[self.group.slice(len(own), BATCH)]
            if len(own):
                subset = dataset if len(own) == len(dataset) else dataset.subset(own)
                loader = evaluation_loader(subset, pixel_format, self.encoder.image_size, BATCH, self.workers)
                keys: Any = loader.sampler
                for rows, batch in zip(keys, loader, strict=True):
                    yield start + own[rows.start : rows.stop], start + own[batch.indices], batch
            start += len(dataset)

    def _embed(
        self, features: Callable[[Tensor], Tensor], batch: Batch, indices: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        if not len(indices):
            return np.empty((0, self.encoder.num_features), dtype=np.float32)
        embeddings: NDArray[np.float32] = features(batch.images).cpu().numpy()
        non_finite = ~np.isfinite(embeddings).all(axis=1)
        if non_finite.any():
            title = self.images.row(int(indices[non_finite.argmax()]))[0]
            raise InputError(f"encoder: expected finite embeddings, got NaN or infinity for {title}")
        return embeddings

    def blocks(self, indices: NDArray[np.int64]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield image indices and their embeddings (m, d) in blocks, read from the parts."""
        for start in range(0, len(indices), BLOCK_ROWS):
            block = indices[start : start + BLOCK_ROWS]
            embeddings = np.empty((len(block), self.encoder.num_features), dtype=np.float32)
            parts, part_rows = self.part[block], self.part_row[block]
            # read consecutive rows of a part at once
            bounds = np.flatnonzero((np.diff(parts) != 0) | (np.diff(part_rows) != 1)) + 1
            for rows in np.split(np.arange(len(block)), bounds):
                with safe_open(self.files[parts[rows[0]]], "np") as part:
                    embeddings[rows] = part.get_slice("embeddings")[part_rows[rows[0]] : part_rows[rows[-1]] + 1]
            yield block.tolist(), embeddings
