"""Folders of small images in the layouts of OTB, GOT-10k and LaSOT."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.sequences import BoxSequence, ImageFrames

IMAGE_SIZE = (40, 30)


def encode_image(size: tuple[int, int] = IMAGE_SIZE, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, image_format)
    return buffer.getvalue()


IMAGE = encode_image()


def write_frames(folder: Path, numbers: Iterable[int], name: str = "{:04d}.jpg", image: bytes = IMAGE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(image)


def write_otb_sequence(
    folder: Path, text: str = "1,1,5,5\n2,1,5,5\n3,1,5,5\n", numbers: Iterable[int] = range(1, 4)
) -> Path:
    write_frames(folder / "img", numbers)
    (folder / "groundtruth_rect.txt").write_text(text)
    return folder


def load_only(data: Path) -> BoxSequence:
    (load,) = open_box_sequences(data).values()
    return load()


def frame_numbers(sequence: BoxSequence) -> list[int]:
    assert isinstance(sequence.frames, ImageFrames)
    return [int(re.sub(r"\D", "", file.stem)) for file in sequence.frames.files]


def box_lines(count: int) -> str:
    return "1,1,5,5\n" * count
