"""Embed all images of a dataset in parts, one .parquet file per batch, and join them into one file."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mec.data.corrupt import COLUMNS, CorruptImage
from mec.data.dataset import DataLike, ImageDataset, label_of, read_image
from mec.data.datasets import open_splits
from mec.data.loaders import evaluation_loader
from mec.data.pixels import CorruptImageError
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.embedding.extract import BATCH, best_device, feature_function, log_corrupt, new_corrupt_log, pixel_format_of
from mec.embedding.thumbnails import BYTES, PIXELS, thumbnails
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.files import atomic_write
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

BLOCK_PARTS = 32  # joined at a time: 8,192 rows, a row group of the .parquet


@dataclass(frozen=True)
class AllSplits:
    """All images of a dataset under one index, split after split. A dataset without splits has the single split ""."""

    splits: dict[str, ImageDataset]

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def columns(self) -> list[str]:
        return ["path", "label", "split"] if len(self.splits) > 1 else ["path", "label"]

    def locate(self, index: int) -> tuple[str, ImageDataset, int]:
        """Return the split of an image, the dataset of the split, and the index of the image in it."""
        for split, dataset in self.splits.items():
            if index < len(dataset):
                return split, dataset, index
            index -= len(dataset)
        raise IndexError(index)

    def row(self, index: int) -> list[str | None]:
        """Return path, label and, with several splits, the split of an image."""
        split, dataset, index = self.locate(index)
        label = label_of(dataset, index)
        return [dataset.title(index), label, split][: len(self.columns)]


def open_all_splits(data: DataLike, subsample: int | None, frame_stride: int | None) -> AllSplits:
    opened = open_splits(data, frame_stride=frame_stride)
    splits = opened.all
    if subsample is not None:
        splits = {name: dataset.subset(np.arange(0, len(dataset), subsample)) for name, dataset in splits.items()}
    return AllSplits(splits if len(splits) > 1 else {"": splits["train"]})


class Part(NamedTuple):
    """A batch: the images ``start`` ... ``stop`` - 1 of a split, which begins at index ``first`` of all images."""

    file: Path
    split: str
    first: int
    start: int
    stop: int

    def corrupt(self) -> dict[int, str]:
        """Return index and reason of each corrupt image of a written part."""
        return {int(i): reason for i, reason in json.loads(pq.read_schema(self.file).metadata[b"corrupt"]).items()}


class EmbeddingParts:
    """Batches of consecutive images, bit-identical for any number of processes and after an interruption."""

    def __init__(self, images: AllSplits, encoder: Encoder, folder: Path) -> None:
        self.images, self.encoder, self.folder = images, encoder, folder
        vector = pa.list_(pa.float32(), encoder.num_features)
        self.schema = pa.schema([*((name, pa.string()) for name in images.columns), ("embedding", vector)])
        self.part_schema = self.schema.append(pa.field("thumbnail", pa.binary(BYTES)))
        self.parts: list[Part] = []
        first = 0
        for split, dataset in images.splits.items():
            for start in range(0, len(dataset), BATCH):
                file = folder / f"{len(self.parts):06}.parquet"
                self.parts.append(Part(file, split, first, start, min(start + BATCH, len(dataset))))
            first += len(dataset)

    def write(self, workers: int | None, group: ProcessGroup) -> None:
        """Embed the images of the missing parts, of which each process writes its slice."""
        corrupt_log = new_corrupt_log(len(self.images), group)
        log_file = self.folder / f"corrupt-{group.rank}.csv"
        log_file.unlink(missing_ok=True)
        corrupt_log.write_to(log_file)
        if group.rank == 0:
            corrupt_log.add(*self._retry_corrupt())
        group.barrier()
        written = {path.name for path in self.folder.glob("[0-9i]*")}  # the parts and inputs.json
        if len(set(group.all_gather(frozenset(written)))) > 1:
            raise InputError(f"out: {self.folder} differs between the processes; expected a folder on a shared disk")
        missing = [part for part in self.parts if part.file.name not in written]
        done = len(self.images) - sum(part.stop - part.start for part in missing)
        if done:
            logger.info(f"resuming: {done:,} of {len(self.images):,} images are embedded")
        self._check_disk_space(done)
        features = feature_function(self.encoder, best_device())
        with ProgressBar("embeddings", len(self.images), done) as progress:
            for split, dataset in self.images.splits.items():
                own = [part for part in missing if part.split == split]
                own = own[group.slice(len(own), 1)]
                if not own:
                    continue
                indices = np.concatenate([np.arange(part.start, part.stop) for part in own])
                subset = dataset if len(indices) == len(dataset) else dataset.subset(indices)
                loader = evaluation_loader(
                    subset, pixel_format_of(self.encoder), self.encoder.image_size, BATCH, workers
                )
                batches: Any = loader.sampler  # only the last part of a split is smaller than a batch
                for rows, batch in zip(batches, loader, strict=True):
                    part = own[rows.start // BATCH]
                    corrupt_log.add(batch.corrupt, len(rows))
                    readable = part.first + indices[batch.indices]
                    embeddings = np.empty((0, self.encoder.num_features), dtype=np.float32)
                    small = np.empty((0, PIXELS), dtype=np.float16)
                    if len(readable):
                        embeddings, small = features(batch.images).cpu().numpy(), thumbnails(batch.images)
                    self._write_part(part, readable, embeddings, small, [image.reason for image in batch.corrupt])
                    # assumes that the other processes are about as far
                    progress.advance(len(rows) * group.world_size)
        group.barrier()

    def _retry_corrupt(self) -> tuple[list[CorruptImage], int]:
        """Delete the parts of which an image has become readable, and those of earlier versions, without thumbnails;
        return the corrupt images of the others, and the number of images in these."""
        corrupt, num_images = [], 0
        for part in self.parts:
            if part.file.exists():
                reasons = part.corrupt()
                if pq.read_schema(part.file) != self.part_schema or any(map(self._is_readable, reasons)):
                    part.file.unlink()
                    continue
                corrupt += [CorruptImage(str(self.images.row(i)[0]), reason) for i, reason in reasons.items()]
                num_images += part.stop - part.start
        return corrupt, num_images

    def _is_readable(self, index: int) -> bool:
        _, dataset, index = self.images.locate(index)
        try:
            read_image(dataset, index, pixel_format_of(self.encoder))
        except CorruptImageError:
            return False
        return True

    def _check_disk_space(self, done: int) -> None:
        # for a moment the embeddings exist twice: in the parts and in the final file
        need = 4 * self.encoder.num_features * (2 * len(self.images) - done)
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise InputError(
                f"out: expected {need / 2**30:.1f} GiB of free disk for the embeddings and their parts, got "
                f"{free / 2**30:.1f} GiB in {self.folder.parent}"
            )

    def _write_part(
        self,
        part: Part,
        readable: NDArray[np.int64],
        embeddings: NDArray[np.float32],
        small: NDArray[np.float16],
        reasons: list[str],
    ) -> None:
        non_finite = ~np.isfinite(embeddings).all(axis=1)
        if non_finite.any():
            title = self.images.row(int(readable[non_finite.argmax()]))[0]
            raise InputError(f"encoder: expected finite embeddings, got NaN or infinity for {title}")
        corrupt = np.setdiff1d(np.arange(part.first + part.start, part.first + part.stop), readable).tolist()
        metadata = {"corrupt": json.dumps(dict(zip(corrupt, reasons, strict=True)))}
        rows = [self.images.row(index) for index in readable.tolist()]
        texts = [pa.array([_text(row[column]) for row in rows], pa.string()) for column in range(len(self.schema) - 1)]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
        pixels = pa.array([row.tobytes() for row in small], pa.binary(BYTES))
        table = pa.Table.from_arrays([*texts, vectors, pixels], schema=self.part_schema.with_metadata(metadata))
        with write_output(part.file) as path:
            pq.write_table(table, path, use_dictionary=False)

    def join(self, out: Path, inputs: dict[str, str], keep_thumbnails: bool) -> None:
        """Join the parts into ``out``, in the order of the dataset, after writing its sibling files."""
        for part in self.parts:
            if not part.file.exists():
                raise InputError(f"out: {part.file} has disappeared; run the command again, without another at a time")
        reasons = {index: reason for part in self.parts for index, reason in part.corrupt().items()}
        corrupt = [CorruptImage(str(self.images.row(index)[0]), reason) for index, reason in reasons.items()]
        corrupt_log = new_corrupt_log(len(self.images), SINGLE_PROCESS)
        corrupt_log.add(corrupt, len(self.images))
        log_corrupt(corrupt_log)
        if corrupt:
            with write_output(out.with_suffix(".corrupt.csv")) as path, open_csv(path) as add:
                for row in (COLUMNS, *corrupt):
                    add(row)
        num_rows, width = len(self.images) - len(corrupt), self.encoder.num_features
        with write_output(out.with_suffix(".json")) as path:
            counts = {"images": num_rows, "features": width, "corrupt": list(reasons)}
            path.write_text(json.dumps(inputs | counts) + "\n")
        thumbnails_file(out).unlink(missing_ok=True)  # of an embedding file that has been deleted
        if keep_thumbnails:
            with write_output(thumbnails_file(out)) as path:
                self._join_npy(path, "thumbnail", "<f2", num_rows, PIXELS)
        # the file is renamed last: when it exists, its sibling files exist too
        complete = self.folder / "complete"
        with write_output(complete) as path:
            if out.suffix.lower() == ".npy":
                self._join_npy(path, "embedding", "<f4", num_rows, width)
                with write_output(out.with_suffix(".csv")) as csv_path, open_csv(csv_path) as add:
                    add(self.images.columns)
                    for index in range(len(self.images)):
                        if index not in reasons:
                            add(self.images.row(index))
            else:
                # without dictionaries of paths and embeddings, which are all different
                with pq.ParquetWriter(path, self.schema, use_dictionary=self.images.columns[1:]) as file:
                    for table in self._blocks(self.schema.names):
                        file.write_table(table)
        complete.replace(out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _join_npy(self, path: Path, column: str, dtype: str, rows: int, width: int) -> None:
        with path.open("wb") as file:
            # writing through a memory map to a full disk would kill the process
            header = {"descr": dtype, "fortran_order": False, "shape": (rows, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for table in self._blocks([column]):
                file.write(_column_bytes(table[column].combine_chunks(), dtype))

    def _blocks(self, columns: list[str]) -> Iterator[pa.Table]:
        for start in range(0, len(self.parts), BLOCK_PARTS):
            tables = []
            for part in self.parts[start : start + BLOCK_PARTS]:
                with pq.ParquetFile(part.file) as file:  # pq.read_table would take a=b in the path for a column
                    tables.append(file.read(columns).replace_schema_metadata())
            yield pa.concat_tables(tables)


def _column_bytes(column: Any, dtype: str) -> bytes:
    """Return the values of a column of fixed-length lists as ``dtype``, or those of a column of bytes as they are."""
    if pa.types.is_fixed_size_binary(column.type):
        return b"".join(column.to_pylist())
    values: bytes = column.flatten().to_numpy().astype(dtype, copy=False).tobytes()
    return values


def thumbnails_file(out: Path) -> Path:
    """Return the file of the thumbnails (n, 256) float16 of the rows of an embedding file."""
    return out.with_suffix(".thumbnails.npy")


def _text(value: str | None) -> str | None:
    """Escape the bytes of a file name that are not UTF-8, which parquet refuses."""
    return None if value is None else value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def open_csv(path: Path) -> Iterator[Callable[[Sequence[object]], object]]:
    """Open a new .csv and yield its ``writerow``. File names that are not UTF-8 keep their bytes."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield csv.writer(file).writerow


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """``atomic_write`` whose OSError, such as a full disk or a read-only folder, becomes an InputError."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror or error})") from error
