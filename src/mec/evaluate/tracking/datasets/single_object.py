"""Single targets in boxes, in the folders of OTB (Wu 2015), GOT-10k (Huang 2019) and LaSOT (Fan 2019).

All three count pixels from 1: OTB by its Matlab code, GOT-10k (got-10k/toolkit, issue 6) and LaSOT
(HengLan/LaSOT_Evaluation_Toolkit, issue 14) by what their authors say.
"""

from __future__ import annotations

import difflib
import json
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
from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.tracking.datasets.box_text import FIRST, read_rows, read_text, said, without_area
from mec.evaluate.tracking.sequences import Boxes, BoxSequence, ImageFrames, SequenceError, SequenceLoaders, image_size

FORMS = (
    "folders with images in img and groundtruth_rect.txt (OTB) or groundtruth.txt (LaSOT), or with images and "
    "groundtruth.txt (GOT-10k), or one of them"
)
TRUTH = re.compile(r"groundtruth(?:_rect(?:\.(\d+))?)?\.txt")
LISTS = ("attr_list.txt", "attrlist.txt", "tb_100.txt", "tb_50.txt", "cvpr13.txt")
"""Of OTB, beside the sequences or in ``anno``: a name and its attributes a line."""
FRAMES = {
    "David": (300, 770), "Diving": (1, 215), "Football1": (1, 74), "Freeman3": (1, 460), "Freeman4": (1, 283),
    "Tiger1": (6, 354),
}  # fmt: skip
"""Of OTB's sequences with more images than boxes, the first and the last that have one."""
LEFT_OUT = {"Tiger1": (354, 5)}
"""Rows of a truth that has more than OTB's evaluation uses (its initOmit), and how many it leaves out at the start."""
WITHOUT_AREA = {
    "Board": 698, "Twinnings": 472, "lion-5": 553, "lizard-16": 322, "microphone-6": 1108, "person-7": 2111,
    "pool-4": 146, "tank-17": 627, "tiger-6": 118,
}  # fmt: skip
"""Lines of OTB's and LaSOT's published truth that are no box; those frames do not count."""
NEVER_FILLED = "Human4-1"
"""The target of OTB whose published truth is an empty file: Human4-2 is the one to follow."""
UNSEEN = ("absence.label", "full_occlusion.txt", "out_of_view.txt")
"""GOT-10k's and LaSOT's files that say with 1 where the target is not to be seen."""
GOT_RATE = 10.0
"""GOT-10k's frames a second."""


@dataclass(frozen=True)
class Target:
    """One to follow: the folder of its sequence, the file of its boxes, the folder of the images."""

    name: str
    folder: Path
    truth: Path
    images: Path


def open_box_sequences(
    data: str | os.PathLike[str], names: Sequence[str] | None = None
) -> SequenceLoaders[BoxSequence]:
    """Sequences by name; two targets in one video are two of them, as Jogging-1 and Jogging-2.

    Frames where GOT-10k's or LaSOT's own labels say that the target is not to be seen have NaN in ``truth``. Of OTB's
    sequences those frames are taken that its evaluation has, as David's 300 to 770 and Tiger1's 6 to 354.

    Args:
        data: folders as OTB, GOT-10k (one of its parts) or LaSOT has them, at most two deep; or one sequence's.
        names: only these, in this order.

    Raises:
        InputError: no such folder, no sequences, two of one name, several parts, or an unknown name.
    """
    path = Path(data).expanduser()
    if not path.is_dir():
        raise InputError(f"data: {path} is {'no folder' if path.exists() else 'not there'}; expected {FORMS}")
    found: dict[str, Target] = {}
    folders = _sequences(path)
    for target in (one for folder in folders for one in _targets(folder)):
        if (other := found.setdefault(target.name, target)) is not target:
            raise InputError(f"data: {path} has {target.name} twice, in {other.folder} and {target.folder}")
    if not found:
        raise InputError(f"data: no sequence in {path}; expected {FORMS}")
    if names is not None and not names:
        raise InputError("sequences: expected at least one")
    for name in names or ():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.5) or list(found)[:3]
            raise InputError(f"sequences: no sequence of {path} is called {name!r}; did you mean {', '.join(near)}?")
    listed = _listed(path.absolute().parent if folders == [path] else path)
    return {name: partial(_load, found[name], listed) for name in (found if names is None else names)}


