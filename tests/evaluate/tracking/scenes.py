"""Short videos with exact truth: pieces of photographs that move over another photograph, and hide each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from sklearn.datasets import load_sample_image

from mec.evaluate.tracking.sequences import Frame, FrameObjects

JOINTS = {
    "right_ankle": (0.38, 0.96), "right_knee": (0.38, 0.74), "right_hip": (0.38, 0.52), "left_hip": (0.62, 0.52),
    "left_knee": (0.62, 0.74), "left_ankle": (0.62, 0.96), "right_wrist": (0.2, 0.5), "right_elbow": (0.2, 0.36),
    "right_shoulder": (0.28, 0.2), "left_shoulder": (0.72, 0.2), "left_elbow": (0.8, 0.36), "left_wrist": (0.8, 0.5),
    "head_bottom": (0.5, 0.16), "nose": (0.5, 0.08), "head_top": (0.5, 0.01),
}  # fmt: skip
"""PoseTrack18's annotated joints in the order of ``FrameObjects``: where who stands has them, in shares of the box's sides."""
SIZE = (240, 320)
CASTS = ((221369, 190379, 516492, 1711740), (473611, 222838, 193269, 1218065))
"""People of coco128's train part by the numbers of their annotations: far, behind the pole, away, near."""
PLACES = ("000000000094.jpg", "000000000626.jpg")
BLOBS = (((600, 230), (26, 58)), ((200, 190), (24, 60)), ((425, 215), (22, 48)), ((200, 265), (58, 88)))
"""In scikit-learn's photograph of a pagoda: centers (x, y) and half sides, in the order of a cast."""


@dataclass(frozen=True)
class Cutout:
    """A piece of a photograph; its mask touches all four edges.

    image: (h, w, 3).
    mask: (h, w), what of it belongs to the piece.
    """

    image: Frame
    mask: NDArray[np.bool_]

    def resized(self, height: int) -> Cutout:
        width = max(1, round(self.mask.shape[1] * height / self.mask.shape[0]))
        image = Image.fromarray(self.image).resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(self.mask).resize((width, height), Image.Resampling.NEAREST)
        return cut(np.asarray(image), np.asarray(mask))

    def joints(self) -> NDArray[np.float64]:
        """(15, 2) x, y of JOINTS, each at the pixel of the mask that is nearest to where it should be."""
        height, width = self.mask.shape
        _, (rows, columns) = distance_transform_edt(~self.mask, return_indices=True)
        x, y = (np.array(list(JOINTS.values())) * (width - 1, height - 1)).round().astype(int).T
        return np.stack([columns[y, x], rows[y, x]], 1).astype(float)


@dataclass(frozen=True)
class Scene:
    """What is to be seen in ``frames``; objects are in order, those behind first.

    visible: (objects, frames, h, w), which pixels are of the object: of one at most.
    boxes: (objects, frames, 4) left, top, width, height, whether or not it is hidden or beyond the image's edge.
    shares: (objects, frames), of the object that is visible.
    poses: (objects, frames, 15, 3) x, y and whether the joint is visible, 1 or 0; columns and rows count from 0.
    """

    frames: list[Frame]
    visible: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    shares: NDArray[np.float64]
    poses: NDArray[np.float64]

    def found(self, least: float = 0.3) -> tuple[FrameObjects, ...]:
        """Of each frame, the objects of which more than ``least`` is visible; ids count from 1."""
        return tuple(self._found(t, np.flatnonzero(self.shares[:, t] > least)) for t in range(len(self.frames)))

    def _found(self, t: int, kept: NDArray[np.int64]) -> FrameObjects:
        masks = [coco_mask.encode(np.asfortranarray(self.visible[i, t], np.uint8)) for i in kept]
        return FrameObjects(self.boxes[kept, t], np.ones(len(kept)), kept + 1, masks, self.poses[kept, t])


def cut(image: Frame, mask: NDArray[np.bool_]) -> Cutout:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    inner = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cutout(image[inner], mask[inner])


