"""Frames of a MOTChallenge sequence, with its seqinfo.ini."""

from __future__ import annotations

import configparser
import logging
import math
from pathlib import Path

from mec.data.decode import EXTENSIONS
from mec.evaluate.tracking.sequences import ImageFrames, SequenceError, read_frame

logger = logging.getLogger("mec")

DEFAULT_FRAME_RATE = 30.0


def read_frames(folder: Path) -> tuple[ImageFrames, tuple[int, int]]:
    """Return the frames 1, 2, ... of a sequence, and their height and width.

    The images are in the folder imDir of seqinfo.ini, or img1, and have the extension imExt, or that of any image
    format. A number of images other than seqLength is logged, and images after seqLength are ignored.

    Raises:
        SequenceError: there are no images, a frame is missing, or seqinfo.ini disagrees with the images.
    """
    info = _read_info(folder / "seqinfo.ini")
    numbered = _numbered_files(folder / info.get("imdir", "img1"), info.get("imext"))
    count = int(_number(folder, info, "seqlength", len(numbered)))
    if count != len(numbered):
        logger.info(
            f"{folder.name}: {len(numbered):,} frames exist, {count:,} are in seqinfo.ini; the smaller number is used"
        )
    files = tuple(numbered[number] for number in sorted(numbered)[:count])
    height, width = read_frame(files[0]).shape[:2]
    expected = tuple(int(_number(folder, info, key, side)) for key, side in (("imheight", height), ("imwidth", width)))
    if expected != (height, width):
        raise SequenceError(f"{files[0]}: expected {expected[1]}x{expected[0]} from seqinfo.ini, got {width}x{height}")
    return ImageFrames(files, _number(folder, info, "framerate", DEFAULT_FRAME_RATE)), (height, width)


def _read_info(file: Path) -> dict[str, str]:
    """Return the values of seqinfo.ini by lower-case key; empty if the file does not exist."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file, encoding="utf-8-sig")
        return {key: value.strip() for key, value in parser["Sequence"].items()} if parser.sections() else {}
    except (configparser.Error, UnicodeDecodeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise SequenceError(f"{file}: expected [Sequence] and lines of key=value ({reason})") from error


def _number(folder: Path, info: dict[str, str], key: str, default: float) -> float:
    text = info.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)) or (key != "framerate" and value != int(value)):
        raise SequenceError(f"{folder / 'seqinfo.ini'}: {key}: expected a number above 0, got {text!r}")
    return value


def _numbered_files(folder: Path, extension: str | None) -> dict[int, Path]:
    suffixes = {f".{extension.lstrip('.').lower()}"} if extension else EXTENSIONS
    if not folder.is_dir():
        raise SequenceError(f"no folder of images {folder}")
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in suffixes:
            continue
        if not file.stem.isdecimal():
            raise SequenceError(f"{file}: expected a frame number as name, such as 000001{file.suffix}")
        if int(file.stem) in files:
            raise SequenceError(f"{file}: frame {int(file.stem)} exists twice, also as {files[int(file.stem)].name}")
        files[int(file.stem)] = file
    if not files:
        raise SequenceError(f"no image in {folder}{f' with the extension {extension}' if extension else ''}")
    last = max(files)
    missing = [number for number in range(1, last) if number not in files]
    if missing:
        raise SequenceError(
            f"{folder}: expected frames 1, 2, ... without gaps, but {len(missing):,} of the frames before {last} are "
            f"missing, the first is {missing[0]}"
        )
    if 0 in files:
        raise SequenceError(f"{folder}: expected frames 1, 2, ... without gaps, got frame 0")
    return files
