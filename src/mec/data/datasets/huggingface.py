"""Images in parquet files and Hugging Face datasets, through the ``datasets`` package."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import (
    TEST_NAMES,
    TRAIN_NAMES,
    ImageDataset,
    Indices,
    Labels,
    Splits,
    encode_labels,
    open_train_and_test,
    read_file,
    select_labels,
)
from mec.data.datasets.folder import list_split_files
from mec.data.pixels import CorruptImageError
from mec.errors import InputError

HUB_PREFIX = "hf:"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "pixels")
LABEL_COLUMNS = ("label", "labels", "class", "cls", "target", "fine_label")
SAVE_TO_DISK_FILES = ("state.json", "dataset_dict.json")


@dataclass
class TableDataset(ImageDataset):
    """Images in the ``rows`` (n,) of a ``datasets.Dataset``, read from disk when they are loaded."""

    name: str
    table: Any
    column: str
    rows: Indices
    labels: Labels | None = None
    classes: list[str] = field(default_factory=list)
    ignored_files: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> bytes | NDArray[Any]:
        value: Any = self.table[int(self.rows[index])][self.column]
        if isinstance(value, dict):  # an image that datasets has not decoded
            path, value = value.get("path"), value.get("bytes")
            if value is None and path:
                return read_file(Path(path))
        if value is None:
            raise CorruptImageError("the row has no image")
        if isinstance(value, bytes):
            return value
        feature = self.table.features[self.column]
        while hasattr(feature, "feature"):  # datasets gives nested lists and arrays as Python lists
            feature = feature.feature
        try:
            return np.asarray(value, dtype=getattr(feature, "dtype", None))
        except (TypeError, ValueError) as error:
            raise CorruptImageError(f"not a numeric array ({error})") from error

    def title(self, index: int) -> str:
        return f"{self.name}, row {self.rows[index]}"

    def subset(self, indices: Indices) -> TableDataset:
        return replace(self, rows=self.rows[indices], labels=select_labels(self, indices))


def is_table(source: str) -> bool:
    """Return whether ``source`` is a .parquet file or a folder of them, a ``save_to_disk`` folder, or hf:owner/name."""
    path = Path(source).expanduser()
    is_named = source.startswith(HUB_PREFIX) or path.suffix == ".parquet"
    return is_named or (path.is_dir() and (_is_saved_to_disk(path) or list_split_files(path, ".parquet") is not None))


def open_table(source: str) -> Splits:
    """Open a source for which ``is_table`` is true; splits named train and test, validation or val are its own."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data: {source} needs Hugging Face datasets; pip install 'mec-ssl[datasets]'") from error
    path = Path(source).expanduser()
    if not source.startswith(HUB_PREFIX) and not path.exists():
        raise InputError(f"data: {path} does not exist")
    try:
        if source.startswith(HUB_PREFIX):
            name, _, config = source.removeprefix(HUB_PREFIX).partition(":")
            loaded = datasets.load_dataset(name, config or None)
        elif path.is_dir() and _is_saved_to_disk(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            train, test = ([str(path)], []) if path.is_file() else list_split_files(path, ".parquet") or ([], [])
            files = {"train": train} | ({"test": test} if test else {})
            # from_parquet takes glob patterns; load_dataset would also report the use to a server
            loaded = datasets.DatasetDict.from_parquet({k: [glob.escape(f) for f in v] for k, v in files.items()})
    except Exception as error:  # the hub, arrow and damaged files raise exceptions of many types
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"data: cannot open {source} as a dataset ({type(error).__name__}: {reason})") from error
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    train_name = next((name for name in TRAIN_NAMES if name in tables), next(iter(tables)))
    test_name = next((name for name in TEST_NAMES if name in tables and name != train_name), None)
    test_table = None if test_name is None else tables[test_name]
    return open_train_and_test(partial(_open_split, source), tables[train_name], test_table)


def _is_saved_to_disk(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVE_TO_DISK_FILES)


def _open_split(source: str, table: Any, classes: list[str] | None) -> TableDataset:
    import datasets

    features = table.features
    encoded_columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = next(iter(encoded_columns), None) or next((c for c in IMAGE_COLUMNS if c in features), None)
    if column is None:
        raise InputError(f"data: {source}: expected an image column, got the columns {', '.join(features)}")
    if column in encoded_columns:
        table = table.cast_column(column, datasets.Image(decode=False))
    label_column = next((c for c in LABEL_COLUMNS if c in features), None)
    # only the image column is read after this
    dataset = TableDataset(Path(source).name, table.select_columns([column]), column, np.arange(len(table)))
    if label_column is not None:
        feature, values = features[label_column], table[label_column][:]
        if isinstance(feature, datasets.ClassLabel):
            classes = classes or list(feature.names)
            values = [None if v is None or v < 0 else feature.names[v] for v in values]
        if all(v is not None for v in values):
            dataset.labels, dataset.classes = encode_labels([str(v) for v in values], classes)
    return dataset
