"""Images in files: a folder at any depth, a list of paths, or a .csv of paths and labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mec.data.dataset import TEST_NAMES, TRAIN_NAMES, FileDataset, Splits, encode_labels, open_train_and_test
from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.text_files import TextError, read_lines, read_rows

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "name")
LABEL_COLUMNS = ("label", "class", "category", "target")


def open_folder(folder: Path) -> Splits:
    """Open the images in a folder; its sub-folders ``train`` and ``test`` or ``val`` are its own splits."""
    return open_subfolders(partial(_open_split, folder.name), folder)


def open_subfolders(open_split: Callable[[Path, list[str] | None], FileDataset], folder: Path) -> Splits:
    """Open the splits of a folder with train and test sub-folders, or the folder itself."""
    train, test = (
        next((folder / name for name in names if (folder / name).is_dir()), None) for names in (TRAIN_NAMES, TEST_NAMES)
    )
    return open_train_and_test(open_split, train, test) if train and test else Splits(open_split(folder, None))


def list_split_files(folder: Path, suffix: str | tuple[str, ...]) -> tuple[list[str], list[str]] | None:
    """List the training and test files of a folder that is a dataset of files with this suffix; None if it is not.

    Test files lie in a sub-folder ``test`` or ``val``, or their names start with such a word.
    """

    def matching_files(parent: Path) -> list[Path]:
        return [parent / f for f in sorted(os.listdir(parent)) if f.endswith(suffix) and not f.startswith(".")]

    try:
        with os.scandir(folder) as entries:
            subfolders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        if set(subfolders) - {*TRAIN_NAMES, *TEST_NAMES}:
            return None
        subfolder_files = [matching_files(folder / name) for name in subfolders]
        if not all(subfolder_files):  # train/ and val/ hold files of another format
            return None
        paths = matching_files(folder) + [path for files in subfolder_files for path in files]
    except OSError:
        return None
    if not paths:
        return None
    test = [p for p in paths if p.parent.name in TEST_NAMES or re.split(r"[-_.]", p.name)[0] in TEST_NAMES]
    train = [p for p in paths if p not in test]
    return [str(p) for p in train or test], [str(p) for p in test if train]


def list_files(folder: Path) -> tuple[list[str], int]:
    """Return sorted relative paths of files at any depth that are not hidden, and the number of unreadable folders."""
    paths: list[str] = []
    errors: list[OSError] = []
    root = os.fspath(folder)
    for parent, files in walk_folders(root, errors.append):
        relative = parent[len(root) :].lstrip(os.sep)
        paths += [os.path.join(relative, f) for f in files]
    if errors and not paths:
        raise InputError(f"data: cannot read the folder {errors[0].filename} ({errors[0].strerror})")
    return sorted(paths), len(errors)


def walk_folders(root: str, onerror: Callable[[OSError], None] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below ``root``, once even if several links lead to it, and its files, without hidden ones."""
    visited: set[str] = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=onerror):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield parent, [f for f in files if not f.startswith(".")]


def _open_split(title: str, folder: Path, classes: list[str] | None) -> FileDataset:
    files, unreadable_folders = list_files(folder)
    names = [f for f in files if os.path.splitext(f)[1].lower() in EXTENSIONS]
    if not names:
        raise InputError(f"data: no image in {folder} ({', '.join(sorted(EXTENSIONS))}, at any depth)")
    ignored_files = len(files) - len(names) + unreadable_folders
    if any(os.sep not in name for name in names):
        return FileDataset(title, folder, names, ignored_files=ignored_files)
    folder_names = [name.split(os.sep, 1)[0] for name in names]
    # in alphabetical order even if they are numbers, like torchvision's ImageFolder
    labels, classes = encode_labels(folder_names, classes or sorted(set(folder_names)))
    return FileDataset(title, folder, names, labels, classes, ignored_files)


def open_list(path: Path) -> FileDataset:
    """Open a text file with a path on each line, relative to the file's folder; # starts a comment line."""
    try:
        names = [line for _, line in read_lines(path) if not line.startswith("#")]
    except TextError as error:
        raise InputError(f"data: {error}") from error
    if not names:
        raise InputError(f"data: {path} lists no image")
    return FileDataset(path.stem, path.parent, names)


def open_csv(path: Path, root: Path, argument: str = "data") -> FileDataset:
    """Open the images of a .csv of path and label, with or without a header; paths are relative to ``root``."""
    try:
        rows = [row for _, row in read_rows(path)]
    except TextError as error:
        raise InputError(f"{argument}: {error}") from error
    if not rows:
        raise InputError(f"{argument}: {path} has no row")
    header = [cell.strip().lower() for cell in rows[0]]
    path_column = next((header.index(c) for c in PATH_COLUMNS if c in header), None)
    label_column = next((header.index(c) for c in LABEL_COLUMNS if c in header), None)
    if path_column is not None and label_column is not None:
        rows = rows[1:]
    elif path_column is not None and len(header) > 1:
        raise InputError(
            f"{argument}: {path} has no label column, expected {' or '.join(LABEL_COLUMNS)}, got {', '.join(rows[0])}"
        )
    else:
        path_column, label_column = 0, 1
    for number, row in enumerate(rows, 1):
        if len(row) <= max(path_column, label_column):
            raise InputError(f"{argument}: {path}, row {number}: expected a path and a label, got {','.join(row)!r}")
    names = [row[path_column].strip() for row in rows]
    labels, classes = encode_labels([row[label_column].strip() for row in rows])
    return FileDataset(path.stem, root, names, labels, classes)
