"""Small videos with annotated persons in PoseTrack's formats."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mec.evaluate.tracking.sequences import JOINTS

NAMES = ["nose", "head_bottom", "head_top", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
         "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
         "right_ankle"]  # fmt: skip
VIDEO = "000001_mpii_test"
BODY = np.array([[-8, 90], [-8, 70], [-8, 50], [8, 50], [8, 70], [8, 90], [-30, 45], [-25, 30], [-15, 15], [15, 15],
                 [25, 30], [30, 45], [0, 12], [0, 5], [0, -10]], float)  # fmt: skip
"""x, y of the joints in the order of JOINTS, relative to a point near the neck."""


def make_pose(x: float, y: float = 50, invisible: Sequence[str] = ()) -> np.ndarray:
    """Return a pose (15, 3)."""
    visible = np.array([[joint not in invisible] for joint in JOINTS])
    return np.concatenate([BODY + np.array([x, y]), visible], axis=1) * visible


def flat_keypoints(pose: np.ndarray) -> list[float]:
    joints = dict(zip(JOINTS, pose.tolist(), strict=True))
    return [number for name in NAMES for number in joints.get(name, [0.0, 0.0, 0.0])]


def person_annotation(frame: int, track: int, pose: np.ndarray, **fields: Any) -> dict[str, Any]:
    """Return an annotation whose head box has 30 x 40 pixels, so that the head size is 0.6 * 50 = 30."""
    annotation = {"id": 100 * frame + track, "image_id": frame, "track_id": track, "category_id": 1, "scores": []}
    return {**annotation, "keypoints": flat_keypoints(pose), "bbox_head": [0, 0, 30, 40], **fields}


def image_entry(frame: int, labeled: bool = True, **fields: Any) -> dict[str, Any]:
    return {"id": frame, "file_name": f"images/val/{VIDEO}/{frame:06d}.jpg", "is_labeled": labeled, **fields}


def write_posetrack18(
    root: Path, images: Sequence[dict], persons: Sequence[dict], folder: str = "annotations/val", name: str = VIDEO
) -> Path:
    """Write the json file and its images under ``root``."""
    categories = [{"id": 1, "name": "person", "keypoints": NAMES}]
    file = root / folder / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": persons, "categories": categories}))
    for entry in images:
        image = root / entry["file_name"]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 160), (entry["id"], 0, 0)).save(image)
    return file


def write_annolist(file: Path, frames: Sequence[Sequence[dict]]) -> Path:
    entries = [
        {"image": [{"name": f"images/val/{VIDEO}/{number:06d}.jpg"}], "annorect": persons}
        for number, persons in enumerate(frames)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"annolist": entries}))
    return file


def annorect(pose: np.ndarray, **fields: Any) -> dict[str, Any]:
    points = [
        {"id": [i], "x": [x], "y": [y], "score": [0.7]} for i, (x, y, visible) in enumerate(pose.tolist()) if visible
    ]
    return {"annopoints": [{"point": points}], "track_id": [1000], **fields}
