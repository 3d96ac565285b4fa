"""Search of the image files that a COCO JSON names: their folder, and names that are spelled otherwise."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from mec.data.decode import EXTENSIONS
from mec.errors import InputError

logger = logging.getLogger("mec")


def find_images(path: Path, names: list[str]) -> tuple[Path, list[str]]:
    """Return the folder of the images ``names`` of the JSON file ``path``, and their files relative to it. Names that
    are spelled otherwise than their files are logged. InputError if images are missing."""
    split = path.stem.removeprefix("instances_")
    candidates = dict.fromkeys([split, path.stem, *re.split(r"[-_.]", path.stem)])
    above = [path.parent.parent] if path.parent.name == "annotations" else []
    bases = [*above, path.parent]
    folders = [base / inner / name for name in candidates for base in bases for inner in ("", "images")]
    folders = [f for f in (*folders, *(base / "images" for base in bases), *bases) if f.is_dir()]
    best, files = folders[-1], dict[str, str]()
    for match in (_exact_files, _similar_files):
        for folder in folders:
            found = match(folder, names)
            if len(found) > len(files):
                best, files = folder, found
            if len(found) == len(names):
                break
        if len(files) == len(names):
            break
    if missing := [name for name in names if name not in files]:
        searched = best if files else " and ".join(dict.fromkeys(str(f) for f in folders))
        count = f"{len(missing):,} of {len(names):,} images"
        raise InputError(f"data: {count} of {path} are missing, the first is {missing[0]}; searched {searched}")
    if others := [name for name in names if files[name] != name]:
        example = f"{others[0]!r} is read as {files[others[0]]!r}"
        logger.info(f"{path.name}: {len(others):,} of {len(names):,} images are spelled otherwise in {best}: {example}")
    return best, [files[name] for name in names]


def _list_files(folder: Path, subfolders: set[str]) -> list[str]:
    """Return the files in sub-folders. Listing a folder is faster than a test per file."""
    present = [subfolder for subfolder in sorted(subfolders) if os.path.isdir(folder / subfolder)]
    return [os.path.join(subfolder, entry) for subfolder in present for entry in os.listdir(folder / subfolder)]


def _exact_files(folder: Path, names: list[str]) -> dict[str, str]:
    present = set(_list_files(folder, {os.path.dirname(name) for name in names}))
    return {name: name for name in names if name in present and posixpath.normpath(name) == name}


def _tidy(name: str) -> str:
    """Return a name without percent-encoding, with / between folders and without ./, in composed Unicode."""
    return posixpath.normpath(unicodedata.normalize("NFC", unquote(name).replace("\\", "/")))


def _without_extension(name: str) -> str:
    stem, extension = posixpath.splitext(_tidy(name).casefold())
    return stem if extension in EXTENSIONS else stem + extension


SPELLINGS: list[Callable[[str], str]] = [
    _tidy,
    lambda name: _tidy(name).casefold(),
    _without_extension,
    lambda name: posixpath.basename(_tidy(name).casefold()),  # paths of another computer
]
"""What a name and its file must have in common, from strict to loose."""


def _similar_files(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the file of each name, where both are the only ones of a spelling."""
    files = _exact_files(folder, names)
    taken = set(files)
    present = _list_files(folder, {"", *(posixpath.dirname(_tidy(name)) for name in names)})
    present = [file for file in present if os.path.splitext(file)[1].lower() in EXTENSIONS]
    for spelling in SPELLINGS:
        free_files, free_names = _only_ones(spelling, present, taken), _only_ones(spelling, names, set(files))
        new = {name: free_files[key] for key, name in free_names.items() if key in free_files}
        files |= new
        taken |= set(new.values())
    return files


def _only_ones(spelling: Callable[[str], str], names: list[str], without: set[str]) -> dict[str, str]:
    """Return spelling -> name for each spelling that a single name has."""
    spelled = {name: spelling(name) for name in names if name not in without}
    counts = Counter(spelled.values())
    return {key: name for name, key in spelled.items() if counts[key] == 1}
