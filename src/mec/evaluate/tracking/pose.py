"""``pose``: people told apart, from their poses in every frame (UniTrack's pose tracking)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.association import Association
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections, read_poses, write_poses
from mec.evaluate.tracking.metrics.posetrack import pose_scores, pose_similarities
from mec.evaluate.tracking.runner import Call, Keeping, loaded
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, Scores, Tracks
from mec.evaluate.tracking.track_objects import Look, poses_look, tell_apart
from mec.results import Result, Stopwatch

COLUMNS = ("IDF1", "MOTA", "switches", "person IDF1")


def pose(
    data: Source,
    encoder: EncoderLike,
    detections: str | None = None,
    stage: str = "s3",
    motion: bool = False,
    corrected: bool = False,
    patience: int = 30,
    sequences: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    render: str | os.PathLike[str] | None = None,
    half: bool | None = None,
) -> Result:
    """Tell apart people whose poses are given, with frozen features and nothing trained (UniTrack, Wang et al. 2021).

    Figures are PoseTrack's, joint by joint over all sequences together: IDF1, MOTA, switches of identity; and those of
    whole persons. The last row joins poses to tracks by overlap of their boxes alone, without any encoder.

    Args:
        data: a folder with annotations/val/SEQUENCE.json as PoseTrack18 has them, and the frames they name.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        detections: null for the true poses; or a folder of SEQUENCE.json.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last. The paper reports the
            better of the two.
        motion: let the distance from where a track is expected share in the cost of a pair; false compares what
            encoders see.
        corrected: compare sets of cells without filling them up to one size, and boxes as large as they are; false
            compares with published figures.
        patience: frames, at 30 a second, that an object may be out of sight.
        sequences: those to take, or patterns, such as [*_mpii_test]; null is all.
        out: folder for the tracks, as PoseTrack18 has them, and the figures of each sequence.
        resume: go on with what is in ``out``.
        render: film to draw, such as out.mp4.
        half: compute in 16 bits; null: on GPUs.
    """
    clock = Stopwatch()
    settings = Association(
        motion=0.0001 if motion else 0.0, gated=False, newcomer_cost=0.6, duplicate_cost=0.2, confirmed=True,
        patience=patience, published=not corrected,
    )  # fmt: skip
    opened = loaded(data, open_pose_detections(Path(data).expanduser(), detections, sequences))
    chosen = {"task": "pose", "corrected": corrected, "detections": detections}
    call = Call(data, encoder, stage, half, out, resume, render, chosen | vars(settings))

    def look(appearance: bool) -> Look:
        return poses_look(call.dense, appearance)

    return tell_apart(call, opened, look, settings, Keeping(_write, _read), _score, COLUMNS).result(call, clock())


def _score(sequences: list[DetectionSequence], tracks: Mapping[str, Tracks]) -> Scores:
    return pose_scores({one.name: pose_similarities(one, tracks[one.name]) for one in sequences})


def _write(folder: Path, sequence: DetectionSequence, tracks: list[FrameObjects]) -> None:
    write_poses(folder, sequence, tracks)


def _read(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    return read_poses(folder, sequence)
