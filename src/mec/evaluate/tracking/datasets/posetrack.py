"""Reader and writer of PoseTrack 2018 (Andriluka et al. 2018): videos with the joints of all persons in some frames.

``posetrack_format`` reads and writes the json files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from mec.errors import InputError
from mec.evaluate.tracking.datasets.posetrack_format import PoseFrame, read_pose_frames, write_pose_frames
from mec.evaluate.tracking.sequences import (
    DetectionSequence,
    FrameObjects,
    ImageFrames,
    SequenceError,
    SequenceLoaders,
    Tracks,
    select_sequences,
)
from mec.evaluate.tracking.skeletons import JOINTS

FRAME_RATE = 6.0
"""Frames per second that UniTrack assumes for PoseTrack."""
FOLDERS = ("annotations/val", "posetrack_data/annotations/val", "annotations", ".")


@dataclass(frozen=True)
class PoseGroundTruth:
    """Annotation of a video.

    frames: all frames that the annotation lists.
    names: image names of the frames that belong to the sequence, in order.
    """

    frames: tuple[PoseFrame, ...]
    names: tuple[str, ...]


def open_pose_detections(
    data: Path, detections: str | None = None, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Return loaders of the sequences by name. Their ``ground_truth`` is a PoseGroundTruth.

    Args:
        data: a folder with annotations/val/SEQUENCE.json in PoseTrack18's format, a folder of such files, or one file.
            Images are searched for in all parent folders of the files.
        detections: None for the poses of the ground truth in the labeled frames, which are then the sequence; or a
            folder with SEQUENCE.json in PoseTrack18's or the older format. Its frames, in its order, are then the
            sequence; they must include all labeled frames.
        names: names or patterns of the sequences to load, such as "000342_mpii_test" or "*_mpii_test".

    Raises:
        InputError: there are no usable files at all. Errors in one sequence are raised when it is loaded.
    """
    files = select_sequences(_annotation_files(data), names)
    if detections is None:
        return {name: partial(_load, file, None) for name, file in files.items()}
    detection_files = {name: Path(detections, file.name).expanduser() for name, file in files.items()}
    if not any(file.is_file() for file in detection_files.values()):
        example = next(iter(files.values())).name
        raise InputError(f"detections: expected a file for each sequence in {detections}, such as {example}, got none")
    return {name: partial(_load, file, detection_files[name]) for name, file in files.items()}


def _annotation_files(data: Path) -> dict[str, Path]:
    if data.suffix == ".json" and data.is_file():
        return {data.stem: data}
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    for folder in FOLDERS:
        files = sorted(f for f in (data / folder).glob("*.json") if not f.name.startswith("."))
        if files:
            return {file.stem: file for file in files}
    raise InputError(f"data: no sequence in {data}; expected PoseTrack18's annotations/val/SEQUENCE.json")


def _load(file: Path, detection_file: Path | None) -> DetectionSequence:
    annotated = read_pose_frames(file)
    videos = sorted({PurePosixPath(frame.name).parent.name for frame in annotated})
    if len(videos) != 1:
        raise SequenceError(f"{file}: expected the frames of one video, got {len(videos)} {' '.join(videos[:2])}")
    for frame in annotated:
        _check_ground_truth(file, frame)
    frames = [frame for frame in annotated if frame.labeled]
    if not frames:
        raise SequenceError(f"{file}: none of the {len(annotated)} frames is labeled")
    if detection_file is not None:
        frames = _read_detections(detection_file, annotated)
    names = tuple(frame.name for frame in frames)
    objects = tuple(replace(frame.objects, ids=None) for frame in frames)
    return DetectionSequence(file.stem, _image_frames(file, names), objects, PoseGroundTruth(tuple(annotated), names))


def _check_ground_truth(file: Path, frame: PoseFrame) -> None:
    """Check what the metrics need and detections may lack."""
    if frame.objects.ids is None:
        raise SequenceError(f"{file}: {frame.name}: a person has no track_id")
    if len(np.unique(frame.objects.ids)) < len(frame.objects):
        raise SequenceError(f"{file}: {frame.name}: a track_id occurs twice")
    if np.isnan(frame.head_sizes).any():
        track_id = frame.objects.ids[np.isnan(frame.head_sizes)][0]
        raise SequenceError(f"{file}: {frame.name}: the person of track_id {track_id} has no bbox_head")


def _read_detections(file: Path, annotated: Sequence[PoseFrame]) -> list[PoseFrame]:
    frames = read_pose_frames(file)
    names, annotated_names = {frame.name for frame in frames}, {frame.name for frame in annotated}
    if unknown := sorted(names - annotated_names):
        raise SequenceError(f"{file}: {unknown[0]} is none of the {len(annotated_names)} frames of the annotation")
    if missing := [frame.name for frame in annotated if frame.labeled and frame.name not in names]:
        raise SequenceError(f"{file}: {len(missing)} labeled frames are missing, the first is {missing[0]}")
    return frames


def _image_frames(file: Path, names: Sequence[str]) -> ImageFrames:
    roots = [folder for folder in file.absolute().parents if any((folder / name).is_file() for name in names)]
    if not roots:
        raise SequenceError(f"no {names[0]} in any of the parent folders of {file}")
    missing = [name for name in names if not (roots[0] / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(names)} frames"
        raise SequenceError(f"{count} of {file} are missing in {roots[0]}, the first is {missing[0]}")
    return ImageFrames(tuple(roots[0] / name for name in names), FRAME_RATE)


def write_poses(folder: Path, sequence: DetectionSequence, tracks: Tracks) -> None:
    """Write SEQUENCE.json in PoseTrack18's format, with all annotated frames, as PoseTrack's evaluation requires.

    Args:
        folder: created if it does not exist.
        sequence: from ``open_pose_detections``.
        tracks: one entry for each frame of the sequence. All joints of a person get the score of the person.
    """
    ground_truth: PoseGroundTruth = sequence.ground_truth
    tracks_by_name = dict(zip(ground_truth.names, tracks, strict=True))
    empty = FrameObjects(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), poses=np.zeros((0, len(JOINTS), 3)))
    write_pose_frames(
        folder / f"{sequence.name}.json",
        ground_truth.frames,
        [tracks_by_name.get(frame.name, empty) for frame in ground_truth.frames],
    )


def read_poses(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    """Read the file that ``write_poses`` wrote for this sequence. Boxes enclose the joints.

    Raises:
        SequenceError: the file is damaged, is of another sequence, or has a person without track.
    """
    file = folder / f"{sequence.name}.json"
    objects = {frame.name: frame.objects for frame in read_pose_frames(file)}
    ground_truth: PoseGroundTruth = sequence.ground_truth
    for name in ground_truth.names:
        if name not in objects or objects[name].ids is None:
            raise SequenceError(f"{file}: expected {name}, and a track_id for each person in it")
    return [objects[name] for name in ground_truth.names]
