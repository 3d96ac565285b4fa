"""Reader and writer of PoseTrack 2018 (Andriluka et al. 2018): videos with the joints of all persons in some frames, in
PoseTrack18's json format, which resembles COCO's, or in the older ``annolist``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import (
    check_boxes,
    check_detections,
    check_folder,
    detection_files,
    log_ignored,
)
from mec.evaluate.tracking.sequences import (
    JOINTS,
    DetectionSequence,
    FrameObjects,
    ImageFrames,
    SequenceError,
    SequenceLoaders,
    Tracks,
    hide_ignored,
    image_size,
    pose_boxes,
    select_sequences,
)
from mec.files import atomic_write
from mec.text_files import read_text

FRAME_RATE = 6.0  # frames per second that UniTrack assumes for PoseTrack
FOLDERS = ("annotations/val", "posetrack_data/annotations/val", "annotations", ".")
KEYPOINTS = (
    "nose", "head_bottom", "head_top", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""Keypoints of PoseTrack18's files, in order."""
HEAD_SIZE_FACTOR = 0.6  # size of a head as a fraction of the diagonal of its box (Andriluka et al. 2014)
Person = tuple[NDArray[np.float64], float, int | None, float]  # pose, score, track id, and head size, NaN if unknown


@dataclass(frozen=True)
class PoseFrame:
    """One frame of a json file."""

    name: str  # path of the image within the dataset
    number: int  # its id, or its index in the older format
    labeled: bool  # whether the frame was annotated
    persons: int  # including those without visible joints
    objects: FrameObjects  # persons with visible joints; ``ids`` is None if one of them has no track id
    head_sizes: NDArray[np.float64]  # (k,) pixels, NaN where unknown
    ignored: tuple[NDArray[np.float64], ...] = ()  # polygons, (n, 2) x, y, that are not evaluated


@dataclass(frozen=True)
class PoseGroundTruth:
    """All frames of an annotation, and the image names of those that belong to the sequence, in order."""

    frames: tuple[PoseFrame, ...]
    names: tuple[str, ...]


