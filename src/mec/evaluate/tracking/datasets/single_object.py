"""Reader of single-object tracking datasets: OTB (Wu 2015), GOT-10k (Huang 2019) and LaSOT (Fan 2019).

All three count pixels from 1: OTB in its Matlab code, GOT-10k (got-10k/toolkit, issue 6) and LaSOT
(HengLan/LaSOT_Evaluation_Toolkit, issue 14) according to their authors. ``single_object_boxes`` reads and writes the
box files.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.datasets.single_object_boxes import (
    ORIGIN,
    format_box,
    invalid_boxes,
    read_rows,
    read_text,
)
from mec.evaluate.tracking.sequences import Boxes, BoxSequence, ImageFrames, SequenceError, SequenceLoaders, image_size

logger = logging.getLogger("mec")

FORMATS = (
    "folders with images in img and groundtruth_rect.txt (OTB) or groundtruth.txt (LaSOT), or with images and "
    "groundtruth.txt (GOT-10k), or one such folder"
)
GROUND_TRUTH_FILE = re.compile(r"groundtruth(?:_rect(?:\.(\d+))?)?\.txt")
ATTRIBUTE_LISTS = ("attr_list.txt", "attrlist.txt", "tb_100.txt", "tb_50.txt", "cvpr13.txt")
"""OTB's lists, next to the sequences or in ``anno``: a name and its attributes per line."""
ANNOTATED_FRAMES = {
    "David": (300, 770), "Diving": (1, 215), "Football1": (1, 74), "Freeman3": (1, 460), "Freeman4": (1, 283),
    "Tiger1": (6, 354),
}  # fmt: skip
"""OTB's sequences with more images than boxes: numbers of the first and the last frame with a box."""
OMITTED_ROWS = {"Tiger1": (354, 5)}
"""Sequences whose evaluation in OTB omits the first boxes (initOmit): number of boxes, and how many are omitted."""
PUBLISHED_INVALID_LINES = {
    "Board": 698, "Twinnings": 472, "lion-5": 553, "lizard-16": 322, "microphone-6": 1108, "person-7": 2111,
    "pool-4": 146, "tank-17": 627, "tiger-6": 118,
}  # fmt: skip
"""Lines of the published ground truth of OTB and LaSOT without a valid box. These frames are not evaluated."""
EMPTY_TARGET = "Human4-1"
"""OTB's target whose published ground truth is an empty file. OTB evaluates Human4-2 instead."""
INVISIBLE_FILES = ("absence.label", "full_occlusion.txt", "out_of_view.txt")
"""Files of GOT-10k and LaSOT with a 1 for every frame in which the target is not visible."""
GOT10K_FRAME_RATE = 10.0


@dataclass(frozen=True)
class Target:
    """A target to track.

    folder: folder of the sequence.
    boxes_file: the ground truth.
    images: folder of the frames.
    """

    name: str
    folder: Path
    boxes_file: Path
    images: Path


def open_box_sequences(
    data: str | os.PathLike[str], names: Sequence[str] | None = None
) -> SequenceLoaders[BoxSequence]:
    """Return loaders of the sequences by name. Two targets in one video, such as Jogging-1 and -2, are two sequences.

    ``ground_truth`` is NaN in frames where the labels of GOT-10k or LaSOT mark the target as not visible. Of OTB's
    sequences only the frames of its evaluation are loaded, such as 300 to 770 of David and 6 to 354 of Tiger1.

    Args:
        data: folder in the layout of OTB, of one split of GOT-10k, or of LaSOT, at most two levels deep; or the folder
            of one sequence.
        names: sequences to load, in this order; None loads all.

    Raises:
        InputError: the folder does not exist or has no sequences, two sequences have the same name, there is more than
            one split, or a name is unknown.
    """
    path = Path(data).expanduser()
    if not path.is_dir():
        raise InputError(f"data: {path} {'is not a folder' if path.exists() else 'does not exist'}; expected {FORMATS}")
    targets: dict[str, Target] = {}
    folders = _sequence_folders(path)
    for target in (target for folder in folders for target in _targets(folder)):
        if (other := targets.setdefault(target.name, target)) is not target:
            raise InputError(f"data: {path} has {target.name} twice, in {other.folder} and {target.folder}")
    if not targets:
        raise InputError(f"data: no sequence in {path}; expected {FORMATS}")
    if names is not None and not names:
        raise InputError("sequences: expected at least one name")
    for name in names or ():
        if name not in targets:
            near = difflib.get_close_matches(name, targets, n=3, cutoff=0.5) or list(targets)[:3]
            raise InputError(f"sequences: {path} has no sequence {name!r}; did you mean {', '.join(near)}?")
    attributes = _read_attribute_lists(path.absolute().parent if folders == [path] else path)
    return {name: partial(_load, targets[name], attributes) for name in (targets if names is None else names)}