def _sequences(path: Path) -> list[Path]:
    if _is_sequence(path):
        return [path]
    inner = _folders(path)
    parts = [folder for folder in inner if (folder / "list.txt").is_file()]
    if len(parts) > 1:
        raise InputError(f"data: {path} has the parts {', '.join(part.name for part in parts)}; expected one of them")
    found = [f for one in inner for f in ([one] if _is_sequence(one) else filter(_is_sequence, _folders(one)))]
    for part in [*parts, path]:
        _remark_absent(part)
    return found


def _folders(path: Path) -> list[Path]:
    # "__MACOSX" has the names of all sequences and none of their images
    return [path / n for n in _names(path) if (path / n).is_dir() and not n.startswith((".", "__"))]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        log(f"{folder} may not be read and is passed over")
        return []


def _is_sequence(folder: Path) -> bool:
    # one with images that lost its truth shall be told, not passed over
    return (folder / "img").is_dir() or any(TRUTH.fullmatch(name) for name in _names(folder))


def _remark_absent(part: Path) -> None:
    """Say which sequences GOT-10k's list of this part names in vain."""
    file = part / "list.txt"
    listed = file.read_text(errors="replace").splitlines() if file.is_file() else []
    absent = [name for name in filter(None, map(str.strip, listed)) if not (part / name).is_dir()]
    if absent and len(absent) < len(listed):
        log(f"{len(absent):,} of {len(listed):,} sequences in {file} are not there, the first is {absent[0]}")


def _targets(folder: Path) -> list[Target]:
    base = Path(os.path.abspath(folder)).name  # of "." too, and a link's own
    plain: Path | None = None
    numbered: dict[str, Path] = {}
    for name in _names(folder):
        if match := TRUTH.fullmatch(name):
            if match[1]:
                numbered[f"{base}-{match[1]}"] = folder / name
            else:
                plain = folder / name
    if numbered and plain:  # where both are, OTB's distributions have the first target's boxes a second time
        numbered.setdefault(f"{base}-1", plain)
    if NEVER_FILLED in numbered and not numbered[NEVER_FILLED].read_bytes().strip():
        del numbered[NEVER_FILLED]
    truths = numbered or {base: plain or folder / "groundtruth_rect.txt"}
    images = folder / "img" if (folder / "img").is_dir() else folder
    return [Target(name, folder, file, images) for name, file in sorted(truths.items())]


def _load(target: Target, listed: dict[str, tuple[str, ...]]) -> BoxSequence:
    rows = read_rows(target.truth)
    files = _images(target, len(rows))
    unseen = _unseen(target, len(rows))
    wrong = ~unseen & without_area(rows)
    if (line := WITHOUT_AREA.get(target.name, 0)) and line <= len(rows) and wrong[line - 1]:
        wrong[line - 1], unseen[line - 1] = False, True
    if wrong.any():
        _fail(target, rows, int(wrong.argmax()), "a finite box with an area")
    boxes = rows - FIRST
    size = image_size(files[0])
    for i in np.flatnonzero(~unseen & _outside(boxes, size)).tolist():
        own = image_size(files[i])  # which changes in some of GOT-10k's videos
        if _outside(boxes[i : i + 1], own).any():
            _fail(target, rows, i, f"a box within the image of {own[1]} x {own[0]} pixels")
    count, ignored_files = LEFT_OUT.get(target.name, (0, 0))
    kept = slice(ignored_files if len(rows) == count else 0, None)
    boxes[unseen] = np.nan
    if unseen[kept][0]:
        raise SequenceError(f"{target.truth}: the target is not to be seen in the first frame, {files[kept][0]}")
    rate = GOT_RATE if target.images == target.folder else ImageFrames.rate
    return BoxSequence(target.name, ImageFrames(files[kept], rate), boxes[kept], _attributes(target, listed))


