"""Short videos with exact ground truth: cutouts of photographs move over a background and occlude each other."""

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
"""PoseTrack18's annotated joints in the order of ``FrameObjects``; x, y relative to the box of an upright person."""
SIZE = (240, 320)
PERSON_IDS = ((221369, 190379, 516492, 1711740), (473611, 222838, 193269, 1218065))
"""Annotation ids of persons in coco128: far, behind the pole, leaving, near."""
BACKGROUNDS = ("000000000094.jpg", "000000000626.jpg")
"""Images of coco128."""
BLOBS = (((600, 230), (26, 58)), ((200, 190), (24, 60)), ((425, 215), (22, 48)), ((200, 265), (58, 88)))
"""Centers (x, y) and half sides of cutouts in scikit-learn's photograph of a pagoda, in the same order."""


@dataclass(frozen=True)
class Cutout:
    """A part of a photograph. Its mask touches all four edges.

    image: (h, w, 3).
    mask: (h, w), pixels of the object.
    """

    image: Frame
    mask: NDArray[np.bool_]

    def resized(self, height: int) -> Cutout:
        width = max(1, round(self.mask.shape[1] * height / self.mask.shape[0]))
        image = Image.fromarray(self.image).resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(self.mask).resize((width, height), Image.Resampling.NEAREST)
        return cut(np.asarray(image), np.asarray(mask))

    def joints(self) -> NDArray[np.float64]:
        """Return x, y (15, 2) of JOINTS, each moved to the nearest pixel of the mask."""
        height, width = self.mask.shape
        _, (rows, columns) = distance_transform_edt(~self.mask, return_indices=True)
        x, y = (np.array(list(JOINTS.values())) * (width - 1, height - 1)).round().astype(int).T
        return np.stack([columns[y, x], rows[y, x]], 1).astype(float)


@dataclass(frozen=True)
class Scene:
    """A video and its ground truth. Objects are ordered from back to front.

    visible: (objects, frames, h, w), visible pixels of the object; a pixel belongs to at most one.
    boxes: (objects, frames, 4) left, top, width, height, including occluded parts and parts outside of the image.
    visibility: (objects, frames), fraction of the object that is visible.
    poses: (objects, frames, 15, 3) x, y and whether the joint is visible, 1 or 0; columns and rows count from 0.
    """

    frames: list[Frame]
    visible: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    visibility: NDArray[np.float64]
    poses: NDArray[np.float64]

    def objects(self, min_visibility: float = 0.3) -> tuple[FrameObjects, ...]:
        """Return the objects of each frame whose visibility is above a minimum; ids count from 1."""
        return tuple(
            self._frame_objects(t, np.flatnonzero(self.visibility[:, t] > min_visibility))
            for t in range(len(self.frames))
        )

    def _frame_objects(self, t: int, indices: NDArray[np.int64]) -> FrameObjects:
        masks = [coco_mask.encode(np.asfortranarray(self.visible[i, t], np.uint8)) for i in indices]
        return FrameObjects(self.boxes[indices, t], np.ones(len(indices)), indices + 1, masks, self.poses[indices, t])


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
    """Render a video.

    Args:
        objects: from back to front; they are placed at whole pixels.
        background: (h, w, 3).
        paths: (objects, frames, 2) x, y of their centers.
        scales: (objects, frames) factors of their heights.
        cover: (h, w), pixels where the background is in front of all objects.
    """
    count, length = paths.shape[:2]
    size = background.shape[:2]
    free = np.ones(size, bool) if cover is None else ~cover
    frames = [background.copy() for _ in range(length)]
    visible = np.zeros((count, length, *size), bool)
    boxes, visibility = np.zeros((count, length, 4)), np.zeros((count, length))
    poses = np.zeros((count, length, len(JOINTS), 3))
    for t in range(length):
        areas = np.zeros(count)
        for i, cutout in enumerate(objects):
            scale = 1.0 if scales is None else scales[i, t]
            scaled = cutout if scale == 1 else cutout.resized(round(scale * cutout.mask.shape[0]))
            height, width = scaled.mask.shape
            left, top = np.floor(paths[i, t] - (width / 2, height / 2) + 0.5).astype(int)
            outer, inner = _intersection((top, left), (height, width), size)
            mask = np.zeros(size, bool)
            mask[outer] = scaled.mask[inner]
            mask &= free
            frames[t][mask] = scaled.image[inner][mask[outer]]
            visible[:i, t] &= ~mask
            visible[i, t], areas[i] = mask, scaled.mask.sum()
            boxes[i, t] = left, top, width, height
            poses[i, t, :, :2] = scaled.joints() + np.array([left, top])
        visibility[:, t] = visible[:, t].sum(axis=(1, 2)) / areas
    return Scene(frames, visible, boxes, visibility, _mark_visible_joints(poses, visible))


