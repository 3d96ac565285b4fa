"""Persons walking through small videos, written as PoseTrack writes its own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mec.evaluate.tracking.skeletons import JOINTS

NAMES = ["nose", "head_bottom", "head_top", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
         "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
         "right_ankle"]  # fmt: skip
VIDEO = "000001_mpii_test"
BODY = np.array([[-8, 90], [-8, 70], [-8, 50], [8, 50], [8, 70], [8, 90], [-30, 45], [-25, 30], [-15, 15], [15, 15],
                 [25, 30], [30, 45], [0, 12], [0, 5], [0, -10]], float)  # fmt: skip
"""x, y of the joints in the order of JOINTS, the head's lower end near the origin."""


def body(x: float, y: float = 50, unseen: Sequence[str] = ()) -> np.ndarray:
    """(15, 3)"""
    seen = np.array([[joint not in unseen] for joint in JOINTS])
    return np.concatenate([BODY + np.array([x, y]), seen], axis=1) * seen


def keypoints(pose: np.ndarray) -> list[float]:
    places = dict(zip(JOINTS, pose.tolist(), strict=True))
    return [number for name in NAMES for number in places.get(name, [0.0, 0.0, 0.0])]


def person(frame: int, track: int, pose: np.ndarray, **more: Any) -> dict[str, Any]:
    """Whose head is a box of 30 x 40 pixels, thus of size 0.6 * 50 = 30."""
    one = {"id": 100 * frame + track, "image_id": frame, "track_id": track, "category_id": 1, "scores": []}
    return {**one, "keypoints": keypoints(pose), "bbox_head": [0, 0, 30, 40], **more}


def image(frame: int, labeled: bool = True, **more: Any) -> dict[str, Any]:
    return {"id": frame, "file_name": f"images/val/{VIDEO}/{frame:06d}.jpg", "is_labeled": labeled, **more}


def posetrack18(
    root: Path, images: Sequence[dict], persons: Sequence[dict], folder: str = "annotations/val", name: str = VIDEO
) -> Path:
    """The json, and its images under ``root``."""
    categories = [{"id": 1, "name": "person", "keypoints": NAMES}]
    file = root / folder / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": persons, "categories": categories}))
    for one in images:
        image = root / one["file_name"]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 160), (one["id"], 0, 0)).save(image)
    return file


def older(file: Path, frames: Sequence[Sequence[dict]]) -> Path:
    entries = [
        {"image": [{"name": f"images/val/{VIDEO}/{number:06d}.jpg"}], "annorect": some}
        for number, some in enumerate(frames)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"annolist": entries}))
    return file


def rect(pose: np.ndarray, **more: Any) -> dict[str, Any]:
    points = [{"id": [i], "x": [x], "y": [y], "score": [0.7]} for i, (x, y, seen) in enumerate(pose.tolist()) if seen]
    return {"annopoints": [{"point": points}], "track_id": [1000], **more}
