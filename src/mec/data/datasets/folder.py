"""Images in files: a folder at any depth, a list of paths, or a .csv of paths and labels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mec.data.dataset import DataLike, FileDataset, count_skipped
from mec.data.decode import EXTENSIONS
from mec.data.splits import TEST_NAMES, TRAIN_NAMES, Splits, find_split_names, open_named_splits, set_labels, split_word
from mec.errors import InputError

TOOL_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "__macosx", "lost+found", "system volume information"}
)
"""Folders of thumbnails and deleted files, in lower case, which storage systems create. Like hidden ones, no data."""


def open_folder(folder: Path) -> Splits:
    """Open the images in a folder; its sub-folders ``train`` and ``test`` or ``val`` are its own splits. A folder that
    holds nothing but one folder of folders, as archives unpack to, is replaced by that one."""
    inner, passed = folder, list[str]()
    while True:
        subfolders, files = list_entries(inner)
        if len(subfolders) != 1 or any(map(is_image, files)) or split_word(subfolders[0]) in TRAIN_NAMES:
            break
        deeper, deeper_files = list_entries(inner / subfolders[0])
        if not deeper or any(map(is_image, deeper_files)):
            break
        inner, passed = inner / subfolders[0], passed + files
    splits = open_subfolders(partial(_open_split, folder), inner)
    count_skipped(splits.train, "files that are no images", passed)
    return splits


def open_subfolders(open_split: Callable[[Path, list[str] | None], FileDataset], folder: Path) -> Splits:
    """Open the splits of a folder with train and test sub-folders, or the folder itself."""
    if not folder.is_dir():
        return Splits(open_split(folder, None))
    subfolders, files = list_entries(folder)
    train, test, unlabeled = find_split_names(subfolders)
    # a lone folder "train" among others is a class
    if train is None or not (test or set(subfolders) <= {train, unlabeled}):
        return Splits(open_split(folder, None))
    splits = open_named_splits(
        open_split, {name: folder / name for name in [train, *(n for n in subfolders if n != train)]}
    )
    count_skipped(splits.train, "files outside of the splits", files)
    return splits


def list_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of sub-folders and of files in a folder, without hidden ones and TOOL_FOLDERS."""
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"data: cannot read the folder {folder} ({error.strerror or error})") from error
    return sorted(name for name, is_dir in visible if is_dir), sorted(name for name, is_dir in visible if not is_dir)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in TOOL_FOLDERS


def list_split_files(folder: Path, suffix: str | tuple[str, ...]) -> dict[str, list[str]]:
    """Return the files of a folder with this suffix by split: "train", and "test", "val" ... where there are any.

    The files of a split lie in a sub-folder with its name, or their names start with it. The result is empty if the
    folder is no dataset of such files: it has none, or other sub-folders, or images in greater number.

    Raises InputError if there are as many images as files with the suffix.
    """
    try:
        subfolders, _ = list_entries(folder)
        if any(split_word(name) not in (*TRAIN_NAMES, *TEST_NAMES) for name in subfolders):
            return {}
        listed = {"": list_entries(folder)[1]} | {name: list_entries(folder / name)[1] for name in subfolders}
    except InputError:
        return {}
    matching = {name: [file for file in files if file.endswith(suffix)] for name, files in listed.items()}
    if any(name and not files for name, files in matching.items()):  # train/ and val/ hold files of another format
        return {}
    paths = {str(folder / name / file): name for name, files in matching.items() for file in files}
    images = [file for files in listed.values() for file in files if is_image(file)]
    if not paths or len(images) > len(paths):
        return {}
    if len(images) == len(paths):
        raise InputError(
            f"data: {folder} has {len(images)} images ({images[0]}, ...) and {len(paths)} files {suffix} "
            f"({Path(next(iter(paths))).name}, ...), expected one kind; give the path of the file, or move the others"
        )
    splits: dict[str, list[str]] = {}
    for path, subfolder in paths.items():
        prefixes = [split_word(prefix) for prefix in (subfolder, re.split(r"[-_.]", Path(path).name)[0])]
        split = next((prefix for prefix in prefixes if prefix in (*TRAIN_NAMES, *TEST_NAMES)), "train")
        splits.setdefault("train" if split in TRAIN_NAMES else split, []).append(path)
    return splits


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def refuse_output_within(data: DataLike, out: Path) -> None:
    """Raise InputError if an image that is written to ``out`` would be read as an image of the folder ``data``."""
    if not isinstance(data, str | os.PathLike):
        return
    folder = Path(data).expanduser()
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"out: {out} is within {data} and would be read as one of its images; choose another folder")


def list_files(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return sorted relative paths of files at any depth that are not hidden, and the paths of folders that are skipped
    by kind."""
    paths: list[str] = []
    errors: list[OSError] = []
    repeated: list[str] = []
    root = os.fspath(folder)
    for parent, files in walk_folders(root, errors.append, repeated.append):
        relative = parent[len(root) :].lstrip(os.sep)
        paths += [os.path.join(relative, f) for f in files]
    if errors and not paths:
        raise InputError(f"data: cannot read the folder {errors[0].filename} ({errors[0].strerror})")
    skipped = {
        "unreadable folders": [str(error.filename) for error in errors],
        "links to folders read before": repeated,
    }
    return sorted(paths), skipped


def walk_folders(
    root: str,
    onerror: Callable[[OSError], None] | None = None,
    onrepeat: Callable[[str], None] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below ``root``, once even if several links lead to it, and its files, without hidden ones.

    Links are followed after all folders, so that an image has the path without links where there is one."""
    visited: set[str] = set()
    pending = [root]
    while pending:
        links: list[str] = []
        for start in pending:
            for parent, folders, files in os.walk(start, onerror=onerror):
                real = os.path.realpath(parent)
                if real in visited:
                    folders.clear()
                    if onrepeat:
                        onrepeat(parent)
                    continue
                visited.add(real)
                folders[:] = sorted(f for f in folders if not is_hidden(f))
                links += [path for f in folders if os.path.islink(path := os.path.join(parent, f))]
                yield parent, [f for f in files if not is_hidden(f)]
        pending = links


def _open_split(dataset_folder: Path, folder: Path, classes: list[str] | None) -> FileDataset:
    files, skipped = list_files(folder)
    names = [f for f in files if is_image(f)]
    if not names:
        raise InputError(f"data: no image in {folder} ({', '.join(sorted(EXTENSIONS))}, at any depth)")
    location = "the folder itself" if folder == dataset_folder else f"{folder.relative_to(dataset_folder)}/"
    dataset = FileDataset(dataset_folder.name, folder, names)
    count_skipped(dataset, "files that are no images", (f for f in files if not is_image(f)))
    for kind, paths in skipped.items():
        count_skipped(dataset, kind, paths)
    if loose := [name for name in names if os.sep not in name]:
        dataset.layout = f"images in {location}" + (
            f", sub-folders are no classes because {len(loose):,} images lie beside them"
            if len(loose) < len(names)
            else ""
        )
        return dataset
    dataset.layout = f"a class per sub-folder of {location}"
    folder_names = [name.split(os.sep, 1)[0] for name in names]
    # in alphabetical order even if they are numbers, like torchvision's ImageFolder
    set_labels(dataset, folder_names, classes or sorted(set(folder_names)))
    return dataset
