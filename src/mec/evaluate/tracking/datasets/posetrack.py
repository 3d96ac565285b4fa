"""PoseTrack 2018 (Andriluka et al. 2018): videos in some of whose frames all persons' joints are annotated."""

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

RATE = 6.0
"""Frames a second that UniTrack takes for PoseTrack's."""
FOLDERS = ("annotations/val", "posetrack_data/annotations/val", "annotations", ".")


@dataclass(frozen=True)
class PoseGroundTruth:
    """images: all frames that the annotation lists. names: those of them that are the sequence's, in turn."""

    images: tuple[PoseFrame, ...]
    names: tuple[str, ...]


def open_pose_detections(
    data: Path, detections: str | None = None, names: Sequence[str] | None = None
) -> SequenceLoaders[DetectionSequence]:
    """Sequences with the poses found in them; ``truth`` is a PoseGroundTruth.

    Args:
        data: a folder with annotations/val/SEQUENCE.json in PoseTrack18's form, a folder of such files, or one. The
            frames are looked for in the folders above them.
        detections: None for the truth's own poses, in the labeled frames, which are then all there are; or a folder
            with SEQUENCE.json in PoseTrack18's or the older form. Its frames, in its order, are those of the sequence,
            all labeled ones among them.
        names: those to take, "000342_mpii_test" or patterns such as "*_mpii_test".

    Raises:
        InputError: nothing there that could be used; what is wrong with one sequence is raised when it is loaded.
    """
    files = select_sequences(_annotations(data), names)
    if detections is None:
        return {name: partial(_load, file, None) for name, file in files.items()}
    found = {name: Path(detections, file.name).expanduser() for name, file in files.items()}
    if not any(file.is_file() for file in found.values()):
        first = next(iter(files.values())).name
        raise InputError(f"detections: expected a file of each sequence in {detections}, such as {first}, got none")
    return {name: partial(_load, file, found[name]) for name, file in files.items()}


def _annotations(data: Path) -> dict[str, Path]:
    if data.suffix == ".json" and data.is_file():
        return {data.stem: data}
    if not data.is_dir():
        raise InputError(f"data: no folder {data}")
    for folder in FOLDERS:
        files = sorted(f for f in (data / folder).glob("*.json") if not f.name.startswith("."))
        if files:
            return {file.stem: file for file in files}
    raise InputError(f"data: no sequence in {data}; expected PoseTrack18's annotations/val/SEQUENCE.json")


def _load(file: Path, detections: Path | None) -> DetectionSequence:
    images = read_pose_frames(file)
    videos = sorted({PurePosixPath(one.name).parent.name for one in images})
    if len(videos) != 1:
        raise SequenceError(f"{file}: expected the frames of one video, got {len(videos)} {' '.join(videos[:2])}")
    for one in images:
        _check(file, one)
    frames = [one for one in images if one.labeled]
    if not frames:
        raise SequenceError(f"{file}: none of the {len(images)} frames is labeled")
    if detections is not None:
        frames = _detected(detections, images)
    names = tuple(one.name for one in frames)
    given = tuple(replace(one.found, ids=None) for one in frames)
    return DetectionSequence(file.stem, _images(file, names), given, PoseGroundTruth(tuple(images), names))


def _check(file: Path, one: PoseFrame) -> None:
    """What the truth must have, and detections need not."""
    if one.found.ids is None:
        raise SequenceError(f"{file}: {one.name}: a person has no track_id")
    if len(np.unique(one.found.ids)) < len(one.found):
        raise SequenceError(f"{file}: {one.name}: a track_id is there twice")
    if np.isnan(one.heads).any():
        track = one.found.ids[np.isnan(one.heads)][0]
        raise SequenceError(f"{file}: {one.name}: the person of track_id {track} has no bbox_head")


def _detected(file: Path, images: Sequence[PoseFrame]) -> list[PoseFrame]:
    frames = read_pose_frames(file)
    names, known = {one.name for one in frames}, {one.name for one in images}
    if other := sorted(names - known):
        raise SequenceError(f"{file}: {other[0]} is none of the {len(known)} frames of the annotation")
    if lacking := [one.name for one in images if one.labeled and one.name not in names]:
        raise SequenceError(f"{file}: {len(lacking)} labeled frames are missing, the first is {lacking[0]}")
    return frames


def _images(file: Path, names: Sequence[str]) -> ImageFrames:
    above = [folder for folder in file.absolute().parents if any((folder / name).is_file() for name in names)]
    if not above:
        raise SequenceError(f"no {names[0]} in any of the folders above {file}")
    missing = [name for name in names if not (above[0] / name).is_file()]
    if missing:
        count = f"{len(missing)} of {len(names)} frames"
        raise SequenceError(f"{count} of {file} are missing in {above[0]}, the first is {missing[0]}")
    return ImageFrames(tuple(above[0] / name for name in names), RATE)


def write_poses(folder: Path, sequence: DetectionSequence, tracks: Tracks) -> None:
    """SEQUENCE.json in PoseTrack18's form, with all frames that the annotation lists, as PoseTrack's evaluation asks.

    ``tracks`` has one entry for each frame of a sequence of ``open_pose_detections``; a person's score is that of all joints.
    """
    truth: PoseGroundTruth = sequence.ground_truth
    of = dict(zip(truth.names, tracks, strict=True))
    nobody = FrameObjects(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), poses=np.zeros((0, len(JOINTS), 3)))
    write_pose_frames(
        folder / f"{sequence.name}.json", truth.images, [of.get(one.name, nobody) for one in truth.images]
    )


def read_poses(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    """What ``write_poses`` wrote for this sequence; boxes are around the joints.

    Raises:
        SequenceError: damage, another sequence, or a person without track.
    """
    file = folder / f"{sequence.name}.json"
    known = {one.name: one.found for one in read_pose_frames(file)}
    truth: PoseGroundTruth = sequence.ground_truth
    for name in truth.names:
        if name not in known or known[name].ids is None:
            raise SequenceError(f"{file}: expected {name}, and a track_id of each person in it")
    return [known[name] for name in truth.names]
