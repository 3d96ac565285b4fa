"""``mot``, ``mots``, ``pose``: association of given boxes, masks or poses into tracks (UniTrack)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mec.evaluate.drawing.tracks import draw_objects
from mec.evaluate.tracking.association import AssociationSettings
from mec.evaluate.tracking.datasets.motchallenge import open_box_detections, read_tracks, write_tracks
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.mots_format import read_mots_tracks, write_mots_tracks
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections, read_poses, write_poses
from mec.evaluate.tracking.dense_features import Precision
from mec.evaluate.tracking.metrics.identity import identity_scores
from mec.evaluate.tracking.metrics.motchallenge import box_similarities
from mec.evaluate.tracking.metrics.mots import mask_similarities, mots_scores
from mec.evaluate.tracking.metrics.posetrack import pose_scores, pose_similarities
from mec.evaluate.tracking.metrics.trackeval_library import import_trackeval
from mec.evaluate.tracking.rendering import DrawFrame, render_video
from mec.evaluate.tracking.runner import TrackedSequences, TrackFormat, TrackingRun, load_sequences, track_all
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, Scores, Tracks
from mec.evaluate.tracking.track_objects import (
    FeatureExtractor,
    box_extractor,
    mask_extractor,
    pose_extractor,
    track_objects,
)
from mec.models.encoder import EncoderLike
from mec.results import Result, Stopwatch

GROUND_TRUTH = "ground truth"
"""Detections in the protocol of tasks that use the annotations."""


@dataclass(frozen=True)
class Benchmark:
    """Files and metrics of a task.

    similarities: compares the tracks of one sequence with its ground truth.
    scores: computes the metrics of all sequences from their similarities.
    columns: metrics of the result; metrics.json has all.
    """

    track_format: TrackFormat[DetectionSequence, FrameObjects]
    similarities: Callable[[DetectionSequence, Tracks], Any]
    scores: Callable[[Mapping[str, Any]], Scores]
    columns: tuple[str, ...]


MOT = Benchmark(
    TrackFormat(
        lambda folder, sequence, tracks: write_tracks(folder, sequence.name, tracks),
        lambda folder, sequence: read_tracks(folder, sequence.name, len(sequence.frames)),
    ),
    box_similarities,
    identity_scores,
    ("HOTA", "IDF1", "MOTA", "ID switches"),
)
MOTS = Benchmark(
    TrackFormat(
        lambda folder, sequence, tracks: write_mots_tracks(folder, sequence.name, tracks),
        lambda folder, sequence: read_mots_tracks(folder, sequence.name, len(sequence.frames)),
    ),
    mask_similarities,
    mots_scores,
    ("sMOTSA", "HOTA", "IDF1", "ID switches"),
)
POSE = Benchmark(
    TrackFormat(write_poses, read_poses),
    pose_similarities,
    pose_scores,
    ("IDF1", "MOTA", "ID switches", "person IDF1"),
)


def mot(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    detections: str | None = None,
    min_score: float = 0.5,
    stage: str = "s3",
    motion: bool = False,
    corrected: bool = False,
    patience: int = 30,
    sequences: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    render: str | os.PathLike[str] | None = None,
    precision: Precision = "auto",
) -> Result:
    """Associate detected boxes into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of MOTChallenge, over all sequences together: HOTA, IDF1, MOTA, ID switches and more. The last row
    is the baseline that associates boxes by overlap alone, without an encoder.

    Args:
        data: sequences in the layout of MOTChallenge (MOT15, 16, 17, 20), or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the det/det.txt of each sequence; gt: the ground truth; or a folder of SEQUENCE.txt.
        min_score: only boxes with a higher score are used.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        motion: add the distance from the predicted position to the cost of a pair; false uses appearance alone,
            which is the protocol for comparing encoders.
        corrected: place cells exactly and in a grid that suits upright people, and compute the exact overlap of boxes;
            false is comparable with published results.
        patience: number of frames, at 30 frames per second, that an object may be out of sight.
        sequences: names or patterns of sequences to use, such as [*-FRCNN]; null: all.
        out: folder for the tracks, in MOTChallenge's format, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """
    clock = Stopwatch()
    weight = 0.02 if motion else 0.0
    settings = AssociationSettings(motion_weight=weight, gating=True, patience=patience, corrected=corrected)
    loaded = load_sequences(data, open_box_detections(Path(data).expanduser(), detections, min_score, sequences))
    protocol = _protocol(GROUND_TRUTH if detections == "gt" else detections or "det.txt", motion, settings)
    protocol["min_score"] = min_score
    run = TrackingRun("mot", data, encoder, stage, precision, out, resume, render, protocol, vars(settings))
    return associate(run, loaded, partial(box_extractor, run.dense, corrected=corrected), settings, MOT, clock)


