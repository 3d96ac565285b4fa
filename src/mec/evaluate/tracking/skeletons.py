"""Poses of PoseTrack's fifteen joints, and the mask of a person drawn from them as UniTrack does."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "head_bottom", "nose", "head_top",
)  # fmt: skip
"""Of a pose, in its order."""
TORSO = ("right_hip", "left_hip", "left_shoulder", "head_bottom", "right_shoulder")
"""Its corners, in turn."""
LIMBS = (
    ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"), ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"), ("left_shoulder", "head_bottom"), ("right_shoulder", "head_bottom"),
    ("head_bottom", "head_top"), ("left_shoulder", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
    ("right_shoulder", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
)  # fmt: skip
THINNEST, SHARE = 8, 20
"""Pixels of a limb's width, at least, and what part of the pose's larger side it is."""
NARROWEST = 10
"""Pixels of a side of a box whose joints lie in a line."""
EDGE = 0.4
"""Pixels: UniTrack's lines, of OpenCV, take what their edges touch."""
Place = tuple[int, int]
FARTHEST = 100_000
"""Pixels; joints farther away are taken to be there, where nobody sees."""


def pose_mask(pose: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(joints, 3) x, y, seen -> mask, (height, width) 0 and 1: torso filled, limbs with round ends.

    What lies outside of the image is left out; so are limbs with an unseen end, and a torso of fewer than three
    corners. The nose belongs to no limb.
    """
    places = {
        joint: (int(x), int(y))
        for joint, (x, y, seen) in zip(JOINTS, pose.clip(-FARTHEST, FARTHEST).tolist(), strict=True)
        if seen
    }
    image = Image.new("L", size[::-1])
    corners = [places[joint] for joint in TORSO if joint in places]
    if len(corners) >= 3:
        ImageDraw.Draw(image).polygon(corners, fill=1, outline=1)
    mask = np.array(image)
    limbs = [ends for ends in LIMBS if all(joint in places for joint in ends)]
    if limbs:
        side = max(np.ptp(list(places.values()), axis=0).tolist())
        for start, end in limbs:
            _draw_limb(mask, places[start], places[end], ceil(max(THINNEST, side // SHARE) / 2))
    return mask


def _draw_limb(mask: NDArray[np.uint8], start: Place, end: Place, radius: int) -> None:
    """All pixels so near to the line between two; Pillow's wide lines are narrower where they slant."""
    left, top = (max(min(ends) - radius, 0) for ends in zip(start, end, strict=True))
    right, bottom = (max(max(ends) + radius + 1, 0) for ends in zip(start, end, strict=True))
    window = mask[top:bottom, left:right]
    y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    along, down = end[0] - start[0], end[1] - start[1]
    # of the way, where the line is nearest
    share = (((x - start[0]) * along + (y - start[1]) * down) / max(1, along**2 + down**2)).clip(0, 1)
    window[(x - start[0] - share * along) ** 2 + (y - start[1] - share * down) ** 2 <= (radius + EDGE) ** 2] = 1


def pose_boxes(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, joints, 3) poses, each with a joint that is seen -> (k, 4) left, top, width, height around those joints."""
    seen = poses[..., 2:] > 0
    low = np.where(seen, poses[..., :2], np.inf).min(axis=1, initial=np.inf)
    high = np.where(seen, poses[..., :2], -np.inf).max(axis=1, initial=-np.inf)
    sides = high - low
    return np.concatenate([low, np.where(sides > 0, sides, NARROWEST)], axis=1)
