"""Following all that is found in a video: frame by frame, how each object looks, and which track it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from torch import Tensor

from mec.evaluate.drawing.tracks import draw_objects
from mec.evaluate.tracking.appearance import box_looks, letterbox, mask_looks, on_map, spread_box
from mec.evaluate.tracking.association import Association, Associator, overlaps
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.metrics.trackeval_library import import_trackeval
from mec.evaluate.tracking.runner import Call, Followed, Keeping, film, follow_all
from mec.evaluate.tracking.sequences import Boxes, DetectionSequence, Frame, FrameObjects, Scores, SequenceError, Tracks
from mec.evaluate.tracking.skeletons import pose_boxes, pose_mask
from mec.results import Protocol, Result, to_metrics

MASK_CELLS, POSE_CELLS = 200, 400
"""Cells of an object that are compared at most."""
SAME_MASK = 0.7
"""Masks whose boxes overlap by more are of one object, and the first stays."""
LEAST_AREA, WIDEST = 200.0, 1.6
"""Boxes of tracks that are smaller in square pixels, or more times as wide as high, are no people."""


@dataclass(frozen=True)
class Looked:
    """What is left of what was found in a frame; where each is, as the filter takes it; and how it looks."""

    found: FrameObjects
    boxes: Boxes
    looks: list[Tensor]


Look = Callable[[Frame, FrameObjects], Looked]


def track_objects(sequence: DetectionSequence, look: Look, settings: Association) -> Iterator[FrameObjects]:
    """What is found in each frame and belongs to a track, with its id.

    Boxes are as the filter has them where they are what was found; masks and poses as they were given.

    Raises:
        SequenceError: a frame that cannot be read.
    """
    associator = Associator(settings, sequence.frames.frame_rate)
    for frame, given in zip(sequence.frames, sequence.detections, strict=True):
        looked = look(frame, given)
        ids, numbers, boxes = associator.step(looked.boxes, looked.looks)
        found = looked.found.take(numbers, ids)
        if found.masks is None and found.poses is None:
            likely = (boxes[:, 2:].prod(axis=1) > LEAST_AREA) & (boxes[:, 2] <= WIDEST * boxes[:, 3])
            found = FrameObjects(boxes, found.scores, ids).take(likely)
        yield found


def boxes_look(dense: Dense | None, corrected: bool = False) -> Look:
    """Of boxes in a frame fitted into 1088 x 608; without ``dense`` they have no looks."""

    def look(frame: Frame, found: FrameObjects) -> Looked:
        looks = [] if dense is None else box_looks(letterbox(dense.image(frame), dense), found.boxes, dense, corrected)
        return Looked(found, found.boxes, looks)

    return look


def masks_look(dense: Dense, appearance: bool = True) -> Look:
    """Of masks in a frame as large as it is; one that covers no cell's corner is passed over."""

    def look(frame: Frame, found: FrameObjects) -> Looked:
        masks = _decoded(frame, found)
        cells = on_map(masks, dense)
        boxes = np.array([spread_box(one) for one in cells]).reshape(-1, 4)
        kept = _apart(boxes, np.flatnonzero(cells.any(axis=(1, 2))))
        looks = mask_looks(dense(dense.image(frame)), cells[kept], MASK_CELLS) if appearance and len(kept) else []
        return Looked(found.take(kept), boxes[kept], looks)

    return look


def poses_look(dense: Dense, appearance: bool = True) -> Look:
    """Of poses drawn as masks in a frame as large as it is."""

    def look(frame: Frame, found: FrameObjects) -> Looked:
        poses = found.poses
        assert poses is not None
        boxes = pose_boxes(poses)
        if not appearance or not len(found):
            return Looked(found, boxes, [])
        masks = np.stack([pose_mask(pose, frame.shape[:2]) for pose in poses])
        return Looked(found, boxes, mask_looks(dense(dense.image(frame)), on_map(masks, dense), POSE_CELLS))

    return look


def _decoded(frame: Frame, found: FrameObjects) -> NDArray[np.uint8]:
    """(k, h, w)."""
    assert found.masks is not None
    height, width = frame.shape[:2]
    for mask in found.masks:
        if tuple(mask["size"]) != (height, width):
            size = f"{mask['size'][1]} x {mask['size'][0]}"
            raise SequenceError(f"a mask is {size}, its frame {width} x {height}")
    if not found.masks:
        return np.zeros((0, height, width), np.uint8)
    return np.stack([rle.decode(mask) for mask in found.masks])


def _apart(boxes: Boxes, there: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the numbers ``there`` that are no double of one before."""
    same = overlaps(boxes, boxes) > SAME_MASK
    kept: list[int] = []
    for n in there.tolist():
        if not same[n, kept].any():
            kept.append(n)
    return np.array(kept, np.int64)


class Told(NamedTuple):
    """run: the tracks. figures: of all sequences, a row with looks and one without."""

    run: Followed[DetectionSequence, FrameObjects]
    figures: Scores

    def result(self, call: Call, seconds: float) -> Result:
        return Result(
            task=call.task,
            protocol=Protocol(f"{call.task}-unitrack", call.protocol_settings()),
            dataset=self.run.summary(call.data),
            encoder=call.dense.description,
            rows={row: to_metrics(values) for row, values in self.figures.items()},
            seconds=seconds,
            skipped=self.run.broken,
            note=self.run.speed,
        )


def tell_apart(
    call: Call,
    opened: Followed[DetectionSequence, FrameObjects],
    look: Callable[[bool], Look],
    settings: Association,
    keeping: Keeping[DetectionSequence, FrameObjects],
    score: Callable[[list[DetectionSequence], Mapping[str, Tracks]], Scores],
    columns: Sequence[str],
) -> Told:
    """Follow all sequences by looks; then by overlap with where each is expected alone, to read the figures against.

    Of the figures those in ``columns`` are told; all are kept.
    """
    import_trackeval()  # what is missing for the figures is better known before hours of tracking
    run = follow_all(call, opened, lambda one: track_objects(one, look(True), settings), keeping)
    scores = score(run.sequences, run.tracks)
    blind = replace(settings, appearance=False)
    without = {one.name: list(track_objects(one, look(False), blind)) for one in run.sequences}
    alone = score(run.sequences, without)["all"]
    call.keep_figures({**scores, "overlap alone": alone}, run.broken)
    film(call, run.sequences, lambda one: _drawn(run.tracks[one.name]))
    rows = {"encoder": scores["all"], "overlap alone": alone}
    return Told(run, {row: {column: values[column] for column in columns} for row, values in rows.items()})


def _drawn(tracks: Tracks) -> Callable[[int, Frame], Frame]:
    return lambda number, frame: draw_objects(frame, tracks[number])
