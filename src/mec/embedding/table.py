"""A file of embeddings and the images they are of."""

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

BLOCK = 8192
"""Embeddings read or written at once."""
PARQUET, NPY = ".parquet", ".npy"

Blocks = Iterator[tuple[list[int], NDArray[np.float32]]]


@dataclass(frozen=True)
class Whole:
    """All images of a source in one line, those of its splits after each other; one split "" where it has none."""

    splits: dict[str, ImageDataset]

    def __len__(self) -> int:
        return sum(map(len, self.splits.values()))

    @property
    def columns(self) -> list[str]:
        return ["path", "label", "split"] if len(self.splits) > 1 else ["path", "label"]

    def place(self, number: int) -> tuple[str, ImageDataset, int]:
        """Split, its images, and which of them image ``number`` is."""
        for split, dataset in self.splits.items():
            if number < len(dataset):
                return split, dataset, number
            number -= len(dataset)
        raise IndexError(number)

    def row(self, number: int) -> list[str | None]:
        """Path, label and split of an image; no split where there is only one."""
        split, dataset, index = self.place(number)
        label = None if dataset.labels is None else dataset.classes[dataset.labels[index]]
        return [dataset.title(index), label, split][: len(self.columns)]


def open_whole(data: str | os.PathLike[str], subsample: int | None = None, frame_stride: int | None = None) -> Whole:
    """All splits of a source (see ``mec.data.open_dataset``)."""
    parts = open_splits(data, frame_stride=frame_stride)
    named = {"train": parts.train, "test": parts.test, "unlabeled": parts.unlabeled}
    splits = {name: dataset for name, dataset in named.items() if dataset is not None}
    if subsample is not None:
        splits = {name: dataset.subset(np.arange(0, len(dataset), subsample)) for name, dataset in splits.items()}
    return Whole(splits if len(splits) > 1 else {"": splits["train"]})


@dataclass(frozen=True)
class Embedded:
    """A finished file of embeddings and what they are of.

    Attributes:
        file: .parquet or .npy of n embeddings.
        whole: the images of the source.
        numbers: (n,) which of them have an embedding, in the order of the file.
        reading: how they are shown.
    """

    file: Path
    whole: Whole
    numbers: NDArray[np.int64]
    reading: PixelFormat

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, row: int) -> list[str | None]:
        return self.whole.row(int(self.numbers[row]))

    def beside(self, kind: str) -> Path:
        return self.file.with_name(f"{self.file.stem}.{kind}")

    def embeddings(self) -> Iterator[NDArray[np.float32]]:
        """(m, d) a block at a time, from the file."""
        if self.file.suffix.lower() == NPY:
            mapped = np.load(self.file, mmap_mode="r")
            yield from (np.asarray(mapped[start : start + BLOCK]) for start in range(0, len(mapped), BLOCK))
            return
        with pq.ParquetFile(self.file) as table:
            for batch in table.iter_batches(BLOCK, columns=["embedding"]):
                column = batch.column(0)
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    def write(self, blocks: Blocks, width: int, unfinished: Path) -> None:
        """Write the file from blocks of numbers and embeddings (m, width), in their order.

        It comes last, from ``unfinished`` on the same disk: what lies beside it is there when it is.
        """
        if self.file.suffix.lower() == NPY:
            with writing(unfinished) as path, writing(self.beside("csv")) as table:
                self._write_npy(blocks, width, path, table)
        else:
            with writing(unfinished) as path:
                self._write_parquet(blocks, width, path)
        unfinished.replace(self.file)

    def _write_npy(self, blocks: Blocks, width: int, path: Path, table: Path) -> None:
        with path.open("wb") as file, open_csv(table) as add:
            # not through a memory map, where a full disk would kill the process
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(self), width)}
            np.lib.format.write_array_header_1_0(file, header)
            add(self.whole.columns)
            for numbers, found in blocks:
                file.write(found.astype("<f4", copy=False).tobytes())
                for number in numbers:
                    add(self.whole.row(number))

    def _write_parquet(self, blocks: Blocks, width: int, path: Path) -> None:
        columns = self.whole.columns
        kind = pa.list_(pa.float32(), width)
        schema = pa.schema([*((name, pa.string()) for name in columns), ("embedding", kind)])
        with pq.ParquetWriter(path, schema, use_dictionary=columns[1:]) as file:
            for numbers, found in blocks:
                rows = zip(*map(self.whole.row, numbers), strict=True)
                texts = [pa.array([_text(value) for value in column], pa.string()) for column in rows]
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), width)
                file.write_table(pa.Table.from_arrays([*texts, vectors], schema=schema))


def _text(value: str | None) -> str | None:
    """Names of files that are not UTF-8, which parquet does not take, with their bytes as \\xff."""
    return None if value is None else value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def open_csv(path: Path) -> Iterator[Callable[[Sequence[object]], object]]:
    """What adds a row to a new .csv; names of files that are not UTF-8 keep their bytes."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield csv.writer(file).writerow


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """``atomic_write``; a full disk or a folder that may not be written to is said in one line."""
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror or error})") from error
