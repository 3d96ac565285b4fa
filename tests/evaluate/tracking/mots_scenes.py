"""Small videos with masks in the layouts of MOTSChallenge and KITTI MOTS."""

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


def mask_lines(lines: Sequence[Line], end: str = "") -> str:
    rows = [f"{f} {i} {c} {HEIGHT} {WIDTH} {rle(m)['counts'].decode()}{end}\n" for f, i, c, m in lines]
    return "".join(rows)


def write_images(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"{number:06d}.png")


def write_instances(folder: Path, lines: Sequence[Line], first: int, count: int) -> None:
    """Write the same masks as 16-bit instance images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        values = np.zeros((HEIGHT, WIDTH), np.uint16)
        for frame, object_id, category, mask in lines:
            if frame == number:
                values[mask == 1] = 1000 * category + object_id % 1000
        Image.fromarray(values).save(folder / f"{number:06d}.png")


def write_motschallenge(folder: Path, lines: Sequence[Line], count: int = 3, name: str = "MOTS20-02") -> Path:
    """Write a sequence of MOTSChallenge into ``folder``/train and return its folder."""
    sequence = folder / "train" / name
    write_images(sequence / "img1", 1, count)
    (sequence / "gt").mkdir()
    (sequence / "gt" / "gt.txt").write_text(mask_lines(lines))
    info = f"[Sequence]\nname={name}\nimDir=img1\nframeRate=25\nseqLength={count}\nimExt=.png\n"
    (sequence / "seqinfo.ini").write_text(f"{info}imWidth={WIDTH}\nimHeight={HEIGHT}\n")
    return sequence


def write_kitti(folder: Path, lines: Sequence[Line], count: int = 3, name: str = "0002") -> Path:
    """Write a sequence of KITTI MOTS into ``folder`` and return its annotation file."""
    write_images(folder / "training" / "image_02" / name, 0, count)
    file = folder / "instances_txt" / f"{name}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(mask_lines(lines))
    return file