def make_scene(
    objects: Sequence[Cutout],
    background: Frame,
    paths: NDArray[np.float64],
    scales: NDArray[np.float64] | None = None,
    cover: NDArray[np.bool_] | None = None,
) -> Scene:
    """A video.

    Args:
        objects: those behind first; they are put at whole pixels.
        background: (h, w, 3).
        paths: (objects, frames, 2) x, y of their middles.
        scales: (objects, frames) of their heights.
        cover: (h, w), where the background is in front of everything.
    """
    count, length = paths.shape[:2]
    size = background.shape[:2]
    free = np.ones(size, bool) if cover is None else ~cover
    frames = [background.copy() for _ in range(length)]
    visible = np.zeros((count, length, *size), bool)
    boxes, shares = np.zeros((count, length, 4)), np.zeros((count, length))
    poses = np.zeros((count, length, len(JOINTS), 3))
    for t in range(length):
        whole = np.zeros(count)
        for i, one in enumerate(objects):
            scale = 1.0 if scales is None else scales[i, t]
            now = one if scale == 1 else one.resized(round(scale * one.mask.shape[0]))
            height, width = now.mask.shape
            left, top = np.floor(paths[i, t] - (width / 2, height / 2) + 0.5).astype(int)
            outer, inner = _meeting((top, left), (height, width), size)
            here = np.zeros(size, bool)
            here[outer] = now.mask[inner]
            here &= free
            frames[t][here] = now.image[inner][here[outer]]
            visible[:i, t] &= ~here
            visible[i, t], whole[i] = here, now.mask.sum()
            boxes[i, t] = left, top, width, height
            poses[i, t, :, :2] = now.joints() + np.array([left, top])
        shares[:, t] = visible[:, t].sum(axis=(1, 2)) / whole
    return Scene(frames, visible, boxes, shares, _seen(poses, visible))


def _seen(poses: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Joints are visible where their object is."""
    height, width = visible.shape[2:]
    x, y = np.moveaxis(poses[..., :2].astype(int), -1, 0)
    within = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    i, t, _ = np.nonzero(within)
    poses[within, 2] = visible[i, t, y[within], x[within]]
    return poses


def _meeting(corner: Sequence[int], sides: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], ...]:
    """The part that is in the image, in the image's rows and columns and in the piece's."""
    starts = [min(max(start, 0), full) for start, full in zip(corner, size, strict=True)]
    ends = [max(min(a + n, full), start) for a, n, full, start in zip(corner, sides, size, starts, strict=True)]
    outer = tuple(map(slice, starts, ends))
    inner = tuple(slice(a - c, b - c) for a, b, c in zip(starts, ends, corner, strict=True))
    return outer, inner


def story(cast: Sequence[Cutout], background: Frame, length: int = 40, size: tuple[int, int] = SIZE) -> Scene:
    """Four in a street: the near one hides the far one for a while, one goes behind a pole, one leaves and comes back.

    The pole is a strip from the middle of the background.
    """
    height, width = size
    steps = np.linspace(0, 1, length)
    far, behind, away, near = (one.resized(round(share * height)) for one, share in zip(cast, SHARES, strict=True))
    x = np.stack([
        0.78 - 0.46 * steps,
        0.06 + 0.38 * steps,
        np.interp(steps, [0, 0.4, 0.6, 1], [0.89, 1.13, 1.13, 0.89]),
        0.48 + 0.13 * steps,
    ])  # fmt: skip
    feet = np.array([0.76, 0.88, 0.92, 1.0]) * height
    objects = (far, behind, away, near)
    y = np.stack([np.full(length, foot - one.mask.shape[0] / 2) for foot, one in zip(feet, objects, strict=True)])
    photo = np.asarray(Image.fromarray(background).resize((width, height), Image.Resampling.BOX)).copy()
    cover = np.zeros(size, bool)
    cover[:, round(0.16 * width) : round(0.3 * width)] = True
    photo[cover] = np.roll(photo, -round(0.35 * width), axis=1)[cover] // 2
    return make_scene(objects, photo, np.stack([x * width, y], 2), cover=cover)


SHARES = (0.26, 0.42, 0.45, 0.56)
"""Of the image's height that a cast has."""


def street(real_data: Path, take: int = 0) -> Scene:
    """The story with people before photographs of coco128: 320 x 240, 40 frames. There are two takes."""
    folder = real_data / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    raw = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    known = {one["id"]: one for one in raw["annotations"]}
    files = {one["id"]: folder / "train2017" / one["file_name"] for one in raw["images"]}
    cast = []
    for number in CASTS[take]:
        image = np.asarray(Image.open(files[known[number]["image_id"]]).convert("RGB"))
        polygons = coco_mask.frPyObjects(known[number]["segmentation"], *image.shape[:2])
        cast.append(cut(image, coco_mask.decode(coco_mask.merge(polygons)).astype(bool)))
    place = np.asarray(Image.open(folder / "train2017" / PLACES[take]).convert("RGB"))
    return story(cast, place)


def garden(length: int = 40, size: tuple[int, int] = SIZE) -> Scene:
    """The story with round pieces of a pagoda before a flower, photographs that come with scikit-learn."""
    pagoda = load_sample_image("china.jpg")
    return story([blob(pagoda, *where, seed) for seed, where in enumerate(BLOBS)],
                 load_sample_image("flower.jpg"), length, size)  # fmt: skip


def blob(image: Frame, center: tuple[int, int], half: tuple[int, int], seed: int) -> Cutout:
    """An ellipse with a wavy edge."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    x, y = (columns - center[0]) / half[0], (rows - center[1]) / half[1]
    angle = np.arctan2(y, x)
    waves = sum(0.06 * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    return cut(image, np.hypot(x, y) < 1 - 0.15 + waves)
