"""Json files of PoseTrack: PoseTrack18's format, which resembles COCO's, and the older ``annolist``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.evaluate.tracking.sequences import FrameObjects, SequenceError
from mec.evaluate.tracking.skeletons import JOINTS, pose_boxes
from mec.files import atomic_write

KEYPOINTS = (
    "nose", "head_bottom", "head_top", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""Keypoints of PoseTrack18's files, in order."""
HEAD_SIZE_FACTOR = 0.6
"""Size of a head as a fraction of the diagonal of its box (Andriluka et al. 2014)."""
Person = tuple[NDArray[np.float64], float, int | None, float]
"""Pose, score, track id, and head size, which is NaN without a box of the head."""


@dataclass(frozen=True)
class PoseFrame:
    """One frame of a json file.

    name: path of the image within the dataset.
    number: id of the image in the file, or its index in the older format.
    labeled: whether the frame was annotated.
    annotated: whether the frame has a person, including persons without visible joints.
    objects: persons with visible joints; ``ids`` is None if one of them has no track id.
    head_sizes: (k,) pixels, NaN where unknown.
    ignored: polygons, (n, 2) x, y, that are not evaluated.
    """

    name: str
    number: int
    labeled: bool
    annotated: bool
    objects: FrameObjects
    head_sizes: NDArray[np.float64]
    ignored: tuple[NDArray[np.float64], ...] = ()


def read_pose_frames(file: Path) -> list[PoseFrame]:
    """Read all frames of a file, in its order. Joints that are not listed or have the flag 0 are invisible.

    Raises:
        SequenceError: the file is unreadable, lacks a required key, has invalid numbers, or has a frame twice.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SequenceError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise SequenceError(f"{file}: expected PoseTrack18's images, annotations and categories, or an annolist")
    with _error_location(file):
        frames = list(_annolist_frames(file, content["annolist"]) if "annolist" in content else _frames(file, content))
    for field in ("name", "number"):
        seen: set[Any] = set()
        for frame in frames:
            value = getattr(frame, field)
            if value in seen:
                raise SequenceError(f"{file}: frame {value} occurs twice")
            seen.add(value)
    return frames


@contextmanager
def _error_location(location: str | Path) -> Iterator[None]:
    """Turn exceptions from unexpected json into SequenceErrors that name the location."""
    try:
        yield
    except KeyError as error:
        raise SequenceError(f"{location}: no {error.args[0]}") from error
    except ValueError as error:
        raise SequenceError(f"{location}: {error}") from error
    except (AttributeError, IndexError, TypeError) as error:
        raise SequenceError(f"{location}: not in PoseTrack's format ({error})") from error


def _frames(file: Path, content: dict[str, Any]) -> Iterator[PoseFrame]:
    """Yield the frames of a file in PoseTrack18's format."""
    names = content["categories"][0]["keypoints"]
    if missing := [joint for joint in JOINTS if joint not in names]:
        raise ValueError(f"expected {missing[0]} among the keypoints of the category, got {', '.join(names)}")
    joint_indices = [names.index(joint) for joint in JOINTS]
    persons: dict[int, list[Person]] = {image["id"]: [] for image in content["images"]}
    for i, annotation in enumerate(content["annotations"]):
        with _error_location(f"{file}: annotation {annotation.get('id', f'at index {i}')}"):
            if annotation["image_id"] not in persons:
                raise ValueError(f"expected an image of the file, got image_id {annotation['image_id']}")
            persons[annotation["image_id"]].append(_person(annotation, len(names), joint_indices))
    for image in content["images"]:
        with _error_location(f"{file}: image {image['id']}"):
            ignored = _polygons(image.get("ignore_regions_x") or [], image.get("ignore_regions_y") or [])
            labeled = bool(image.get("is_labeled", True))
            yield _frame(str(image["file_name"]), _integer(image["id"]), labeled, persons[image["id"]], ignored)


def _person(annotation: dict[str, Any], count: int, joint_indices: list[int]) -> Person:
    keypoints = _finite(annotation["keypoints"])
    if keypoints.shape != (3 * count,):
        raise ValueError(f"expected {3 * count} numbers as keypoints, got {keypoints.size}")
    pose = keypoints.reshape(-1, 3)[joint_indices]
    pose[:, 2] = pose[:, 2] > 0
    head_box = _finite(annotation["bbox_head"]) if "bbox_head" in annotation else np.full(4, math.nan)
    if head_box.shape != (4,):
        raise ValueError(f"expected 4 numbers as bbox_head, got {head_box.size}")
    track_id = _integer(annotation["track_id"]) if "track_id" in annotation else None
    return pose, _score(annotation), track_id, HEAD_SIZE_FACTOR * math.hypot(*head_box[2:])


