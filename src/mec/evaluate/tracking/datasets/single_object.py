"""Reader and writer of single-object tracking datasets: OTB (Wu 2015), GOT-10k (Huang 2019) and LaSOT (Fan 2019). All
count pixels from 1 (OTB's Matlab code; got-10k/toolkit, issue 6; HengLan/LaSOT_Evaluation_Toolkit, issue 14)."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import (
    check_box_format,
    check_folder,
    frame_range,
    log_ignored,
    log_ignored_names,
    numbered_files,
    outside,
    read_optional_lines,
)
from mec.evaluate.tracking.sequences import (
    Boxes,
    BoxSequence,
    ImageFrames,
    SequenceError,
    SequenceLoaders,
    image_size,
    select_sequences,
)
from mec.files import atomic_write
from mec.text_files import NumberTable, read_numbers, read_text

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
OMITTED_ROWS = {"Tiger1": (354, 5)}  # number of boxes, and how many of the first ones OTB's evaluation omits (initOmit)
PUBLISHED_INVALID_LINES = {
    "Board": 698, "Twinnings": 472, "lion-5": 553, "lizard-16": 322, "microphone-6": 1108, "person-7": 2111,
    "pool-4": 146, "tank-17": 627, "tiger-6": 118,
}  # fmt: skip
"""Lines of the published ground truth of OTB and LaSOT without a valid box. These frames are not evaluated."""
EMPTY_TARGET = "Human4-1"  # OTB's target whose published ground truth is an empty file. OTB evaluates Human4-2 instead
INVISIBLE_FILES = ("absence.label", "full_occlusion.txt", "out_of_view.txt")
"""Files of GOT-10k and LaSOT with a 1 for every frame in which the target is not visible."""
GOT10K_FRAME_RATE = 10.0
ORIGIN = np.array([1, 1, 0, 0], np.float64)  # the upper left corner of the image is (1, 1) in the files, (0, 0) here
DECIMALS = 4


@dataclass(frozen=True)
class _Target:
    """A target to track: the folder of its sequence, its ground truth, and the folder of the frames."""

    name: str
    folder: Path
    boxes_file: Path
    images: Path
    ignored: Sequence[str] = ()  # other ground truth files in the folder


def open_box_sequences(
    data: str | os.PathLike[str], names: Sequence[str] | None = None
) -> SequenceLoaders[BoxSequence]:
    """Return loaders of the sequences by name. Two targets in one video, such as Jogging-1 and -2, are two sequences.

    ``ground_truth`` is NaN in frames where GOT-10k or LaSOT mark the target as not visible. Of OTB's sequences only the
    evaluated frames are loaded, such as 300 to 770 of David. Sequences are at most two levels deep in ``data``.
    """
    path = Path(data).expanduser()
    check_folder(path)
    targets: dict[str, _Target] = {}
    folders = _sequence_folders(path)
    for target in (target for folder in folders for target in _targets(folder)):
        if (other := targets.setdefault(target.name, target)) is not target:
            raise InputError(f"data: {path} has {target.name} twice, in {other.folder} and {target.folder}")
    if not targets:
        raise InputError(f"data: no sequence in {path}; expected {FORMATS}")
    attributes = _read_attribute_lists(path.absolute().parent if folders == [path] else path)
    selected = select_sequences(targets, names)
    layouts = sorted({_layout(target) for target in selected.values()})
    description = f"layout of {' and '.join(layouts)} in {path}"
    used = {parent for folder in folders for parent in (folder, folder.parent)}
    if others := [folder.name for folder in _subfolders(path) if folder not in used and folders != [path]]:
        description += f"; no sequences: {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}"
    loaders = {name: partial(_load, target, attributes) for name, target in selected.items()}
    return SequenceLoaders(loaders, description)


def _layout(target: _Target) -> str:
    if target.images == target.folder:
        return "GOT-10k"
    return "LaSOT" if target.boxes_file.name == "groundtruth.txt" else "OTB"


def _sequence_folders(path: Path) -> list[Path]:
    if _is_sequence(path):
        return [path]
    subfolders = _subfolders(path)
    splits = [folder for folder in subfolders if (folder / "list.txt").is_file()]
    if len(splits) > 1:
        raise InputError(f"data: {path} has the splits {', '.join(s.name for s in splits)}; expected one of them")
    for file in (split / "list.txt" for split in [*splits, path]):  # GOT-10k's list of the sequences of a split
        names = read_optional_lines(file)
        if missing := [name for name in names if not (file.parent / name).is_dir()]:
            logger.warning(
                f"{len(missing):,} of {len(names):,} sequences in {file} are missing, the first is {missing[0]}"
            )
    return [
        folder
        for subfolder in subfolders
        for folder in ([subfolder] if _is_sequence(subfolder) else filter(_is_sequence, _subfolders(subfolder)))
    ]


def _subfolders(path: Path) -> list[Path]:
    # archives packed on macOS have "__MACOSX", which repeats the names of all sequences without their images
    return [path / n for n in sorted(os.listdir(path)) if (path / n).is_dir() and not n.startswith((".", "__"))]


def _is_sequence(folder: Path) -> bool:
    # a folder with images but without ground truth counts, so that loading it reports the missing file
    return (folder / "img").is_dir() or any(GROUND_TRUTH_FILE.fullmatch(name) for name in os.listdir(folder))


def _targets(folder: Path) -> list[_Target]:
    base = Path(os.path.abspath(folder)).name  # works for "." and keeps the name of a symbolic link
    matches = [match for match in map(GROUND_TRUTH_FILE.fullmatch, sorted(os.listdir(folder))) if match]
    numbered = {f"{base}-{match[1]}": folder / match[0] for match in matches if match[1]}
    single = [folder / match[0] for match in matches if not match[1]]
    if numbered and single:  # where OTB's archives have both, the file without number repeats the first target
        numbered.setdefault(f"{base}-1", single[-1])
    if EMPTY_TARGET in numbered and not read_optional_lines(numbered[EMPTY_TARGET]):
        del numbered[EMPTY_TARGET]
    files = numbered or {base: single[-1] if single else folder / "groundtruth_rect.txt"}
    images = folder / "img" if (folder / "img").is_dir() else folder
    ignored = [match[0] for match in matches if folder / match[0] not in files.values()]
    targets = [_Target(name, folder, file, images, ignored) for name, file in sorted(files.items())]
    return [targets[0], *(replace(target, ignored=()) for target in targets[1:])]


def _load(target: _Target, attributes: dict[str, tuple[str, ...]]) -> BoxSequence:
    table = _read_boxes(target.boxes_file)
    count, config = len(table.values), _config(target.folder)
    files = _frame_files(target, count, config)
    log_ignored_names("ground truth file", target.folder.name, target.ignored)
    invisible = _invisible_frames(target, count)
    invalid = ~invisible & _invalid(table.values)
    if (line := PUBLISHED_INVALID_LINES.get(target.name, 0)) and line <= count and invalid[line - 1]:
        invalid[line - 1], invisible[line - 1] = False, True
    table.check(~invalid, "a finite box with an area")
    boxes = table.values - ORIGIN
    check_box_format(target.name, target.boxes_file, boxes[~invisible], image_size(files[0]))
    for i in np.flatnonzero(~invisible & outside(boxes, image_size(files[0]))):
        height, width = image_size(files[i])  # the size changes within some videos of GOT-10k
        if outside(boxes[i : i + 1], (height, width)).any():
            table.check(np.arange(count) != i, f"a box within the image of {width} x {height} pixels")
    rows, omitted = OMITTED_ROWS.get(target.name, (0, 0))
    omitted = omitted if count == rows else 0
    evaluated = slice(omitted, None)
    boxes[invisible] = np.nan
    if invisible[evaluated][0]:
        first = files[evaluated][0]
        raise SequenceError(f"{target.boxes_file}: the target is not visible in the first frame, {first}")
    if invisible[evaluated][1:].all():
        raise SequenceError(f"{target.boxes_file}: the target is not visible in any frame after the first")
    reasons = {"without the target": int(invisible[evaluated].sum())}
    log_ignored(target.name, count, "frames", {**reasons, "omitted by OTB": omitted}, expected=True)
    frame_rate = GOT10K_FRAME_RATE if target.images == target.folder else ImageFrames.frame_rate
    frames = ImageFrames(files[evaluated], frame_rate)
    return BoxSequence(target.name, frames, boxes[evaluated], _attributes(target, attributes, config))


def _frame_files(target: _Target, count: int, config: dict[str, Any]) -> tuple[Path, ...]:
    """Return one image file for each of the ``count`` boxes."""
    files = numbered_files(target.images)
    if count == 1 < len(files) and target.boxes_file.name == "groundtruth.txt":
        raise SequenceError(
            f"{target.boxes_file} has a box for the first frame only; only GOT-10k's server evaluates the test split"
        )
    first, last = min(files), max(files)
    start, end = ANNOTATED_FRAMES.get(target.name) or (config.get("startFrame"), config.get("endFrame"))
    if len(files) != count and isinstance(start, int) and isinstance(end, int):
        first, last = start, end
    frames = frame_range(target.images, files, first, last)
    if len(frames) != count:
        raise SequenceError(
            f"{target.boxes_file} has {count:,} boxes for {len(frames):,} frames, {first} to {last} in {target.images}"
        )
    others = {f"other than {first} to {last}": len(files) - count}
    log_ignored(target.name, len(files), "frames", others, expected=True)
    return frames


def _invisible_frames(target: _Target, count: int) -> NDArray[np.bool_]:
    """Return flags (count,) of the frames in which the target is not visible."""
    invisible = np.zeros(count, bool)
    for file in filter(Path.is_file, (target.folder / name for name in INVISIBLE_FILES)):
        flags = re.findall(r"[^,\s]+", read_text(file))
        if len(flags) != count or set(flags) - {"0", "1"}:
            raise SequenceError(f"{file}: expected {count:,} times 0 or 1, for each box of {target.boxes_file.name}")
        invisible |= np.array(flags) == "1"
    return invisible


def _attributes(target: _Target, listed: dict[str, tuple[str, ...]], config: dict[str, Any]) -> tuple[str, ...]:
    text = " ".join(read_optional_lines(target.folder / "attrs.txt")) or str(config.get("attributes", ""))
    base = Path(os.path.abspath(target.folder)).name
    return _parse_attributes(text) or listed.get(target.name) or listed.get(base) or ()


def _read_attribute_lists(path: Path) -> dict[str, tuple[str, ...]]:
    attributes: dict[str, tuple[str, ...]] = {}
    for file in (path / subfolder / name for subfolder in ("", "anno") for name in ATTRIBUTE_LISTS):
        for line in read_optional_lines(file):
            name, _, rest = line.partition("\t")
            attributes.setdefault(name, _parse_attributes(rest))
    return attributes


def _parse_attributes(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"\b[A-Z]{2,4}\b", text)))


def _config(folder: Path) -> dict[str, Any]:
    """Return OTB's cfg.json of a sequence; empty if missing or, which is logged, damaged, because other files have all
    that is needed."""
    file = folder / "cfg.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(read_text(file))
        if not isinstance(config, dict):
            raise ValueError("expected an object")
    except (ValueError, RecursionError) as error:
        logger.warning(f"{file} is ignored: {error}")
        return {}
    return config


def _read_boxes(file: Path) -> NumberTable:
    """Read left, top, width and height, 1-based pixels, with any separator."""
    table = read_numbers(file, 4)
    if not len(table.values):
        raise SequenceError(f"{file} is empty, expected a box for every frame")
    return table


def _invalid(boxes: Boxes) -> NDArray[np.bool_]:
    """Return flags (k,) of boxes that are not finite or have no area."""
    return np.asarray(~np.isfinite(boxes).all(axis=1) | ~(boxes[:, 2:] > 0).all(axis=1))


def write_boxes(folder: Path, name: str, boxes: Boxes) -> None:
    """Write boxes (frames, 4) to ``NAME.txt`` as OTB's toolkits read them: x,y,w,h per line, 1-based, four decimals.
    Compute metrics from what ``read_boxes`` returns, so that rounding is the same in a resumed run."""
    if _invalid(boxes.round(DECIMALS)).any():
        raise ValueError(f"boxes: expected finite boxes with an area for {name}")
    with atomic_write(folder / f"{name}.txt") as temporary:
        np.savetxt(temporary, boxes + ORIGIN, fmt=f"%.{DECIMALS}f", delimiter=",")


def read_boxes(folder: Path, name: str) -> Boxes:
    """Read ``NAME.txt`` of ``write_boxes`` or of another toolkit, (frames, 4); the caller checks their number."""
    table = _read_boxes(folder / f"{name}.txt")
    table.check(~_invalid(table.values), "a box with an area")
    return np.asarray((table.values - ORIGIN).round(DECIMALS))