def _sequence_folders(path: Path) -> list[Path]:
    if _is_sequence(path):
        return [path]
    subfolders = _subfolders(path)
    splits = [folder for folder in subfolders if (folder / "list.txt").is_file()]
    if len(splits) > 1:
        names = ", ".join(split.name for split in splits)
        raise InputError(f"data: {path} has the splits {names}; expected one of them")
    folders = [
        folder
        for subfolder in subfolders
        for folder in ([subfolder] if _is_sequence(subfolder) else filter(_is_sequence, _subfolders(subfolder)))
    ]
    for split in [*splits, path]:
        _log_missing(split)
    return folders


def _subfolders(path: Path) -> list[Path]:
    # archives packed on macOS have "__MACOSX", which repeats the names of all sequences without their images
    return [path / n for n in _list_names(path) if (path / n).is_dir() and not n.startswith((".", "__"))]


def _list_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        logger.info(f"{folder} is skipped, permission denied")
        return []


def _is_sequence(folder: Path) -> bool:
    # a folder with images but without ground truth counts, so that loading it reports the missing file
    return (folder / "img").is_dir() or any(GROUND_TRUTH_FILE.fullmatch(name) for name in _list_names(folder))


def _log_missing(split: Path) -> None:
    """Log the sequences that GOT-10k's list of a split names but that have no folder."""
    file = split / "list.txt"
    names = file.read_text(errors="replace").splitlines() if file.is_file() else []
    missing = [name for name in filter(None, map(str.strip, names)) if not (split / name).is_dir()]
    if missing and len(missing) < len(names):
        logger.info(f"{len(missing):,} of {len(names):,} sequences in {file} are missing, the first is {missing[0]}")


def _targets(folder: Path) -> list[Target]:
    base = Path(os.path.abspath(folder)).name  # works for "." and keeps the name of a symbolic link
    single: Path | None = None
    numbered: dict[str, Path] = {}
    for name in _list_names(folder):
        if match := GROUND_TRUTH_FILE.fullmatch(name):
            if match[1]:
                numbered[f"{base}-{match[1]}"] = folder / name
            else:
                single = folder / name
    if numbered and single:  # where OTB's archives have both, the file without number repeats the first target
        numbered.setdefault(f"{base}-1", single)
    if EMPTY_TARGET in numbered and not numbered[EMPTY_TARGET].read_bytes().strip():
        del numbered[EMPTY_TARGET]
    files = numbered or {base: single or folder / "groundtruth_rect.txt"}
    images = folder / "img" if (folder / "img").is_dir() else folder
    return [Target(name, folder, file, images) for name, file in sorted(files.items())]


def _load(target: Target, attributes: dict[str, tuple[str, ...]]) -> BoxSequence:
    rows = read_rows(target.boxes_file)
    files = _frame_files(target, len(rows))
    invisible = _invisible_frames(target, len(rows))
    invalid = ~invisible & invalid_boxes(rows)
    if (line := PUBLISHED_INVALID_LINES.get(target.name, 0)) and line <= len(rows) and invalid[line - 1]:
        invalid[line - 1], invisible[line - 1] = False, True
    if invalid.any():
        _raise(target, rows, int(invalid.argmax()), "a finite box with an area")
    boxes = rows - ORIGIN
    size = image_size(files[0])
    for i in np.flatnonzero(~invisible & _outside(boxes, size)).tolist():
        frame_size = image_size(files[i])  # the size changes within some videos of GOT-10k
        if _outside(boxes[i : i + 1], frame_size).any():
            _raise(target, rows, i, f"a box within the image of {frame_size[1]} x {frame_size[0]} pixels")
    count, omitted = OMITTED_ROWS.get(target.name, (0, 0))
    evaluated = slice(omitted if len(rows) == count else 0, None)
    boxes[invisible] = np.nan
    if invisible[evaluated][0]:
        first = files[evaluated][0]
        raise SequenceError(f"{target.boxes_file}: the target is not visible in the first frame, {first}")
    frame_rate = GOT10K_FRAME_RATE if target.images == target.folder else ImageFrames.frame_rate
    frames = ImageFrames(files[evaluated], frame_rate)
    return BoxSequence(target.name, frames, boxes[evaluated], _attributes(target, attributes))


