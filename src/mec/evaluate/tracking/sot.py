"""``sot``: single-object tracking from the box in the first frame (UniTrack)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.drawing.tracks import draw_objects
from mec.evaluate.tracking.correlation import grid_size
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.datasets.single_object_boxes import read_boxes, write_boxes
from mec.evaluate.tracking.dense_features import Precision
from mec.evaluate.tracking.metrics.otb import box_scores
from mec.evaluate.tracking.rendering import DrawFrame, render_video
from mec.evaluate.tracking.runner import TrackedSequences, TrackFormat, TrackingRun, load_sequences, track_all
from mec.evaluate.tracking.sequences import BoxSequence, Frame, FrameObjects, Scores, SequenceError
from mec.evaluate.tracking.track_box import SCALES, TRACKERS, track_box
from mec.models.encoder import EncoderLike
from mec.results import Result, Stopwatch

Box = NDArray[np.float64]
BOTH = "both"


def sot(
    data: str | os.PathLike[str],
    encoder: EncoderLike,
    tracker: str = "dcf",
    stage: str = "s3",
    corrected: bool = False,
    sequences: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    render: str | os.PathLike[str] | None = None,
    precision: Precision = "auto",
) -> Result:
    """Track one target through each sequence with frozen features, without training (UniTrack, Wang et al. 2021).

    Metrics are means over the targets, as in OTB's one-pass evaluation, which includes the first frame. AUC is the mean
    fraction of frames with an overlap above 0, 0.05, ... 1; precision is the fraction of frames with a center error of
    at most 20 pixels. The last row is the baseline of a box that never moves.

    Args:
        data: sequences in the layout of OTB, GOT-10k or LaSOT, or one of them.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        tracker: dcf, a correlation filter that is updated in every frame; xcorr, cross-correlation with the first
            frame; or both.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        corrected: fix the known errors of the published code; false is comparable with published results.
        sequences: names of sequences to use, such as [Couple,Jogging-1]; null: all.
        out: folder for the tracked boxes, in OTB's format, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4, with the ground truth in white.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """
    if tracker not in (*TRACKERS, BOTH):
        raise InputError(f"tracker: expected dcf, xcorr or both, got {tracker!r}")
    clock = Stopwatch()
    tracked = load_sequences(data, open_box_sequences(data, sequences))
    run = TrackingRun("sot", data, encoder, stage, precision, out, resume, render, {"corrected": corrected})
    scores: Scores = {}
    attribute_rows: Scores = {}
    by_tracker: dict[str, TrackedSequences[BoxSequence, Box]] = {}
    for name in TRACKERS if tracker == BOTH else (tracker,):

        def track(sequence: BoxSequence, name: str = name) -> Iterator[Box]:
            return track_box(sequence.frames, sequence.ground_truth[0], run.dense, name, corrected)

        tracked = by_tracker[name] = track_all(run, tracked, track, TrackFormat(_write, _read), name)
        boxes = {sequence: np.stack(tracks) for sequence, tracks in tracked.tracks.items()}
        for row, values in box_scores(tracked.sequences, boxes).items():
            scores[f"{name} {row}"] = values
            if row != "all" and row not in tracked.tracks:  # the mean over the targets with an attribute
                attribute_rows[f"{name}, {row}"] = values
    first_boxes = {s.name: np.repeat(s.ground_truth[:1], len(s.ground_truth), axis=0) for s in tracked.sequences}
    scores["first box"] = box_scores(tracked.sequences, first_boxes)["all"]
    run.write_metrics(scores, tracked.skipped)
    render_video(run, tracked.sequences, lambda s: _draw(s, [each.tracks[s.name] for each in by_tracker.values()]))
    rows = {name: scores[f"{name} all"] for name in by_tracker} | attribute_rows | {"first box": scores["first box"]}
    cells = grid_size(run.dense.stride)
    search = {"search_regions": len(SCALES), "search_size": cells * run.dense.stride, "cells": cells}
    return run.result(tracked, rows, clock(), **search)


def _write(folder: Path, sequence: BoxSequence, boxes: list[Box]) -> None:
    write_boxes(folder, sequence.name, np.stack(boxes))


def _read(folder: Path, sequence: BoxSequence) -> list[Box]:
    boxes = list(read_boxes(folder, sequence.name))
    if len(boxes) != len(sequence.frames):
        raise SequenceError(f"{folder}: expected {len(sequence.frames)} boxes of {sequence.name}, got {len(boxes)}")
    return boxes


def _draw(sequence: BoxSequence, tracks: list[list[Box]]) -> DrawFrame:
    """Draw the box of each tracker, and the ground truth."""

    def draw_frame(i: int, frame: Frame) -> Frame:
        boxes = np.stack([boxes[i] for boxes in tracks])
        objects = FrameObjects(boxes, np.ones(len(boxes)), np.arange(1, len(boxes) + 1))
        return draw_objects(frame, objects, sequence.ground_truth[i])

    return draw_frame