def _fail(target: Target, rows: Boxes, row: int, expected: str) -> NoReturn:
    raise SequenceError(f"{target.truth}, line {row + 1}: expected {expected}, got {said(rows[row])}")


def _images(target: Target, count: int) -> tuple[Path, ...]:
    """One for each row of the truth."""
    files = _numbered(target.images)
    if not files:
        raise SequenceError(f"{target.images} has no numbered images")
    if count == 1 < len(files) and target.truth.name == "groundtruth.txt":
        raise SequenceError(
            f"{target.truth} has a box for the first frame alone, as GOT-10k's test part: only its server scores that"
        )
    first, last = min(files), max(files)
    known = FRAMES.get(target.name) or _configured(target.folder)
    if known and len(files) != count:
        first, last = known
    frames = last - first + 1
    absent = frames - sum(first <= number <= last for number in files)
    if absent > 0:
        missing = next(number for number in range(first, last + 1) if number not in files)
        raise SequenceError(
            f"{target.images} lacks {absent:,} of the frames {first} to {last}, the first is number {missing}"
        )
    if frames != count:
        raise SequenceError(
            f"{target.truth} has {count:,} boxes for {frames:,} frames, {first} to {last} in {target.images}"
        )
    return tuple(files[number] for number in range(first, last + 1))


def _numbered(folder: Path) -> dict[int, Path]:
    try:
        names = [n for n in os.listdir(folder) if not n.startswith(".") and Path(n).suffix.lower() in EXTENSIONS]
    except OSError as error:
        raise SequenceError(f"{folder}: {error.strerror or error}") from error
    pure = [name for name in names if re.fullmatch(r"[0-9]+", Path(name).stem)]
    files: dict[int, Path] = {}
    for name in sorted(pure or names):
        if match := re.search(r"[0-9]+$", Path(name).stem):
            other = files.setdefault(int(match[0]), folder / name)
            if other.name != name:
                raise SequenceError(f"{folder} has frame {int(match[0])} twice, {other.name} and {name}")
    return files


def _unseen(target: Target, count: int) -> NDArray[np.bool_]:
    """(count,) flags of frames without the target."""
    unseen = np.zeros(count, bool)
    for file in (target.folder / name for name in UNSEEN):
        if not file.is_file():
            continue
        words = re.findall(r"[^,\s]+", read_text(file))
        if len(words) != count or set(words) - {"0", "1"}:
            raise SequenceError(f"{file}: expected {count:,} times 0 or 1, a box of {target.truth.name} each")
        unseen |= np.array(words) == "1"
    return unseen


def _outside(boxes: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Wholly, of images of this height and width."""
    return np.asarray((boxes[:, :2] >= size[::-1]).any(axis=1) | (boxes[:, :2] + boxes[:, 2:] <= 0).any(axis=1))


def _attributes(target: Target, listed: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    file = target.folder / "attrs.txt"
    own = file.read_text(errors="replace") if file.is_file() else str(_config(target.folder).get("attributes", ""))
    base = Path(os.path.abspath(target.folder)).name
    return _words(own) or listed.get(target.name) or listed.get(base) or ()


def _listed(path: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for file in (path / inner / name for inner in ("", "anno") for name in LISTS):
        for line in file.read_text(errors="replace").splitlines() if file.is_file() else ():
            name, _, rest = line.strip().partition("\t")
            found.setdefault(name, _words(rest))
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"\b[A-Z]{2,4}\b", text)))


def _configured(folder: Path) -> tuple[int, int] | None:
    first, last = (_config(folder).get(key) for key in ("startFrame", "endFrame"))
    return (first, last) if isinstance(first, int) and isinstance(last, int) else None


def _config(folder: Path) -> dict[str, Any]:
    """OTB's json of a sequence; nothing where there is none or it is damaged, for all that matters stands elsewhere."""
    try:
        config = json.loads((folder / "cfg.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
