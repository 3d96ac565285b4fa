"""``mot``, ``mots``, ``pose``: association of given boxes, masks or poses into tracks (UniTrack)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mec.evaluate.drawing import draw_objects
from mec.evaluate.tracking.association import AssociationSettings
from mec.evaluate.tracking.datasets.motchallenge import open_box_detections, read_tracks, write_tracks
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.mots_format import read_mots_tracks, write_mots_tracks
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections, read_poses, write_poses
from mec.evaluate.tracking.metrics.identity import (
    box_similarities,
    identity_scores,
    import_trackeval,
    mask_similarities,
    mots_scores,
)
from mec.evaluate.tracking.metrics.posetrack import pose_scores, pose_similarities
from mec.evaluate.tracking.runner import DrawFrame, TrackingRun, TrackingSettings
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, Scores, Tracks
from mec.evaluate.tracking.track_objects import extract_boxes, extract_masks, extract_poses, track_objects
from mec.models.encoder import EncoderLike
from mec.results import Result

GROUND_TRUTH = "ground truth"  # detections in the protocol of tasks that use the annotations


@dataclass(frozen=True)
class AssociationTaskSettings(TrackingSettings):
    """Settings of ``mot``, ``mots`` and ``pose``, in addition to those of all tracking tasks.

    Args:
        motion: add the distance from the predicted position to the cost of a pair; false uses appearance alone,
            which is the protocol for comparing encoders.
        corrected: fix the errors of the published code: compute the exact overlap of boxes; place the cells of a box
            exactly, in a grid that suits upright people; compare sets of cells without padding. False is comparable
            with published results.
        patience: number of frames, at 30 frames per second, that an object may be out of sight.
    """

    motion: bool = False
    corrected: bool = False
    patience: int = 30

    def association(self, motion_weight: float, **options: Any) -> AssociationSettings:
        weight = motion_weight if self.motion else 0.0
        return AssociationSettings(weight, patience=self.patience, corrected=self.corrected, **options)

    def protocol(self, detections: str) -> dict[str, Any]:
        return {
            "detections": detections, "motion": self.motion, "patience": self.patience, "corrected": self.corrected,
        }  # fmt: skip


def mot(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    detections: str | None = None,
    min_score: float = 0.5,
    **settings: Any,
) -> Result:
    """Associate detected boxes into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of MOTChallenge, over all sequences together: HOTA, IDF1, MOTA, ID switches and more. The last row
    is the baseline that associates boxes by overlap alone, without an encoder.

    Args:
        data: sequences in the layout of MOTChallenge (MOT15, 16, 17, 20), or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the det/det.txt of each sequence; gt: the ground truth; or a folder of SEQUENCE.txt.
        min_score: only boxes with a higher score are used.
        settings: those of AssociationTaskSettings and TrackingSettings.
    """
    shared = AssociationTaskSettings(**settings)
    association = shared.association(0.02)
    loaders = open_box_detections(Path(data).expanduser(), detections, min_score, shared.sequences)
    protocol = shared.protocol(GROUND_TRUTH if detections == "gt" else detections or "det.txt")
    protocol["min_score"] = min_score
    run = TrackingRun("mot", data, encoder, loaders, shared, protocol, vars(association))
    return _associate(
        run,
        partial(extract_boxes, dense=run.dense, corrected=shared.corrected),
        association,
        write=lambda folder, sequence, tracks: write_tracks(folder, sequence.name, tracks),
        read=lambda folder, sequence: read_tracks(folder, sequence.name, len(sequence.frames)),
        similarities=box_similarities,
        scores=identity_scores,
        columns=("HOTA", "IDF1", "MOTA", "ID switches"),
    )


def mots(data: str | os.PathLike[str], encoder: EncoderLike, detections: str | None = None, **settings: Any) -> Result:
    """Associate segmentation masks into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of MOTS, over all sequences together: sMOTSA, HOTA, IDF1, MOTSA, ID switches and more. The last
    row is the baseline that associates masks by overlap alone, without an encoder.

    Args:
        data: sequences in the layout of MOTSChallenge or KITTI MOTS, or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the ground truth, as in UniTrack; or a folder of SEQUENCE.txt.
        settings: those of AssociationTaskSettings and TrackingSettings.
    """
    shared = AssociationTaskSettings(**settings)
    association = shared.association(0.02, gating=False, confirm_at_once=True)
    loaders = open_mask_detections(Path(data).expanduser(), detections, shared.sequences)
    protocol = shared.protocol(detections or GROUND_TRUTH)
    run = TrackingRun("mots", data, encoder, loaders, shared, protocol, vars(association))
    return _associate(
        run,
        partial(extract_masks, dense=run.dense),
        association,
        write=lambda folder, sequence, tracks: write_mots_tracks(folder, sequence.name, tracks),
        read=lambda folder, sequence: read_mots_tracks(folder, sequence.name, len(sequence.frames)),
        similarities=mask_similarities,
        scores=mots_scores,
        columns=("sMOTSA", "HOTA", "IDF1", "ID switches"),
    )


def pose(data: str | os.PathLike[str], encoder: EncoderLike, detections: str | None = None, **settings: Any) -> Result:
    """Associate human poses into tracks with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are those of PoseTrack, joint by joint over all sequences together: IDF1, MOTA and ID switches; and those of
    whole persons. The last row is the baseline that associates poses by the overlap of their boxes alone, without an
    encoder.

    Args:
        data: a folder with annotations/val/SEQUENCE.json in the format of PoseTrack18, and the frames they name.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        detections: null: the ground truth; or a folder of SEQUENCE.json.
        settings: those of AssociationTaskSettings and TrackingSettings.
    """
    shared = AssociationTaskSettings(**settings)
    association = shared.association(
        0.0001, gating=False, confirm_at_once=True, max_unconfirmed_cost=0.6, max_duplicate_cost=0.2
    )
    loaders = open_pose_detections(Path(data).expanduser(), detections, shared.sequences)
    protocol = shared.protocol(detections or GROUND_TRUTH)
    run = TrackingRun("pose", data, encoder, loaders, shared, protocol, vars(association))
    return _associate(
        run,
        partial(extract_poses, dense=run.dense),
        association,
        write=write_poses,
        read=read_poses,
        similarities=pose_similarities,
        scores=pose_scores,
        columns=("IDF1", "MOTA", "ID switches", "person IDF1"),
    )


def _associate(
    run: TrackingRun[DetectionSequence],
    extract: Callable[..., Any],
    settings: AssociationSettings,
    write: Callable[[Path, DetectionSequence, Tracks], None],
    read: Callable[[Path, DetectionSequence], list[FrameObjects] | None],
    similarities: Callable[[DetectionSequence, Tracks], Any],
    scores: Callable[[Mapping[str, Any]], Scores],
    columns: tuple[str, ...],
) -> Result:
    """Track in all sequences by appearance, and again by overlap alone as a baseline.

    ``extract`` is a FeatureExtractor with the option ``use_appearance``. ``similarities`` compares the tracks of one
    sequence with its ground truth, and ``scores`` computes the metrics of all sequences. ``columns`` are those of the
    result; metrics.json has all.
    """
    import_trackeval()  # fail before hours of tracking if it is missing

    def score(tracks: Callable[[DetectionSequence], Tracks]) -> Scores:
        return scores({s.name: similarities(s, tracks(s)) for s in run.sequences})

    def draw(sequence: DetectionSequence) -> DrawFrame:
        objects = tracks(sequence)
        return lambda i, frame: draw_objects(frame, objects[i])

    tracks = run.track(lambda s: track_objects(s, extract, settings), write, read)
    by_appearance = score(tracks)
    without_features, overlap_only = partial(extract, use_appearance=False), replace(settings, use_appearance=False)
    baseline = score(lambda s: list(track_objects(s, without_features, overlap_only)))["all"]
    all_rows = {"encoder": by_appearance["all"], "overlap alone": baseline}
    rows = {row: {column: values[column] for column in columns} for row, values in all_rows.items()}
    return run.finish(rows, {**by_appearance, "overlap alone": baseline}, draw)
