"""Small videos with masks, written as MOTSChallenge and KITTI write theirs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from faster_coco_eval import mask as coco_mask
from PIL import Image

HEIGHT, WIDTH = 40, 60
Line = tuple[int, int, int, np.ndarray]
"""Frame, id, class, mask."""


def block(left: int, top: int, width: int = 8, height: int = 10) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def rle(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask))


def text(lines: Sequence[Line], end: str = "") -> str:
    parts = [f"{f} {i} {c} {HEIGHT} {WIDTH} {rle(m)['counts'].decode()}{end}\n" for f, i, c, m in lines]
    return "".join(parts)


def images(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"{number:06d}.png")


def instances(folder: Path, lines: Sequence[Line], first: int, count: int) -> None:
    """The same as images of 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        values = np.zeros((HEIGHT, WIDTH), np.uint16)
        for frame, identity, category, mask in lines:
            if frame == number:
                values[mask == 1] = 1000 * category + identity % 1000
        Image.fromarray(values).save(folder / f"{number:06d}.png")


def challenge(folder: Path, lines: Sequence[Line], count: int = 3, name: str = "MOTS20-02") -> Path:
    """One sequence of MOTSChallenge in ``folder``/train; its own folder."""
    sequence = folder / "train" / name
    images(sequence / "img1", 1, count)
    (sequence / "gt").mkdir()
    (sequence / "gt" / "gt.txt").write_text(text(lines))
    said = f"[Sequence]\nname={name}\nimDir=img1\nframeRate=25\nseqLength={count}\nimExt=.png\n"
    (sequence / "seqinfo.ini").write_text(f"{said}imWidth={WIDTH}\nimHeight={HEIGHT}\n")
    return sequence


def kitti(folder: Path, lines: Sequence[Line], count: int = 3, name: str = "0002") -> Path:
    """One sequence of KITTI MOTS in ``folder``; its annotation."""
    images(folder / "training" / "image_02" / name, 0, count)
    file = folder / "instances_txt" / f"{name}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text(lines))
    return file