def _raise(target: Target, rows: Boxes, row: int, expected: str) -> NoReturn:
    raise SequenceError(f"{target.boxes_file}, line {row + 1}: expected {expected}, got {format_box(rows[row])}")


def _frame_files(target: Target, count: int) -> tuple[Path, ...]:
    """Return one image file for each of the ``count`` boxes."""
    files = _numbered_files(target.images)
    if not files:
        raise SequenceError(f"{target.images} has no numbered images")
    if count == 1 < len(files) and target.boxes_file.name == "groundtruth.txt":
        raise SequenceError(
            f"{target.boxes_file} has a box for the first frame only; only GOT-10k's server evaluates the test split"
        )
    first, last = min(files), max(files)
    annotated = ANNOTATED_FRAMES.get(target.name) or _configured_frames(target.folder)
    if annotated and len(files) != count:
        first, last = annotated
    frames = last - first + 1
    absent = frames - sum(first <= number <= last for number in files)
    if absent > 0:
        missing = next(number for number in range(first, last + 1) if number not in files)
        raise SequenceError(
            f"{target.images} lacks {absent:,} of the frames {first} to {last}, the first is number {missing}"
        )
    if frames != count:
        raise SequenceError(
            f"{target.boxes_file} has {count:,} boxes for {frames:,} frames, {first} to {last} in {target.images}"
        )
    return tuple(files[number] for number in range(first, last + 1))


def _numbered_files(folder: Path) -> dict[int, Path]:
    try:
        names = [n for n in os.listdir(folder) if not n.startswith(".") and Path(n).suffix.lower() in EXTENSIONS]
    except OSError as error:
        raise SequenceError(f"{folder}: {error.strerror or error}") from error
    digits_only = [name for name in names if re.fullmatch(r"[0-9]+", Path(name).stem)]
    files: dict[int, Path] = {}
    for name in sorted(digits_only or names):
        if match := re.search(r"[0-9]+$", Path(name).stem):
            other = files.setdefault(int(match[0]), folder / name)
            if other.name != name:
                raise SequenceError(f"{folder} has frame {int(match[0])} twice, {other.name} and {name}")
    return files


def _invisible_frames(target: Target, count: int) -> NDArray[np.bool_]:
    """Return flags (count,) of the frames in which the target is not visible."""
    invisible = np.zeros(count, bool)
    for file in (target.folder / name for name in INVISIBLE_FILES):
        if not file.is_file():
            continue
        flags = re.findall(r"[^,\s]+", read_text(file))
        if len(flags) != count or set(flags) - {"0", "1"}:
            raise SequenceError(f"{file}: expected {count:,} times 0 or 1, for each box of {target.boxes_file.name}")
        invisible |= np.array(flags) == "1"
    return invisible


def _outside(boxes: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return flags (k,) of boxes that lie entirely outside of an image of this height and width."""
    return np.asarray((boxes[:, :2] >= size[::-1]).any(axis=1) | (boxes[:, :2] + boxes[:, 2:] <= 0).any(axis=1))


def _attributes(target: Target, listed: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    file = target.folder / "attrs.txt"
    text = file.read_text(errors="replace") if file.is_file() else str(_config(target.folder).get("attributes", ""))
    base = Path(os.path.abspath(target.folder)).name
    return _parse_attributes(text) or listed.get(target.name) or listed.get(base) or ()


def _read_attribute_lists(path: Path) -> dict[str, tuple[str, ...]]:
    attributes: dict[str, tuple[str, ...]] = {}
    for file in (path / subfolder / name for subfolder in ("", "anno") for name in ATTRIBUTE_LISTS):
        for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
            name, _, rest = line.strip().partition("\t")
            attributes.setdefault(name, _parse_attributes(rest))
    return attributes


def _parse_attributes(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"\b[A-Z]{2,4}\b", text)))


def _configured_frames(folder: Path) -> tuple[int, int] | None:
    first, last = (_config(folder).get(key) for key in ("startFrame", "endFrame"))
    return (first, last) if isinstance(first, int) and isinstance(last, int) else None


def _config(folder: Path) -> dict[str, Any]:
    """Return OTB's cfg.json of a sequence; empty if missing or damaged, because other files have all that is needed."""
    try:
        config = json.loads((folder / "cfg.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