def open_pose_detections(
    data: Path, detections: str | None = None, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Return loaders of the sequences by name. Their ``ground_truth`` is a PoseGroundTruth.

    ``data`` has annotations/val/SEQUENCE.json, or is a folder of such files, or one; images are searched for in all
    their parent folders. A sequence is the labeled frames with the poses of the ground truth or, with ``detections``, a
    folder of SEQUENCE.json, the frames of that file, in its order; they must include all labeled frames.
    """
    all_files = {file.stem: file for file in _annotation_files(data)}
    files = select_sequences(all_files, names)
    found = detection_files(detections, list(files), ".json")
    folder = next(iter(files.values())).parent
    source = "the ground truth, labeled frames only" if detections is None else f"{detections}/SEQUENCE.json"
    description = f"PoseTrack18's layout, annotations in {folder}; detections of {source}"
    return SequenceLoaders({name: partial(_load, file, found[name]) for name, file in files.items()}, description)


def _annotation_files(data: Path) -> list[Path]:
    if data.suffix == ".json" and data.is_file():
        return [data]
    check_folder(data)
    for folder in FOLDERS:
        if files := sorted(f for f in (data / folder).glob("*.json") if not f.name.startswith(".")):
            return files
    raise InputError(f"data: no sequence in {data}; expected PoseTrack18's annotations/val/SEQUENCE.json")


def _load(file: Path, detection_file: Path | None) -> DetectionSequence:
    annotated = read_pose_frames(file)
    videos = sorted({PurePosixPath(frame.name).parent.name for frame in annotated})
    if len(videos) != 1:
        raise SequenceError(f"{file}: expected the frames of one video, got {len(videos)} {' '.join(videos[:2])}")
    for frame in annotated:  # what the metrics need and detections may lack
        ids = frame.objects.ids
        if ids is None or len(np.unique(ids)) < len(ids) or np.isnan(frame.head_sizes).any():
            raise SequenceError(f"{file}: {frame.name}: expected a bbox_head and a track_id of its own for each person")
    labeled = [frame for frame in annotated if frame.labeled]
    if not labeled:
        raise SequenceError(f"{file}: none of the {len(annotated)} frames is labeled")
    frames = labeled
    if detection_file is not None:
        frames = read_pose_frames(detection_file)
        found = {frame.name for frame in frames}
        if unknown := sorted(found - {frame.name for frame in annotated}):
            raise SequenceError(f"{detection_file}: {unknown[0]} is none of the {len(annotated)} annotated frames")
        if missing := sorted({frame.name for frame in labeled} - found):
            raise SequenceError(f"{detection_file} lacks {len(missing)} labeled frames, the first is {missing[0]}")
    names = tuple(frame.name for frame in frames)
    images, by_name = _image_frames(file, names), {frame.name: frame for frame in annotated}
    truth = [by_name[name] for name in names]
    if not any(hide_ignored(frame.objects.poses, frame.ignored)[..., 2].any() for frame in truth):
        raise SequenceError(f"{file}: no visible joint outside of the ignored regions in {len(truth):,} frames")
    left_out = "not labeled" if detection_file is None else f"not in {detection_file}"
    log_ignored(file.stem, len(annotated), "frames", {left_out: len(annotated) - len(names)}, expected=True)
    for path, source in {file: truth, detection_file or file: frames}.items():
        check_boxes(file.stem, path, np.concatenate([f.objects.boxes for f in source]), image_size(images.files[0]))
        persons = sum(frame.persons for frame in source)
        invisible = {"without visible joints": persons - sum(len(frame.objects) for frame in source)}
        log_ignored(file.stem, persons, f"persons of {path}", invisible, expected=path == file)
    objects = tuple(replace(frame.objects, ids=None) for frame in frames)
    check_detections(file.stem, objects, [frame.objects.boxes for frame in truth])
    track_ids = {int(i) for frame in truth if frame.objects.ids is not None for i in frame.objects.ids}
    return DetectionSequence(file.stem, images, objects, PoseGroundTruth(tuple(annotated), names), len(track_ids))


def _image_frames(file: Path, names: Sequence[str]) -> ImageFrames:
    for root in file.absolute().parents:
        missing = [name for name in names if not (root / name).is_file()]
        if not missing:
            return ImageFrames(tuple(root / name for name in names), FRAME_RATE)
        if len(missing) < len(names):
            raise SequenceError(f"{root} lacks {len(missing)} of {len(names)} frames, the first is {missing[0]}")
    raise SequenceError(f"no {names[0]} in any of the parent folders of {file}")


def read_pose_frames(file: Path) -> list[PoseFrame]:
    """Read all frames of a file, in its order. Joints that are not listed or have the flag 0 are invisible."""
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SequenceError(f"{file} cannot be read as JSON ({error})") from error
    with _error_location(file):
        frames = list(_annolist_frames(file, content["annolist"]) if "annolist" in content else _frames(file, content))
    seen: set[str | int] = set()
    for key in (key for frame in frames for key in (frame.name, frame.number)):
        if key in seen:
            raise SequenceError(f"{file}: frame {key} occurs twice")
        seen.add(key)
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
            pose = _finite(annotation["keypoints"], 3 * len(names)).reshape(-1, 3)[joint_indices]
            pose[:, 2] = pose[:, 2] > 0
            head_box = _finite(annotation["bbox_head"], 4) if "bbox_head" in annotation else np.full(4, math.nan)
            head_size = HEAD_SIZE_FACTOR * math.hypot(*head_box[2:])
            persons[annotation["image_id"]].append((pose, _score(annotation), _track_id(annotation), head_size))
    for image in content["images"]:
        with _error_location(f"{file}: image {image['id']}"):
            x, y = (image.get(f"ignore_regions_{axis}") or [] for axis in "xy")
            if list(map(len, x)) != list(map(len, y)):
                raise ValueError("expected as many corners in ignore_regions_y as in ignore_regions_x")
            ignored = tuple(np.stack([_finite(xs), _finite(ys)], axis=1) for xs, ys in zip(x, y, strict=True))
            labeled = bool(image.get("is_labeled", True))
            yield _frame(str(image["file_name"]), _integer(image["id"]), labeled, persons[image["id"]], ignored)


def _annolist_frames(file: Path, entries: list[dict[str, Any]]) -> Iterator[PoseFrame]:
    """Yield the frames of a file in the older format, which wraps its numbers in lists."""
    for number, entry in enumerate(entries):
        persons = []
        with _error_location(f"{file}: frame at index {number}"):
            for rect in entry.get("annorect") or ():
                pose = np.zeros((len(JOINTS), 3))
                for point in (rect.get("annopoints") or [{}])[0].get("point") or ():
                    joint = _integer(_unwrap(point["id"]))
                    if not 0 <= joint < len(JOINTS):
                        raise ValueError(f"expected a joint of 0 to {len(JOINTS) - 1}, got {joint}")
                    pose[joint] = *_finite([_unwrap(point["x"]), _unwrap(point["y"])]), 1
                persons.append((pose, _score(rect), _track_id(rect), math.nan))
            yield _frame(str(_unwrap(entry["image"])["name"]), number, True, persons, ())


def _frame(
    name: str, number: int, labeled: bool, persons: Sequence[Person], ignored: tuple[NDArray[np.float64], ...]
) -> PoseFrame:
    visible = [person for person in persons if person[0][:, 2].any()]
    poses = np.array([pose for pose, *_ in visible]).reshape(-1, len(JOINTS), 3)
    scores, head_sizes = (np.array([person[i] for person in visible], float) for i in (1, 3))
    track_ids = [person[2] for person in visible]
    ids = None if None in track_ids else np.array(track_ids, np.int64)
    objects = FrameObjects(pose_boxes(poses), scores, ids, poses=poses)
    return PoseFrame(name, number, labeled, len(persons), objects, head_sizes, ignored)


def _unwrap(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _score(annotation: dict[str, Any]) -> float:
    return float(_finite([_unwrap(annotation.get("score", 1.0))])[0])


def _track_id(annotation: dict[str, Any]) -> int | None:
    return _integer(_unwrap(annotation["track_id"])) if "track_id" in annotation else None


def _integer(value: Any) -> int:
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError(f"expected an integer, got {value!r}")
    return value


def _finite(values: Any, count: int | None = None) -> NDArray[np.float64]:
    numbers = np.array(values)
    if numbers.size and (numbers.dtype.kind not in "if" or not np.isfinite(numbers).all()):
        raise ValueError("expected finite numbers")
    if count is not None and numbers.shape != (count,):
        raise ValueError(f"expected {count} numbers, got {numbers.size}")
    return numbers.astype(np.float64)


def write_poses(folder: Path, sequence: DetectionSequence, tracks: Tracks) -> None:
    """Write SEQUENCE.json in PoseTrack18's format, with all annotated frames, as PoseTrack's evaluation requires."""
    ground_truth: PoseGroundTruth = sequence.ground_truth
    numbers = {frame.name: frame.number for frame in ground_truth.frames}
    tracks_by_name = dict(zip(ground_truth.names, tracks, strict=True))
    annotations: list[dict[str, Any]] = []
    for name in sorted(tracks_by_name, key=list(numbers).index):  # in the order of the annotation
        persons = tracks_by_name[name]
        assert persons.ids is not None
        assert persons.poses is not None
        for i, pose in enumerate(persons.poses):
            joints = dict(zip(JOINTS, (pose * pose[:, 2:]).tolist(), strict=True))
            annotations.append({
                "id": len(annotations),
                "image_id": numbers[name],
                "category_id": 1,
                "track_id": int(persons.ids[i]),
                "score": float(persons.scores[i]),
                "scores": [float(persons.scores[i])] * len(KEYPOINTS),
                "bbox": persons.boxes[i].tolist(),
                "keypoints": [number for name in KEYPOINTS for number in joints.get(name, (0.0, 0.0, 0.0))],
            })  # fmt: skip
    frames = ground_truth.frames
    images = [{"id": frame.number, "file_name": frame.name, "is_labeled": frame.labeled} for frame in frames]
    categories = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": KEYPOINTS}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_write(folder / f"{sequence.name}.json") as path:
        path.write_text(json.dumps(content), encoding="utf-8")


def read_poses(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    """Read the file that ``write_poses`` wrote for this sequence. Boxes enclose the joints."""
    file = folder / f"{sequence.name}.json"
    objects = {frame.name: frame.objects for frame in read_pose_frames(file)}
    ground_truth: PoseGroundTruth = sequence.ground_truth
    for name in ground_truth.names:
        if name not in objects or objects[name].ids is None:
            raise SequenceError(f"{file}: expected {name}, and a track_id for each person in it")
    return [objects[name] for name in ground_truth.names]
