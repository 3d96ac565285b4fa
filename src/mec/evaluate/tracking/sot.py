"""``sot``: one target followed from its first box (UniTrack's single-object tracking)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.drawing.tracks import draw_objects
from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.correlation import grid_size
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.datasets.single_object_boxes import read_boxes, write_boxes
from mec.evaluate.tracking.metrics.otb import box_scores
from mec.evaluate.tracking.runner import Call, Followed, Keeping, film, follow_all, loaded
from mec.evaluate.tracking.sequences import BoxSequence, Frame, FrameObjects, Scores, SequenceError
from mec.evaluate.tracking.track_box import TRACKERS, track_box
from mec.results import Protocol, Result, Stopwatch, to_metrics

Box = NDArray[np.float64]
BOTH = "both"


def sot(
    data: Source,
    encoder: EncoderLike,
    tracker: str = "dcf",
    stage: str = "s3",
    corrected: bool = False,
    sequences: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    render: str | os.PathLike[str] | None = None,
    half: bool | None = None,
) -> Result:
    """Follow one target through each sequence, with frozen features and nothing trained (UniTrack, Wang et al. 2021).

    Figures, means over the targets: AUC is the mean share of frames in which the overlap is above 0, 0.05 ... 1,
    precision that in which the middle is within 20 pixels, the first frame counted too (OTB's one-pass evaluation). The
    last row is what a box that never moves gets.

    Args:
        data: sequences as OTB, GOT-10k or LaSOT have them, or one of them.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        tracker: dcf, a correlation filter updated in every frame; xcorr, cross-correlation with the first frame;
            or both.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last. The paper reports the
            better of the two.
        corrected: put right what the published code does otherwise than it means to; false compares with published
            figures. See ``track_box``.
        sequences: those to take, such as [Couple,Jogging-1]; null is all.
        out: folder for the boxes, as OTB has them, and the figures of each sequence.
        resume: go on with what is in ``out``.
        render: film to draw, such as out.mp4: the truth in white.
        half: compute in 16 bits; null: on GPUs.
    """
    if tracker not in (*TRACKERS, BOTH):
        raise InputError(f"tracker: expected dcf, xcorr or both, got {tracker!r}")
    clock = Stopwatch()
    opened = loaded(data, open_box_sequences(data, sequences))
    settings = {"task": "sot", "corrected": corrected}
    call = Call(data, encoder, stage, half, out, resume, render, settings)
    figures: dict[str, dict[str, float]] = {}
    scores: Scores = {}
    runs: dict[str, Followed[BoxSequence, Box]] = {}
    keeping = Keeping(_write, _read)
    for name in TRACKERS if tracker == BOTH else (tracker,):

        def follow(one: BoxSequence, name: str = name) -> Iterator[Box]:
            return track_box(one.frames, one.ground_truth[0], call.dense, name, corrected)

        opened = runs[name] = follow_all(call, opened, follow, keeping, name)
        for row, values in box_scores(runs[name].sequences, _stacked(runs[name])).items():
            scores[f"{name} {row}"] = values
            if row not in runs[name].tracks:  # of all targets, or those with an attribute
                figures[name if row == "all" else f"{name}, {row}"] = values
    last = runs[name]
    still = {one.name: np.repeat(one.ground_truth[:1], len(one.ground_truth), axis=0) for one in last.sequences}
    figures = {k: v for k, v in figures.items() if k in runs} | {k: v for k, v in figures.items() if k not in runs}
    figures["first box"] = scores["first box"] = box_scores(last.sequences, still)["all"]
    call.keep_figures(scores, last.broken)
    film(call, last.sequences, lambda one: _drawn(one, [run.tracks[one.name] for run in runs.values()]))
    cells = grid_size(call.dense.stride)
    return Result(
        task="sot",
        protocol=Protocol(
            "sot-unitrack",
            {**call.protocol_settings(), "search_regions": 3, "search_size": cells * call.dense.stride, "cells": cells},
        ),
        dataset=last.summary(data),
        encoder=call.dense.description,
        rows={row: to_metrics(values) for row, values in figures.items()},
        seconds=clock(),
        skipped=last.broken,
        note=last.speed,
    )


def _stacked(run: Followed[BoxSequence, Box]) -> dict[str, NDArray[np.float64]]:
    return {name: np.stack(boxes) for name, boxes in run.tracks.items()}


def _write(folder: Path, sequence: BoxSequence, boxes: list[Box]) -> None:
    write_boxes(folder, sequence.name, np.stack(boxes))


def _read(folder: Path, sequence: BoxSequence) -> list[Box]:
    boxes = list(read_boxes(folder, sequence.name))
    if len(boxes) != len(sequence.frames):
        raise SequenceError(f"{folder}: {len(boxes)} boxes of {sequence.name}")
    return boxes


def _drawn(sequence: BoxSequence, runs: list[list[Box]]) -> Callable[[int, Frame], Frame]:
    def over(number: int, frame: Frame) -> Frame:
        boxes = np.stack([boxes[number] for boxes in runs])
        found = FrameObjects(boxes, np.ones(len(boxes)), np.arange(1, len(boxes) + 1))
        return draw_objects(frame, found, sequence.ground_truth[number])

    return over
