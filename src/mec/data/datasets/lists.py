"""Lists of images: a text file of paths, or a table (.csv) of paths and labels with any delimiter and header."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mec.data.dataset import FileDataset, count_skipped
from mec.data.datasets.folder import is_image, list_files
from mec.data.decode import EXTENSIONS
from mec.data.splits import add_to_layout, clean_labels, set_labels
from mec.errors import InputError
from mec.text_files import TextError, read_lines, read_rows

PATH_COLUMNS = (
    "path", "file", "filename", "filepath", "image", "imageid", "imagepath", "imagename", "img", "id", "name",
)  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "target", "labelname", "classname", "y")
"""Names of columns in lower case without spaces and underscores, in order of preference."""
HEADER_SAMPLE = 100  # rows in which the column of paths is searched


def open_list(path: Path) -> FileDataset:
    """Open a text file with a path on each line, relative to the file's folder; # starts a comment line.

    Lines that are a path, spaces and a label, as in the lists of Caffe, give labels if the whole line is no file.
    """
    try:
        lines = [line for _, line in read_lines(path) if not line.startswith("#")]
    except TextError as error:
        raise InputError(f"data: {error}") from error
    if not lines:
        raise InputError(f"data: {path} lists no image")
    root = path.parent
    pairs = [line.rsplit(None, 1) for line in lines]
    sample = pairs[:HEADER_SAMPLE]
    whole_lines = any((root / line).is_file() for line in lines[:HEADER_SAMPLE])
    first_fields = all(len(pair) == 2 for pair in pairs) and any((root / pair[0]).is_file() for pair in sample)
    if first_fields and not whole_lines:
        dataset = FileDataset(path.stem, root, [pair[0] for pair in pairs], layout=f"paths and labels in {path.name}")
        _set_unique_labels(dataset, [pair[1] for pair in pairs])
        return dataset
    dataset = FileDataset(path.stem, root, lines, layout=f"paths in {path.name}")
    _set_unique_labels(dataset, [None] * len(lines))
    return dataset


def open_csv(path: Path, root: Path, argument: str = "data") -> FileDataset:
    """Open the images of a table of paths, relative to ``root``, and labels; images without label are kept as such.

    The first row is a header if it names the columns, or if its cells are no files and those of the next rows are.
    A path without extension is completed. Labels may be a column per class with a single 1 in each row (one-hot).
    """
    try:
        rows = read_rows(path)
    except TextError as error:
        raise InputError(f"{argument}: {error}") from error
    if not rows:
        raise InputError(f"{argument}: {path} has no row")
    find_file = _file_finder(root)
    has_header, path_column, label_columns = _find_columns([cells for _, cells in rows], find_file)
    header = rows[0][1] if has_header else [f"number {c}" for c in range(1, len(rows[0][1]) + 1)]
    records = rows[has_header:]
    if not records:
        raise InputError(f"{argument}: {path} has a header and no row")
    for number, cells in records:
        if len(cells) <= max(path_column, *label_columns, 0):
            raise InputError(
                f"{argument}: {path}, line {number}: expected {len(header)} columns, got {','.join(cells)!r}"
            )
    names = [find_file(cells[path_column]) or cells[path_column] for _, cells in records]
    dataset = FileDataset(path.stem, root, names, layout=f"{path.name}, paths in column {header[path_column]}")
    if len(label_columns) == 1:
        add_to_layout(dataset, f"labels in column {header[label_columns[0]]}")
        _set_unique_labels(dataset, [cells[label_columns[0]] for _, cells in records])
    elif labels := _one_hot_labels([cells for _, cells in records], label_columns, header):
        add_to_layout(dataset, f"one-hot labels in {len(label_columns)} columns")
        _set_unique_labels(dataset, labels)
    elif len(header) > 1:
        others = ", ".join(name for c, name in enumerate(header) if c != path_column)
        add_to_layout(dataset, f"labels not used: expected a column label or one-hot columns, got {others}")
    if dataset.labels is None:
        _set_unique_labels(dataset, [None] * len(names))
    return dataset


def _set_unique_labels(dataset: FileDataset, labels: Sequence[str | None]) -> None:
    """Set the labels of a list, and keep each image once: tables of boxes have a row for each box. An image with
    several labels has none."""
    by_name: dict[str, set[str]] = {name: set() for name in dataset.names}
    for name, label in zip(dataset.names, clean_labels(labels), strict=True):
        if label is not None:
            by_name[name].add(label)
    if repeated := len(dataset.names) - len(by_name):
        add_to_layout(dataset, f"{repeated:,} repeated rows")
    dataset.names = list(by_name)
    several = [name for name, found in by_name.items() if len(found) > 1]
    count_skipped(dataset, "labels of images with several labels", several)
    set_labels(dataset, [next(iter(found)) if len(found) == 1 else None for found in by_name.values()])


def open_labels_csv(path: Path, folder: Path) -> FileDataset:
    """Open the images of a folder with the labels of a table; images that it does not list are counted as skipped."""
    dataset = open_csv(path, folder, "labels_csv")
    if dataset.labels is None:
        raise InputError(f"labels_csv: {path} gives no labels ({dataset.layout})")
    listed = {os.path.normpath(name) for name in dataset.names}
    images = [name for name in list_files(folder)[0] if is_image(name)]
    count_skipped(dataset, f"images that {path.name} does not list", (name for name in images if name not in listed))
    if not listed.intersection(images):
        raise InputError(
            f"labels_csv: none of the {len(listed):,} paths in {path} is an image in {folder}; "
            f"the first path is {dataset.names[0]}, the first image is {images[0] if images else 'missing'}"
        )
    return dataset


def find_column(names: Sequence[str], candidates: Sequence[str]) -> int | None:
    """Return the index of the first candidate among the names of columns, in any case, with any separators."""
    normalized = [re.sub(r"[ _-]", "", name.lower()) for name in names]
    return next((normalized.index(c) for c in candidates if c in normalized), None)


def _file_finder(root: Path) -> Callable[[str], str | None]:
    """Return a function that completes a cell to the path of a file relative to ``root``; None if there is none."""

    def find_file(cell: str) -> str | None:
        if not cell:
            return None
        extensions = ("",) if is_image(cell) else ("", *sorted(EXTENSIONS))
        return next((cell + e for e in extensions if (root / (cell + e)).is_file()), None)

    return find_file


def _find_columns(rows: Sequence[Sequence[str]], find_file: Callable[[str], str | None]) -> tuple[bool, int, list[int]]:
    """Return whether the first row is a header, the column of paths, and the column of labels or several candidates."""
    first = list(rows[0])
    path_column, label_column = find_column(first, PATH_COLUMNS), find_column(first, LABEL_COLUMNS)
    in_first_row = [c for c, cell in enumerate(first) if find_file(cell)]
    next_rows = rows[1 : HEADER_SAMPLE + 1]
    in_next_rows = [c for c in range(len(first)) if any(c < len(row) and find_file(row[c]) for row in next_rows)]
    if in_first_row or (path_column is None and not in_next_rows):
        # no header; where no path exists, every image is counted as corrupt later
        path_column = in_first_row[0] if in_first_row else 0
        return False, path_column, [c for c in range(min(2, len(first))) if c != path_column][:1]
    if path_column is None or (in_next_rows and path_column not in in_next_rows):
        path_column = in_next_rows[0]
    if label_column is not None and label_column != path_column:
        return True, path_column, [label_column]
    return True, path_column, [c for c in range(len(first)) if c != path_column]


def _one_hot_labels(
    rows: Sequence[Sequence[str]], columns: Sequence[int], header: Sequence[str]
) -> list[str | None] | None:
    """Return the label of each row from columns of 0 and 1; None where several are 1 or other values occur."""
    labels: list[str | None] = []
    for cells in rows:
        values = [cells[c] for c in columns]
        if not values or not set(values) <= {"0", "1", "0.0", "1.0"} or sum(v[0] == "1" for v in values) > 1:
            return None
        labels.append(next((header[c] for c, v in zip(columns, values, strict=True) if v[0] == "1"), None))
    return labels
