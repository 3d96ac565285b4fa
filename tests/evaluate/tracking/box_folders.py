"""Folders of small images in the forms of OTB, GOT-10k and LaSOT, for the tests."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.sequences import BoxSequence, ImageFrames

SIDES = (40, 30)


def encoded(sides: tuple[int, int] = SIDES, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", sides).save(buffer, form)
    return buffer.getvalue()


IMAGE = encoded()


def frames(folder: Path, numbers: Iterable[int], name: str = "{:04d}.jpg", image: bytes = IMAGE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(image)


def otb(folder: Path, text: str = "1,1,5,5\n2,1,5,5\n3,1,5,5\n", numbers: Iterable[int] = range(1, 4)) -> Path:
    frames(folder / "img", numbers)
    (folder / "groundtruth_rect.txt").write_text(text)
    return folder


def only(data: Path) -> BoxSequence:
    (load,) = open_box_sequences(data).values()
    return load()


def numbers(one: BoxSequence) -> list[int]:
    assert isinstance(one.frames, ImageFrames)
    return [int(re.sub(r"\D", "", file.stem)) for file in one.frames.files]


def rows(count: int) -> str:
    return "1,1,5,5\n" * count
