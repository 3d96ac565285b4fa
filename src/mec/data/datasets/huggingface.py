"""Images in parquet files and Hugging Face data sets, through ``datasets``."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import Labels
from mec.data.datasets.folder import files_of_kind
from mec.data.datasets.splits import TEST_NAMES, TRAIN_NAMES, Splits, encode_labels
from mec.data.pixels import CorruptImageError
from mec.errors import InputError

HUB = "hf:"
IMAGE_COLUMNS = ("image", "img", "image", "jpg", "png", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "fine_label")
SAVED = ("state.json", "dataset_dict.json")


@dataclass
class TableDataset:
    """Images in the ``rows`` (n,) of a ``datasets.Dataset``, read from disk when asked for."""

    name: str
    table: Any
    column: str
    rows: NDArray[np.int64]
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> bytes | NDArray[Any]:
        value: Any = self.table[int(self.rows[index])][self.column]
        if isinstance(value, dict):  # datasets' Image, not decoded
            path, value = value.get("path"), value.get("bytes")
            if value is None and path:
                try:
                    return Path(path).read_bytes()
                except OSError as error:
                    raise CorruptImageError(error.strerror or str(error)) from error
        if value is None:
            raise CorruptImageError("the row has no image")
        if isinstance(value, bytes):
            return value
        try:
            return np.asarray(value, dtype=_type_of_numbers(self.table.features[self.column]))
        except (TypeError, ValueError) as error:
            raise CorruptImageError(f"not an array of numbers ({error})") from error

    def title(self, index: int) -> str:
        return f"{self.name}, row {self.rows[index]}"

    def subset(self, indices: NDArray[np.int64]) -> TableDataset:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, rows=self.rows[indices], labels=labels)


def is_table(source: str) -> bool:
    """A .parquet file, a folder of them, a folder that ``save_to_disk`` wrote, or hf:owner/name."""
    path = Path(source).expanduser()
    if source.startswith(HUB) or path.suffix == ".parquet":
        return True
    return path.is_dir() and (
        any((path / name).is_file() for name in SAVED) or files_of_kind(path, ".parquet") is not None
    )


def open_table(source: str) -> Splits:
    """Open what ``is_table`` recognizes; splits named train and test, validation or val are its own."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data: {source} needs Hugging Face datasets; pip install 'mec-ssl[datasets]'") from error
    path = Path(source).expanduser()
    if not source.startswith(HUB) and not path.exists():
        raise InputError(f"data: {path} does not exist")
    try:
        if source.startswith(HUB):
            name, _, config = source.removeprefix(HUB).partition(":")
            found = datasets.load_dataset(name, config or None)
        elif path.is_dir() and any((path / saved).is_file() for saved in SAVED):
            found = datasets.load_from_disk(str(path))
        else:
            train, test = ([str(path)], []) if path.is_file() else files_of_kind(path, ".parquet") or ([], [])
            files = {"train": train} | ({"test": test} if test else {})
            # its names are patterns; load_dataset would also count the use at a server
            found = datasets.DatasetDict.from_parquet({k: [glob.escape(f) for f in v] for k, v in files.items()})
    except Exception as error:  # whatever the hub, arrow or a file raises, the source is at fault
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"data: {source} cannot be opened as a data set ({type(error).__name__}: {reason})") from error
    parts = found if isinstance(found, dict) else {"train": found}
    train_name = next((name for name in TRAIN_NAMES if name in parts), next(iter(parts)))
    test_name = next((name for name in TEST_NAMES if name in parts and name != train_name), None)
    train_part = _images_in(parts[train_name], source, None)
    test_part = None if test_name is None else _images_in(parts[test_name], source, train_part.classes or None)
    return Splits(train_part, test_part)


def _images_in(table: Any, source: str, classes: list[str] | None) -> TableDataset:
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    column = next(iter(images), None) or next((c for c in IMAGE_COLUMNS if c in features), None)
    if column is None:
        raise InputError(f"data: {source} has no column of images (it has {', '.join(features)})")
    if column in images:
        table = table.cast_column(column, datasets.Image(decode=False))
    label = next((c for c in LABEL_COLUMNS if c in features), None)
    # only the images are read from here on
    dataset = TableDataset(Path(source).name, table.select_columns([column]), column, np.arange(len(table)))
    if label is not None:
        kind, values = features[label], table[label][:]
        if isinstance(kind, datasets.ClassLabel):
            classes = classes or list(kind.names)
            values = [None if v is None or v < 0 else kind.names[v] for v in values]
        if all(v is not None for v in values):
            dataset.labels, dataset.classes = encode_labels([str(v) for v in values], classes)
    return dataset


def _type_of_numbers(kind: Any) -> str | None:
    """The type at the bottom of datasets' nested lists and arrays, which come as Python's lists."""
    while hasattr(kind, "feature"):
        kind = kind.feature
    return getattr(kind, "dtype", None)
