"""Poses in PoseTrack's two forms of json: that of 2018, which is like COCO's, and the older ``annolist``."""

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
"""In the order of PoseTrack18's files."""
HEAD = 0.6
"""Size of a head as a share of the diagonal of its box (Andriluka et al. 2014)."""
Person = tuple[NDArray[np.float64], float, int | None, float]
"""Pose, score, track and head size, which is NaN where there is no box of the head."""


@dataclass(frozen=True)
class PoseFrame:
    """What a file says of one frame.

    name: of the image, from the folder of the data on.
    number: the file's own, or the place in it.
    labeled: whether somebody has looked who is there.
    annotated: whether there is a person, be it one without joints.
    found: persons with joints; ``ids`` is None where one has none.
    heads: (k,) sizes in pixels, NaN where it is not said.
    ignored: polygons, (n, 2) x, y, in which nothing counts.
    """

    name: str
    number: int
    labeled: bool
    annotated: bool
    found: FrameObjects
    heads: NDArray[np.float64]
    ignored: tuple[NDArray[np.float64], ...] = ()


def read_pose_frames(file: Path) -> list[PoseFrame]:
    """All frames that a file lists, in its order. A joint whose flag is 0 is not there; nor is one that is not listed.

    Raises:
        SequenceError: unreadable, without what is needed, numbers that are none, or a frame twice.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SequenceError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise SequenceError(f"{file}: expected PoseTrack18's images, annotations and categories, or an annolist")
    with _named(file):
        frames = list(_older(file, raw["annolist"]) if "annolist" in raw else _posetrack18(file, raw))
    for what in ("name", "number"):
        seen: set[Any] = set()
        for frame in frames:
            value = getattr(frame, what)
            if value in seen:
                raise SequenceError(f"{file}: frame {value} is there twice")
            seen.add(value)
    return frames


@contextmanager
def _named(place: str | Path) -> Iterator[None]:
    """Says where it is that the json has another form than is expected."""
    try:
        yield
    except KeyError as error:
        raise SequenceError(f"{place}: no {error.args[0]}") from error
    except ValueError as error:
        raise SequenceError(f"{place}: {error}") from error
    except (AttributeError, IndexError, TypeError) as error:
        raise SequenceError(f"{place}: not in PoseTrack's form ({error})") from error


def _posetrack18(file: Path, raw: dict[str, Any]) -> Iterator[PoseFrame]:
    names = raw["categories"][0]["keypoints"]
    if lacking := [joint for joint in JOINTS if joint not in names]:
        raise ValueError(f"expected {lacking[0]} among the keypoints of the category, got {', '.join(names)}")
    places = [names.index(joint) for joint in JOINTS]
    persons: dict[int, list[Person]] = {one["id"]: [] for one in raw["images"]}
    for i, one in enumerate(raw["annotations"]):
        with _named(f"{file}: annotation {one.get('id', f'at place {i}')}"):
            if one["image_id"] not in persons:
                raise ValueError(f"of image {one['image_id']}, which the file does not list")
            persons[one["image_id"]].append(_person18(one, len(names), places))
    for one in raw["images"]:
        with _named(f"{file}: image {one['id']}"):
            ignored = _polygons(one.get("ignore_regions_x") or [], one.get("ignore_regions_y") or [])
            labeled = bool(one.get("is_labeled", True))
            yield _frame(str(one["file_name"]), _whole(one["id"]), labeled, persons[one["id"]], ignored)


def _person18(one: dict[str, Any], count: int, places: list[int]) -> Person:
    numbers = _finite(one["keypoints"])
    if numbers.shape != (3 * count,):
        raise ValueError(f"expected {3 * count} numbers as keypoints, got {numbers.size}")
    pose = numbers.reshape(-1, 3)[places]
    pose[:, 2] = pose[:, 2] > 0
    head = _finite(one["bbox_head"]) if "bbox_head" in one else np.full(4, math.nan)
    if head.shape != (4,):
        raise ValueError(f"expected 4 numbers as bbox_head, got {head.size}")
    return pose, _score(one), _whole(one["track_id"]) if "track_id" in one else None, HEAD * math.hypot(*head[2:])


def _polygons(x: list[list[float]], y: list[list[float]]) -> list[NDArray[np.float64]]:
    if list(map(len, x)) != list(map(len, y)):
        raise ValueError("expected ignore_regions_y of as many corners as ignore_regions_x")
    return [np.stack([_finite(xs), _finite(ys)], axis=1) for xs, ys in zip(x, y, strict=True)]


def _older(file: Path, entries: list[dict[str, Any]]) -> Iterator[PoseFrame]:
    for number, one in enumerate(entries):
        persons = []
        with _named(f"{file}: frame at place {number}"):
            for rect in one.get("annorect") or ():
                pose = np.zeros((len(JOINTS), 3))
                for point in (rect.get("annopoints") or [{}])[0].get("point") or ():
                    place = _whole(_only(point["id"]))
                    if 0 <= place < len(JOINTS):
                        pose[place] = *_finite([_only(point["x"]), _only(point["y"])]), 1
                track = _whole(_only(rect["track_id"])) if "track_id" in rect else None
                persons.append((pose, _score(rect), track, math.nan))
            yield _frame(str(_only(one["image"])["name"]), number, True, persons, [])


def _frame(
    name: str, number: int, labeled: bool, persons: Sequence[Person], ignored: Iterable[NDArray[np.float64]]
) -> PoseFrame:
    kept = [person for person in persons if person[0][:, 2].any()]
    poses = np.array([pose for pose, *_ in kept]).reshape(-1, len(JOINTS), 3)
    tracks = [track for _, _, track, _ in kept if track is not None]
    ids = np.array(tracks, np.int64) if len(tracks) == len(kept) else None
    found = FrameObjects(pose_boxes(poses), np.array([score for _, score, _, _ in kept], float), ids, poses=poses)
    heads = np.array([head for *_, head in kept], float)
    return PoseFrame(name, number, labeled, bool(persons), found, heads, tuple(ignored))


def _only(value: Any) -> Any:
    """The older form has its numbers in lists of one."""
    return value[0] if isinstance(value, list) else value


def _score(one: dict[str, Any]) -> float:
    return float(_finite([_only(one.get("score", 1.0))])[0])


def _whole(value: Any) -> int:
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError(f"expected a whole number, got {value!r}")
    return value


def _finite(values: Any) -> NDArray[np.float64]:
    numbers = np.array(values)
    if numbers.size and (numbers.dtype.kind not in "if" or not np.isfinite(numbers).all()):
        raise ValueError("expected finite numbers")
    return numbers.astype(np.float64)


def write_pose_frames(file: Path, frames: Sequence[PoseFrame], tracks: Sequence[FrameObjects]) -> None:
    """In PoseTrack18's form, as its own evaluation reads it: every frame, those without tracks included."""
    annotations: list[dict[str, Any]] = []
    for frame, found in zip(frames, tracks, strict=True):
        if found.ids is None or found.poses is None:
            raise ValueError("expected tracks with ids and poses")
        for i, pose in enumerate(found.poses):
            joints = dict(zip(JOINTS, (pose * pose[:, 2:]).tolist(), strict=True))
            annotations.append({
                "id": len(annotations),
                "image_id": frame.number,
                "category_id": 1,
                "track_id": int(found.ids[i]),
                "score": float(found.scores[i]),
                "scores": [float(found.scores[i])] * len(KEYPOINTS),
                "bbox": found.boxes[i].tolist(),
                "keypoints": [number for name in KEYPOINTS for number in joints.get(name, (0.0, 0.0, 0.0))],
            })  # fmt: skip
    images = [{"id": one.number, "file_name": one.name, "is_labeled": one.labeled} for one in frames]
    categories = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": KEYPOINTS}]
    with atomic_write(file) as path:
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
        )