def _mark_visible_joints(poses: NDArray[np.float64], visible: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Set the visibility of joints to that of their pixel."""
    height, width = visible.shape[2:]
    x, y = np.moveaxis(poses[..., :2].astype(int), -1, 0)
    within = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    i, t, _ = np.nonzero(within)
    poses[within, 2] = visible[i, t, y[within], x[within]]
    return poses


def _intersection(corner: Sequence[int], sides: Sequence[int], size: Sequence[int]) -> tuple[tuple[slice, ...], ...]:
    """Return the slices of the part within the image, in the image and in the cutout."""
    starts = [min(max(start, 0), full) for start, full in zip(corner, size, strict=True)]
    ends = [max(min(a + n, full), start) for a, n, full, start in zip(corner, sides, size, starts, strict=True)]
    outer = tuple(map(slice, starts, ends))
    inner = tuple(slice(a - c, b - c) for a, b, c in zip(starts, ends, corner, strict=True))
    return outer, inner


def four_objects(cutouts: Sequence[Cutout], background: Frame, length: int = 40, size: tuple[int, int] = SIZE) -> Scene:
    """Render four objects: the near one occludes the far one, one passes behind a pole, one leaves and reappears.

    The pole is a strip copied from another part of the background.
    """
    height, width = size
    steps = np.linspace(0, 1, length)
    far, occluded, leaving, near = (
        cutout.resized(round(fraction * height)) for cutout, fraction in zip(cutouts, HEIGHTS, strict=True)
    )
    x = np.stack([
        0.78 - 0.46 * steps,
        0.06 + 0.38 * steps,
        np.interp(steps, [0, 0.4, 0.6, 1], [0.89, 1.13, 1.13, 0.89]),
        0.48 + 0.13 * steps,
    ])  # fmt: skip
    feet = np.array([0.76, 0.88, 0.92, 1.0]) * height
    objects = (far, occluded, leaving, near)
    y = np.stack([np.full(length, foot - cutout.mask.shape[0] / 2) for foot, cutout in zip(feet, objects, strict=True)])
    photo = np.asarray(Image.fromarray(background).resize((width, height), Image.Resampling.BOX)).copy()
    cover = np.zeros(size, bool)
    cover[:, round(0.16 * width) : round(0.3 * width)] = True
    photo[cover] = np.roll(photo, -round(0.35 * width), axis=1)[cover] // 2
    return make_scene(objects, photo, np.stack([x * width, y], 2), cover=cover)


HEIGHTS = (0.26, 0.42, 0.45, 0.56)
"""Heights of the objects as fractions of the height of the image."""


def street(real_data: Path, variant: int = 0) -> Scene:
    """Render the scene with persons and photographs of coco128: 320 x 240, 40 frames, in variant 0 or 1."""
    folder = real_data / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
    files = {image["id"]: folder / "train2017" / image["file_name"] for image in content["images"]}
    cutouts = []
    for number in PERSON_IDS[variant]:
        image = np.asarray(Image.open(files[annotations[number]["image_id"]]).convert("RGB"))
        polygons = coco_mask.frPyObjects(annotations[number]["segmentation"], *image.shape[:2])
        cutouts.append(cut(image, coco_mask.decode(coco_mask.merge(polygons)).astype(bool)))
    background = np.asarray(Image.open(folder / "train2017" / BACKGROUNDS[variant]).convert("RGB"))
    return four_objects(cutouts, background)


def garden(length: int = 40, size: tuple[int, int] = SIZE) -> Scene:
    """Render the scene with round cutouts of a pagoda and a flower as background, photographs of scikit-learn."""
    pagoda = load_sample_image("china.jpg")
    return four_objects([blob(pagoda, *ellipse, seed) for seed, ellipse in enumerate(BLOBS)],
                 load_sample_image("flower.jpg"), length, size)  # fmt: skip


def blob(image: Frame, center: tuple[int, int], half_sides: tuple[int, int], seed: int) -> Cutout:
    """Cut out an ellipse with a wavy edge."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    x, y = (columns - center[0]) / half_sides[0], (rows - center[1]) / half_sides[1]
    angle = np.arctan2(y, x)
    waves = sum(0.06 * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    return cut(image, np.hypot(x, y) < 1 - 0.15 + waves)
