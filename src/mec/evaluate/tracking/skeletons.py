"""PoseTrack's fifteen joints, boxes of poses, and masks of persons drawn from their poses as in UniTrack."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "head_bottom", "nose", "head_top",
)  # fmt: skip
"""Joints of a pose, in the order of its rows."""
TORSO = ("right_hip", "left_hip", "left_shoulder", "head_bottom", "right_shoulder")
"""Corners of the torso polygon, in order."""
LIMBS = (
    ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"), ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"), ("left_shoulder", "head_bottom"), ("right_shoulder", "head_bottom"),
    ("head_bottom", "head_top"), ("left_shoulder", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
    ("right_shoulder", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
)  # fmt: skip
MIN_LIMB_WIDTH = 8  # pixels
LIMB_WIDTH_DIVISOR = 20  # a limb is as wide as the longer side of the pose divided by this, but at least MIN_LIMB_WIDTH
MIN_BOX_SIDE = 10  # pixels; replaces a side of length 0, where all visible joints lie on one line
EDGE_MARGIN = 0.4  # pixels. UniTrack draws with OpenCV, whose lines include the pixels that their edges touch
MAX_COORDINATE = 100_000  # pixels. Coordinates are clipped to this, which is far outside of any image
Point = tuple[int, int]


def pose_mask(pose: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a pose as a mask: a filled torso, and limbs with round ends.

    The parts outside of the image are cut off. Limbs with an invisible end are omitted, and so is a torso with fewer
    than three visible corners. The nose belongs to no limb.

    Args:
        pose: (joints, 3) x, y, visibility.
        size: height and width of the image.

    Returns:
        (height, width), 0 and 1.
    """
    points = {
        joint: (int(x), int(y))
        for joint, (x, y, visible) in zip(JOINTS, pose.clip(-MAX_COORDINATE, MAX_COORDINATE).tolist(), strict=True)
        if visible
    }
    image = Image.new("L", size[::-1])
    corners = [points[joint] for joint in TORSO if joint in points]
    if len(corners) >= 3:
        ImageDraw.Draw(image).polygon(corners, fill=1, outline=1)
    mask = np.array(image)
    limbs = [ends for ends in LIMBS if all(joint in points for joint in ends)]
    if limbs:
        side = max(np.ptp(list(points.values()), axis=0).tolist())
        radius = ceil(max(MIN_LIMB_WIDTH, side // LIMB_WIDTH_DIVISOR) / 2)
        for start, end in limbs:
            _draw_limb(mask, points[start], points[end], radius)
    return mask


def _draw_limb(mask: NDArray[np.uint8], start: Point, end: Point, radius: int) -> None:
    """Set all pixels within ``radius`` of a line segment. Pillow's wide lines are too narrow where they slant."""
    left, top = (max(min(ends) - radius, 0) for ends in zip(start, end, strict=True))
    right, bottom = (max(max(ends) + radius + 1, 0) for ends in zip(start, end, strict=True))
    window = mask[top:bottom, left:right]
    y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    dx, dy = end[0] - start[0], end[1] - start[1]
    # position of the nearest point on the segment, from 0 at its start to 1 at its end
    position = (((x - start[0]) * dx + (y - start[1]) * dy) / max(1, dx**2 + dy**2)).clip(0, 1)
    distance_squared = (x - start[0] - position * dx) ** 2 + (y - start[1] - position * dy) ** 2
    window[distance_squared <= (radius + EDGE_MARGIN) ** 2] = 1


def pose_boxes(poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the boxes around the visible joints.

    Args:
        poses: (k, joints, 3) x, y, visibility; each pose has a visible joint.

    Returns:
        (k, 4) left, top, width, height.
    """
    visible = poses[..., 2:] > 0
    low = np.where(visible, poses[..., :2], np.inf).min(axis=1, initial=np.inf)
    high = np.where(visible, poses[..., :2], -np.inf).max(axis=1, initial=-np.inf)
    sides = high - low
    return np.concatenate([low, np.where(sides > 0, sides, MIN_BOX_SIDE)], axis=1)