def _polygons(x: list[list[float]], y: list[list[float]]) -> list[NDArray[np.float64]]:
    if list(map(len, x)) != list(map(len, y)):
        raise ValueError("expected as many corners in ignore_regions_y as in ignore_regions_x")
    return [np.stack([_finite(xs), _finite(ys)], axis=1) for xs, ys in zip(x, y, strict=True)]


def _annolist_frames(file: Path, entries: list[dict[str, Any]]) -> Iterator[PoseFrame]:
    """Yield the frames of a file in the older format."""
    for number, entry in enumerate(entries):
        persons = []
        with _error_location(f"{file}: frame at index {number}"):
            for rect in entry.get("annorect") or ():
                pose = np.zeros((len(JOINTS), 3))
                for point in (rect.get("annopoints") or [{}])[0].get("point") or ():
                    joint = _integer(_unwrap(point["id"]))
                    if 0 <= joint < len(JOINTS):
                        pose[joint] = *_finite([_unwrap(point["x"]), _unwrap(point["y"])]), 1
                track_id = _integer(_unwrap(rect["track_id"])) if "track_id" in rect else None
                persons.append((pose, _score(rect), track_id, math.nan))
            yield _frame(str(_unwrap(entry["image"])["name"]), number, True, persons, [])


def _frame(
    name: str, number: int, labeled: bool, persons: Sequence[Person], ignored: Iterable[NDArray[np.float64]]
) -> PoseFrame:
    visible = [person for person in persons if person[0][:, 2].any()]
    poses = np.array([pose for pose, *_ in visible]).reshape(-1, len(JOINTS), 3)
    track_ids = [track_id for _, _, track_id, _ in visible if track_id is not None]
    ids = np.array(track_ids, np.int64) if len(track_ids) == len(visible) else None
    scores = np.array([score for _, score, _, _ in visible], float)
    head_sizes = np.array([head_size for *_, head_size in visible], float)
    objects = FrameObjects(pose_boxes(poses), scores, ids, poses=poses)
    return PoseFrame(name, number, labeled, bool(persons), objects, head_sizes, tuple(ignored))


def _unwrap(value: Any) -> Any:
    """Return the element of a list of one: the older format wraps its numbers."""
    return value[0] if isinstance(value, list) else value


def _score(annotation: dict[str, Any]) -> float:
    return float(_finite([_unwrap(annotation.get("score", 1.0))])[0])


def _integer(value: Any) -> int:
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError(f"expected an integer, got {value!r}")
    return value


def _finite(values: Any) -> NDArray[np.float64]:
    numbers = np.array(values)
    if numbers.size and (numbers.dtype.kind not in "if" or not np.isfinite(numbers).all()):
        raise ValueError("expected finite numbers")
    return numbers.astype(np.float64)


def write_pose_frames(file: Path, frames: Sequence[PoseFrame], tracks: Sequence[FrameObjects]) -> None:
    """Write all frames in PoseTrack18's format, as its evaluation reads it, including frames without tracks."""
    annotations: list[dict[str, Any]] = []
    for frame, persons in zip(frames, tracks, strict=True):
        if persons.ids is None or persons.poses is None:
            raise ValueError("expected tracks with ids and poses")
        for i, pose in enumerate(persons.poses):
            joints = dict(zip(JOINTS, (pose * pose[:, 2:]).tolist(), strict=True))
            annotations.append({
                "id": len(annotations),
                "image_id": frame.number,
                "category_id": 1,
                "track_id": int(persons.ids[i]),
                "score": float(persons.scores[i]),
                "scores": [float(persons.scores[i])] * len(KEYPOINTS),
                "bbox": persons.boxes[i].tolist(),
                "keypoints": [number for name in KEYPOINTS for number in joints.get(name, (0.0, 0.0, 0.0))],
            })  # fmt: skip
    images = [{"id": frame.number, "file_name": frame.name, "is_labeled": frame.labeled} for frame in frames]
    categories = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": KEYPOINTS}]
    with atomic_write(file) as path:
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
        )
