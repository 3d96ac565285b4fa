"""``mot``, ``mots``, ``pose``: association of given boxes, masks or poses into tracks (UniTrack)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.drawing import draw_objects
from mec.evaluate.tracking.appearance import box_features, letterbox, mask_box, mask_features, masks_on_grid, pose_mask
from mec.evaluate.tracking.association import AssociationSettings, OnlineTracker, box_iou
from mec.evaluate.tracking.datasets.motchallenge import open_box_detections, read_tracks, write_tracks
from mec.evaluate.tracking.datasets.mots import open_mask_detections, read_mots_tracks, write_mots_tracks
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections, read_poses, write_poses
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.metrics.identity import (
    box_similarities,
    identity_scores,
    import_trackeval,
    mask_similarities,
    mots_scores,
)
from mec.evaluate.tracking.metrics.posetrack import pose_scores, pose_similarities
from mec.evaluate.tracking.runner import DrawFrame, TrackingRun, TrackingSettings
from mec.evaluate.tracking.sequences import (
    Boxes,
    DetectionSequence,
    Frame,
    FrameObjects,
    Scores,
    SequenceError,
    Tracks,
    pose_boxes,
)
from mec.models.encoder import EncoderLike
from mec.results import Result

logger = logging.getLogger("mec")

GROUND_TRUTH = "ground truth"  # detections in the protocol of tasks that use the annotations
MAX_MASK_CELLS, MAX_POSE_CELLS = 200, 400  # approximate limit of the cells of an object that are compared
DUPLICATE_IOU = 0.7  # a mask is a duplicate if the IoU of its box with that of an earlier mask is larger
MIN_AREA, MAX_ASPECT_RATIO = 200.0, 1.6  # tracked boxes of smaller area, or larger width / height, are not people
FeatureExtractor = Callable[..., tuple[FrameObjects, Boxes, list[Tensor]]]
"""Prepares the detections of a frame: ``extract(frame, detections, use_appearance=True)`` returns k objects (detections
without duplicates and without those that cover no cell), their boxes (k, 4) for the Kalman filter in pixels or cells,
and the appearance features (d, cells) of each object, empty without ``use_appearance``."""


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
    extract: FeatureExtractor,
    settings: AssociationSettings,
    write: Callable[[Path, DetectionSequence, Tracks], None],
    read: Callable[[Path, DetectionSequence], list[FrameObjects] | None],
    similarities: Callable[[DetectionSequence, Tracks], Any],
    scores: Callable[[Mapping[str, Any]], Scores],
    columns: tuple[str, ...],
) -> Result:
    """Track in all sequences by appearance, and again by overlap alone as a baseline. ``similarities`` compares a
    sequence's tracks with its ground truth; the result has the ``columns`` of ``scores``, metrics.json has all."""
    import_trackeval()  # fail before hours of tracking if it is missing
    if all(len(sequence.frames) == 1 for sequence in run.sequences):
        logger.warning("data: one frame per sequence, so no identity can be confused; the metrics do not rank encoders")

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


def track_objects(
    sequence: DetectionSequence, extract: FeatureExtractor, settings: AssociationSettings
) -> Iterator[FrameObjects]:
    """Yield the tracked objects of each frame, with ids; boxes without mask or pose are those of the filter."""
    tracker = OnlineTracker(settings, sequence.frames.frame_rate)
    for frame, detections in zip(sequence.frames, sequence.detections, strict=True):
        objects, boxes, features = extract(frame, detections)
        ids, indices, boxes = tracker.step(boxes, features)
        objects = objects.take(indices, ids)
        if objects.masks is None and objects.poses is None:
            plausible = (boxes[:, 2:].prod(axis=1) > MIN_AREA) & (boxes[:, 2] <= MAX_ASPECT_RATIO * boxes[:, 3])
            objects = FrameObjects(boxes, objects.scores, ids).take(plausible)
        yield objects


def extract_boxes(
    frame: Frame, detections: FrameObjects, dense: DenseFeatures, use_appearance: bool = True, corrected: bool = False
) -> tuple[FrameObjects, Boxes, list[Tensor]]:
    """Extract the features of boxes from the frame resized to 1088 x 608."""
    features = []
    if use_appearance:
        features = box_features(letterbox(dense.preprocess(frame), dense), detections.boxes, dense, corrected)
    return detections, detections.boxes, features


def extract_masks(
    frame: Frame, detections: FrameObjects, dense: DenseFeatures, use_appearance: bool = True
) -> tuple[FrameObjects, Boxes, list[Tensor]]:
    """Extract the features of masks from the frame in its original size."""
    cells = masks_on_grid(_decode_masks(frame, detections), dense)
    boxes = np.array([mask_box(mask) for mask in cells]).reshape(-1, 4)
    duplicates = box_iou(boxes, boxes) > DUPLICATE_IOU
    kept: list[int] = []
    for index in np.flatnonzero(cells.any(axis=(1, 2))).tolist():
        if not duplicates[index, kept].any():
            kept.append(index)
    features = []
    if use_appearance and kept:
        features = mask_features(dense(dense.preprocess(frame)), cells[kept], MAX_MASK_CELLS)
    return detections.take(np.array(kept, np.int64)), boxes[kept], features


def extract_poses(
    frame: Frame, detections: FrameObjects, dense: DenseFeatures, use_appearance: bool = True
) -> tuple[FrameObjects, Boxes, list[Tensor]]:
    """Extract the features of poses, drawn as masks, from the frame in its original size."""
    assert detections.poses is not None
    features = []
    if use_appearance and len(detections):
        masks = np.stack([pose_mask(pose, frame.shape[:2]) for pose in detections.poses])
        features = mask_features(dense(dense.preprocess(frame)), masks_on_grid(masks, dense), MAX_POSE_CELLS)
    return detections, pose_boxes(detections.poses), features


def _decode_masks(frame: Frame, detections: FrameObjects) -> NDArray[np.uint8]:
    """Return the masks (k, h, w). Raises SequenceError if their size is not that of the frame."""
    assert detections.masks is not None
    height, width = frame.shape[:2]
    for mask in detections.masks:
        if tuple(mask["size"]) != (height, width):
            size = f"{mask['size'][1]} x {mask['size'][0]}"
            raise SequenceError(f"a mask is {size}, its frame {width} x {height}")
    if not detections.masks:
        return np.zeros((0, height, width), np.uint8)
    return np.stack([rle.decode(mask) for mask in detections.masks])
