"""Images in parquet files and Hugging Face datasets, through the ``datasets`` package."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import ImageDataset, Indices, Labels, count_skipped, read_file, select_labels
from mec.data.datasets.folder import list_split_files
from mec.data.datasets.lists import LABEL_COLUMNS, PATH_COLUMNS, find_column
from mec.data.pixels import CorruptImageError
from mec.data.splits import Splits, add_to_layout, clean_labels, open_named_splits, set_labels
from mec.errors import InputError

HUB_PREFIX = "hf:"
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "pixels", "pixelvalues")
TABLE_LABEL_COLUMNS = (*LABEL_COLUMNS, "cls", "finelabel")
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
    layout: str = ""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    root: Path = Path()  # of a column of paths

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
        if isinstance(value, str):
            return read_file(self.root / value)
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
    return is_named or (path.is_dir() and (_is_saved_to_disk(path) or list_split_files(path, ".parquet") != {}))


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
            files = {"train": [str(path)]} if path.is_file() else list_split_files(path, ".parquet")
            # from_parquet takes glob patterns; load_dataset would also report the use to a server
            loaded = datasets.DatasetDict.from_parquet({k: [glob.escape(f) for f in v] for k, v in files.items()})
    except Exception as error:  # the hub, arrow and damaged files raise exceptions of many types
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"data: cannot open {source} as a dataset ({type(error).__name__}: {reason})") from error
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    return open_named_splits(partial(open_table_split, source), tables)


def _is_saved_to_disk(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVE_TO_DISK_FILES)


def open_table_split(source: str, table: Any, classes: list[str] | None) -> TableDataset:
    """Open a ``datasets.Dataset``. ``source`` is its path or name, ``classes`` those of the training split."""
    import datasets

    features = table.features
    encoded_columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    names = list(features)
    index = names.index(encoded_columns[0]) if encoded_columns else find_column(names, (*IMAGE_COLUMNS, *PATH_COLUMNS))
    if index is None:
        raise InputError(f"data: {source}: expected an image column, got the columns {', '.join(features)}")
    column = names[index]
    if column in encoded_columns:
        table = table.cast_column(column, datasets.Image(decode=False))
    # only the image column is read after this
    images = table.select_columns([column])
    path = Path(source).expanduser()
    root = path if path.is_dir() else path.parent
    dataset = TableDataset(path.name, images, column, np.arange(len(table)), root=root)
    is_paths = features[column] in (datasets.Value("string"), datasets.Value("large_string"))
    dataset.layout = f"{'paths' if is_paths else 'images'} in column {column}"
    count_skipped(dataset, "other image columns", (name for name in encoded_columns if name != column))
    label_index = find_column(names, TABLE_LABEL_COLUMNS)
    if label_index is None or label_index == index:
        return dataset
    label_column = names[label_index]
    feature, values = features[label_column], table[label_column][:]
    add_to_layout(dataset, f"labels in column {label_column}")
    if any(isinstance(value, (list, dict)) for value in values):
        add_to_layout(dataset, "not used: expected one label per image")
    elif isinstance(feature, datasets.ClassLabel):
        names = [None if v is None or v < 0 else feature.names[v] for v in values]
        set_labels(dataset, names, classes or list(feature.names))
    else:
        set_labels(dataset, clean_labels(values), classes)
    return dataset