def mots(
    data: str | os.PathLike[str],
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
    precision: Precision = "auto",
) -> Result:
    """Associate segmentation masks into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of MOTS, over all sequences together: sMOTSA, HOTA, IDF1, MOTSA, ID switches and more. The last
    row is the baseline that associates masks by overlap alone, without an encoder.

    Args:
        data: sequences in the layout of MOTSChallenge or KITTI MOTS, or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the ground truth, as in UniTrack; or a folder of SEQUENCE.txt.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        motion: add the distance from the predicted position to the cost of a pair; false uses appearance alone,
            which is the protocol for comparing encoders.
        corrected: compare sets of cells without padding, and compute the exact overlap of boxes; false is comparable
            with published results.
        patience: number of frames, at 30 frames per second, that an object may be out of sight.
        sequences: names or patterns of sequences to use, such as [*-02]; null: all.
        out: folder for the tracks, in the format of MOTS, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """
    clock = Stopwatch()
    settings = AssociationSettings(
        motion_weight=0.02 if motion else 0.0, gating=False, confirm_at_once=True, patience=patience,
        corrected=corrected,
    )  # fmt: skip
    loaded = load_sequences(data, open_mask_detections(Path(data).expanduser(), detections, sequences))
    protocol = _protocol(detections or GROUND_TRUTH, motion, settings)
    run = TrackingRun("mots", data, encoder, stage, precision, out, resume, render, protocol, vars(settings))
    return associate(run, loaded, partial(mask_extractor, run.dense), settings, MOTS, clock)


def pose(
    data: str | os.PathLike[str],
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
    precision: Precision = "auto",
) -> Result:
    """Associate human poses into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of PoseTrack, joint by joint over all sequences together: IDF1, MOTA and ID switches; and those of
    whole persons. The last row is the baseline that associates poses by the overlap of their boxes alone, without an
    encoder.

    Args:
        data: a folder with annotations/val/SEQUENCE.json in the format of PoseTrack18, and the frames they name.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the ground truth; or a folder of SEQUENCE.json.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        motion: add the distance from the predicted position to the cost of a pair; false uses appearance alone,
            which is the protocol for comparing encoders.
        corrected: compare sets of cells without padding, and compute the exact overlap of boxes; false is comparable
            with published results.
        patience: number of frames, at 30 frames per second, that an object may be out of sight.
        sequences: names or patterns of sequences to use, such as [*_mpii_test]; null: all.
        out: folder for the tracks, in the format of PoseTrack18, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """
    clock = Stopwatch()
    settings = AssociationSettings(
        motion_weight=0.0001 if motion else 0.0, gating=False, max_unconfirmed_cost=0.6, max_duplicate_cost=0.2,
        confirm_at_once=True, patience=patience, corrected=corrected,
    )  # fmt: skip
    loaded = load_sequences(data, open_pose_detections(Path(data).expanduser(), detections, sequences))
    protocol = _protocol(detections or GROUND_TRUTH, motion, settings)
    run = TrackingRun("pose", data, encoder, stage, precision, out, resume, render, protocol, vars(settings))
    return associate(run, loaded, partial(pose_extractor, run.dense), settings, POSE, clock)


def _protocol(detections: str, motion: bool, settings: AssociationSettings) -> dict[str, Any]:
    return {
        "detections": detections, "motion": motion, "patience": settings.patience, "corrected": settings.corrected,
    }  # fmt: skip


def associate(
    run: TrackingRun,
    loaded: TrackedSequences[DetectionSequence, FrameObjects],
    extractor: Callable[[bool], FeatureExtractor],
    settings: AssociationSettings,
    benchmark: Benchmark,
    clock: Stopwatch,
) -> Result:
    """Track in all sequences by appearance, and again by overlap alone as a baseline.

    Args:
        run: has the output folder and the protocol.
        loaded: sequences to track in.
        extractor: returns a feature extractor, given whether appearance is used.
        settings: settings of the association.
        benchmark: files and metrics of the task.
        clock: timer of the result's wall time.
    """
    import_trackeval()  # fail before hours of tracking if it is missing

    def score(sequences: Sequence[DetectionSequence], tracks: Mapping[str, Tracks]) -> Scores:
        return benchmark.scores({s.name: benchmark.similarities(s, tracks[s.name]) for s in sequences})

    tracked = track_all(run, loaded, lambda s: track_objects(s, extractor(True), settings), benchmark.track_format)
    scores = score(tracked.sequences, tracked.tracks)
    overlap_only = replace(settings, use_appearance=False)
    baseline_tracks = {s.name: list(track_objects(s, extractor(False), overlap_only)) for s in tracked.sequences}
    baseline = score(tracked.sequences, baseline_tracks)["all"]
    run.write_metrics({**scores, "overlap alone": baseline}, tracked.skipped)
    render_video(run, tracked.sequences, lambda s: _draw(tracked.tracks[s.name]))
    rows = {"encoder": scores["all"], "overlap alone": baseline}
    columns = benchmark.columns
    return run.result(tracked, {row: {c: values[c] for c in columns} for row, values in rows.items()}, clock())


def _draw(tracks: Tracks) -> DrawFrame:
    return lambda i, frame: draw_objects(frame, tracks[i])
