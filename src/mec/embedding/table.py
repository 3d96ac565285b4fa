"""The embedding file, .parquet or .npy, and the images of its rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mec.data.dataset import ImageDataset
from mec.data.datasets import open_splits
from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.files import atomic_write

BLOCK_ROWS = 8192
"""Embeddings read or written at a time."""
PARQUET, NPY = ".parquet", ".npy"

Blocks = Iterator[tuple[list[int], NDArray[np.float32]]]


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
        label = None if dataset.labels is None else dataset.classes[dataset.labels[index]]
        return [dataset.title(index), label, split][: len(self.columns)]


def open_all_splits(
    data: str | os.PathLike[str], subsample: int | None = None, frame_stride: int | None = None
) -> AllSplits:
    """Open every split of a dataset (see ``mec.open_dataset``)."""
    opened = open_splits(data, frame_stride=frame_stride)
    named = {"train": opened.train, "test": opened.test, "unlabeled": opened.unlabeled}
    splits = {name: dataset for name, dataset in named.items() if dataset is not None}
    if subsample is not None:
        splits = {name: dataset.subset(np.arange(0, len(dataset), subsample)) for name, dataset in splits.items()}
    return AllSplits(splits if len(splits) > 1 else {"": splits["train"]})


@dataclass(frozen=True)
class EmbeddingTable:
    """An embedding file and the images of its rows.

    Attributes:
        file: .parquet or .npy of n embeddings.
        images: all images of the dataset.
        indices: (n,) index of the image of each row; corrupt images have no row.
        pixel_format: format in which images are drawn.
    """

    file: Path
    images: AllSplits
    indices: NDArray[np.int64]
    pixel_format: PixelFormat

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, row: int) -> list[str | None]:
        """Return path, label and split of the image of a row."""
        return self.images.row(int(self.indices[row]))

    def sibling(self, suffix: str) -> Path:
        """Return the path STEM.suffix beside the file."""
        return self.file.with_name(f"{self.file.stem}.{suffix}")

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings in blocks (m, d), read from the file."""
        if self.file.suffix.lower() == NPY:
            mapped = np.load(self.file, mmap_mode="r")
            yield from (np.asarray(mapped[start : start + BLOCK_ROWS]) for start in range(0, len(mapped), BLOCK_ROWS))
            return
        with pq.ParquetFile(self.file) as table:
            for batch in table.iter_batches(BLOCK_ROWS, columns=["embedding"]):
                column = batch.column(0)
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    def write(self, blocks: Blocks, width: int, unfinished: Path) -> None:
        """Write the file from blocks of image indices and embeddings (m, width).

        The file is written to ``unfinished``, on the same disk, and renamed last: when it exists, its sibling files
        exist too.
        """
        if self.file.suffix.lower() == NPY:
            with write_output(unfinished) as path, write_output(self.sibling("csv")) as table:
                self._write_npy(blocks, width, path, table)
        else:
            with write_output(unfinished) as path:
                self._write_parquet(blocks, width, path)
        unfinished.replace(self.file)

    def _write_npy(self, blocks: Blocks, width: int, path: Path, table: Path) -> None:
        with path.open("wb") as file, open_csv(table) as add:
            # writing through a memory map to a full disk would kill the process
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(self), width)}
            np.lib.format.write_array_header_1_0(file, header)
            add(self.images.columns)
            for indices, embeddings in blocks:
                file.write(embeddings.astype("<f4", copy=False).tobytes())
                for index in indices:
                    add(self.images.row(index))

    def _write_parquet(self, blocks: Blocks, width: int, path: Path) -> None:
        columns = self.images.columns
        vector_type = pa.list_(pa.float32(), width)
        schema = pa.schema([*((name, pa.string()) for name in columns), ("embedding", vector_type)])
        with pq.ParquetWriter(path, schema, use_dictionary=columns[1:]) as file:
            for indices, embeddings in blocks:
                rows = zip(*map(self.images.row, indices), strict=True)
                texts = [pa.array([_text(value) for value in column], pa.string()) for column in rows]
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), width)
                file.write_table(pa.Table.from_arrays([*texts, vectors], schema=schema))


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
