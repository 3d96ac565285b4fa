"""Tracking of all detected objects in a video: appearance features of every frame, then association."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.tracking.appearance import box_features, letterbox, mask_box, mask_features, masks_on_grid
from mec.evaluate.tracking.association import AssociationSettings, OnlineTracker, box_iou
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.sequences import Boxes, DetectionSequence, Frame, FrameObjects, SequenceError
from mec.evaluate.tracking.skeletons import pose_boxes, pose_mask

MAX_MASK_CELLS, MAX_POSE_CELLS = 200, 400  # approximate limit of the cells of an object that are compared
DUPLICATE_IOU = 0.7  # a mask is a duplicate if the IoU of its box with that of an earlier mask is larger
MIN_AREA, MAX_ASPECT_RATIO = 200.0, 1.6
"""Tracked boxes of smaller area in square pixels, or of a larger width / height, are dropped: they are not people."""


FeatureExtractor = Callable[[Frame, FrameObjects], tuple[FrameObjects, Boxes, list[Tensor]]]
"""Prepares the detections of a frame for association. Returns k objects (detections without duplicates and without
those that cover no cell), their boxes (k, 4) for the Kalman filter in pixels or cells, and the appearance features
(d, cells) of each object, empty without an encoder."""


def track_objects(
    sequence: DetectionSequence, extract: FeatureExtractor, settings: AssociationSettings
) -> Iterator[FrameObjects]:
    """Yield the tracked objects of each frame, with ids.

    Boxes are those of the Kalman filter if the detections are boxes; masks and poses stay as they are.

    Raises:
        SequenceError: a frame cannot be read.
    """
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
    """Extract the features of boxes from the frame resized to 1088 x 608 (a FeatureExtractor)."""
    features = []
    if use_appearance:
        features = box_features(letterbox(dense.preprocess(frame), dense), detections.boxes, dense, corrected)
    return detections, detections.boxes, features


def extract_masks(
    frame: Frame, detections: FrameObjects, dense: DenseFeatures, use_appearance: bool = True
) -> tuple[FrameObjects, Boxes, list[Tensor]]:
    """Extract the features of masks from the frame in its original size (a FeatureExtractor)."""
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
    """Extract the features of poses, drawn as masks, from the frame in its original size (a FeatureExtractor)."""
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
