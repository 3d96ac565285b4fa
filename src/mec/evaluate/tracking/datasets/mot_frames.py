"""The images of a sequence of MOTChallenge, and what its seqinfo.ini says of them."""

from __future__ import annotations

import configparser
import math
from pathlib import Path

from mec.data.decode import EXTENSIONS
from mec.engine.progress import log
from mec.evaluate.tracking.sequences import ImageFrames, SequenceError, read_frame

RATE = 30.0
"""Frames a second where nothing is said."""


def read_frames(folder: Path) -> tuple[ImageFrames, tuple[int, int]]:
    """The frames 1, 2 ... of a sequence and their height and width.

    They are in imDir, or img1, and end in imExt, or as any image. Those that are missing at the end are remarked on;
    so are those after seqLength, which are left out.

    Raises:
        SequenceError: none, a gap, or other images than seqinfo.ini says.
    """
    said = _said(folder / "seqinfo.ini")
    numbered = _numbered(folder / said.get("imdir", "img1"), said.get("imext"))
    count = int(_number(folder, said, "seqlength", len(numbered)))
    if count != len(numbered):
        log(f"{folder.name}: {len(numbered):,} frames are there, {count:,} in seqinfo.ini; the fewer are taken")
    files = tuple(numbered[number] for number in sorted(numbered)[:count])
    height, width = read_frame(files[0]).shape[:2]
    expected = tuple(int(_number(folder, said, key, side)) for key, side in (("imheight", height), ("imwidth", width)))
    if expected != (height, width):
        wanted = f"expected {expected[1]}x{expected[0]} from seqinfo.ini, got {width}x{height}"
        raise SequenceError(f"{files[0]}: {wanted}")
    return ImageFrames(files, _number(folder, said, "framerate", RATE)), (height, width)


def _said(file: Path) -> dict[str, str]:
    """Its values by names in small letters; none where there is no such file."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file, encoding="utf-8-sig")
        return {key: value.strip() for key, value in parser["Sequence"].items()} if parser.sections() else {}
    except (configparser.Error, UnicodeDecodeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise SequenceError(f"{file}: expected [Sequence] and lines of key=value ({reason})") from error


def _number(folder: Path, said: dict[str, str], key: str, default: float) -> float:
    text = said.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)) or (key != "framerate" and value != int(value)):
        raise SequenceError(f"{folder / 'seqinfo.ini'}: expected a number above 0 as {key}, got {text!r}")
    return value


def _numbered(folder: Path, extension: str | None) -> dict[int, Path]:
    endings = {f".{extension.lstrip('.').lower()}"} if extension else EXTENSIONS
    if not folder.is_dir():
        raise SequenceError(f"no folder of images {folder}")
    found: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in endings:
            continue
        if not file.stem.isdecimal():
            raise SequenceError(f"{file}: expected the number of a frame as name, such as 000001{file.suffix}")
        if int(file.stem) in found:
            raise SequenceError(f"{file}: frame {int(file.stem)} is there twice, as {found[int(file.stem)].name} too")
        found[int(file.stem)] = file
    if not found:
        raise SequenceError(f"no image in {folder}{f' that ends in {extension}' if extension else ''}")
    last = max(found)
    missing = [number for number in range(1, last) if number not in found]
    if missing or 0 in found:
        what = f"{len(missing):,} frames before {last} are missing, the first is {missing[0]}" if missing else "frame 0"
        raise SequenceError(f"{folder}: expected frames 1, 2 ... without gaps, got {what}")
    return found
