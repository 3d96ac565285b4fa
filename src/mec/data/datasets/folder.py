"""Images in files: a folder at any depth, a list of paths, a table of paths and labels."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mec.data.dataset import FileDataset
from mec.data.datasets.splits import TEST_NAMES, TRAIN_NAMES, Splits, encode_labels
from mec.data.decode import EXTENSIONS
from mec.errors import InputError

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "name")
LABEL_COLUMNS = ("label", "class", "category", "target")


def open_folder(folder: Path) -> Splits:
    """Images below a folder; ``train`` and ``test`` or ``val`` in it are its own split."""
    train, test = subfolder(folder, TRAIN_NAMES), subfolder(folder, TEST_NAMES)
    if train and test:
        part = _images_in(train, folder.name)
        return Splits(part, _images_in(test, folder.name, part.classes if part.labels is not None else None))
    return Splits(_images_in(folder, folder.name))


def files_of_kind(folder: Path, suffix: str | tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    """The files for training and for testing in a folder that is made of files with this suffix, else None.

    What is for testing lies in a sub-folder ``test`` or ``val``, or has a name that begins so.
    """

    def within(part: Path) -> list[Path]:
        return [part / f for f in sorted(os.listdir(part)) if f.endswith(suffix) and not f.startswith(".")]

    try:
        with os.scandir(folder) as entries:
            folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if set(folders) - {*TRAIN_NAMES, *TEST_NAMES}:
            return None
        parts = [within(folder / name) for name in folders]
        if not all(parts):  # train/ and val/ hold something else
            return None
        found = within(folder) + [file for part in parts for file in part]
    except OSError:
        return None
    test = [f for f in found if f.parent.name in TEST_NAMES or re.split(r"[-_.]", f.name)[0] in TEST_NAMES]
    train = [f for f in found if f not in test]
    return ([str(f) for f in train or test], [str(f) for f in test if train]) if found else None


def subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def files_below(folder: Path) -> tuple[list[str], int]:
    """Sorted relative paths of all files at any depth, and how many folders could not be entered.

    A folder is visited once, however many links lead there; what begins with a dot is passed over.
    """
    found: list[str] = []
    closed: list[OSError] = []
    root = os.fspath(folder)
    for parent, files in walk(root, closed.append):
        within = parent[len(root) :].lstrip(os.sep)
        found += [os.path.join(within, f) for f in files]
    if closed and not found:
        raise InputError(f"data: {closed[0].filename} cannot be entered ({closed[0].strerror})")
    return sorted(found), len(closed)


def walk(root: str, onerror: Callable[[OSError], None] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each folder below ``root``, once, with the names of its files, but for what begins with a dot."""
    seen: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield parent, [f for f in files if not f.startswith(".")]


def _images_in(folder: Path, name: str, classes: list[str] | None = None) -> FileDataset:
    files, closed = files_below(folder)
    names = [f for f in files if os.path.splitext(f)[1].lower() in EXTENSIONS]
    if not names:
        raise InputError(f"data: no image in {folder} ({', '.join(sorted(EXTENSIONS))}, at any depth)")
    ignored_files = len(files) - len(names) + closed
    heads = [n.split(os.sep, 1)[0] for n in names]
    if any(head == whole for head, whole in zip(heads, names, strict=True)):
        return FileDataset(name, folder, names, ignored_files=ignored_files)
    if classes is not None and (unknown := sorted(set(heads) - set(classes))):
        raise InputError(f"data: {folder} has classes that the training images lack: {', '.join(unknown[:5])}")
    labels, classes = encode_labels(heads, classes or sorted(set(heads)))
    return FileDataset(name, folder, names, labels, classes, ignored_files)


def open_list(path: Path) -> FileDataset:
    """A text file with a path on each line, relative to its folder."""
    names = [line.strip() for line in _text(path).splitlines()]
    names = [n for n in names if n and not n.startswith("#")]
    if not names:
        raise InputError(f"data: {path} lists no image")
    return FileDataset(path.stem, path.parent, names)


def open_table_of_labels(path: Path, root: Path) -> FileDataset:
    """A .csv of path and label, with or without a line of column names; paths are relative to ``root``."""
    rows = [row for row in csv.reader(_text(path).splitlines()) if row]
    if not rows:
        raise InputError(f"labels: {path} has no row")
    head = [cell.strip().lower() for cell in rows[0]]
    path_column = next((head.index(c) for c in PATH_COLUMNS if c in head), None)
    label_column = next((head.index(c) for c in LABEL_COLUMNS if c in head), None)
    if path_column is not None and label_column is not None:
        rows = rows[1:]
    elif path_column is not None and len(head) > 1:
        found, expected = ", ".join(rows[0]), ", ".join(LABEL_COLUMNS)
        raise InputError(
            f"labels: {path} has the columns {found}, expected one of {expected} beside {rows[0][path_column]}"
        )
    else:
        path_column, label_column = 0, 1
    for number, row in enumerate(rows, 1):
        if len(row) <= max(path_column, label_column):
            raise InputError(f"labels: {path}, row {number}: expected a path and a label, got {','.join(row)!r}")
    names = [row[path_column].strip() for row in rows]
    labels, classes = encode_labels([row[label_column].strip() for row in rows])
    return FileDataset(path.stem, root, names, labels, classes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: {path} cannot be read as text ({error})") from error
