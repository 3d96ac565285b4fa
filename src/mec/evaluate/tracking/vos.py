"""``vos``: objects followed from their masks in the first frame (UniTrack's video object segmentation)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mec.errors import InputError
from mec.evaluate.drawing.tracks import draw_labels
from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.datasets.davis import open_mask_sequences, read_masks, write_masks
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.metrics.davis import mask_scores
from mec.evaluate.tracking.propagation import LabelPropagation, Propagation
from mec.evaluate.tracking.runner import Call, Keeping, film, follow_all, loaded
from mec.evaluate.tracking.sequences import VOID, Frame, Frames, Labels, MaskSequence, SequenceError
from mec.results import Protocol, Result, Stopwatch, to_metrics


def vos(
    data: Source,
    encoder: EncoderLike,
    stage: str = "s3",
    neighbors: int = 10,
    temperature: float = 0.05,
    radius: float = 12.0,
    context: int = 5,
    sequences: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    render: str | os.PathLike[str] | None = None,
    half: bool | None = None,
) -> Result:
    """Carry the masks of the first frame through each sequence, with frozen features and nothing trained (UniTrack,
    Wang et al. 2021; Jabri et al. 2020).

    Figures are DAVIS 2017's, means over the objects, the first and the last frame left out: J the overlap of masks, F
    that of their contours; recall the share of frames above a half, decay the loss from the first to the last quarter.
    The last row is what masks that never move get.

    Args:
        data: DAVIS 2016 or 2017, or a folder of that layout.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last. The paper reports the
            better of the two.
        neighbors: most similar cells that vote for the label of a cell.
        temperature: a neighbor of cosine similarity s weighs exp(s / temperature).
        radius: how far a cell may have moved since one of the last frames, in cells of 8 pixels.
        context: frames before this one that vote, beside the first.
        sequences: those to take, such as [blackswan,dog]; null is the val list, or all where there is none.
        out: folder for the masks, as DAVIS's own evaluation reads them, and the figures of each sequence.
        resume: go on with what is in ``out``.
        render: film to draw, such as out.mp4.
        half: compute in 16 bits; null: on GPUs.
    """
    clock = Stopwatch()
    settings = Propagation(neighbors, temperature, radius, context)
    opened = loaded(data, open_mask_sequences(Path(data).expanduser(), sequences))
    call = Call(data, encoder, stage, half, out, resume, render, {"task": "vos", **vars(settings)})

    def follow(one: MaskSequence) -> Iterator[Labels]:
        return follow_masks(one.frames, _first(one), call.dense, settings)

    keeping: Keeping[MaskSequence, Labels] = Keeping(write_masks, read_masks)
    run = follow_all(call, opened, follow, keeping)
    scores = mask_scores(run.sequences, run.tracks)
    if "all" not in scores:
        where = f"the masks found are in {call.folder}" if out else "with --out the masks found are kept"
        raise InputError(f"data: no figures for {data}, for it has masks of first frames only; {where}")
    still = mask_scores(run.sequences, {one.name: [_first(one)] * len(one.frames) for one in run.sequences})
    figures = {"encoder": scores["all"], "first mask": still["all"]}
    call.keep_figures({**scores, "first mask": still["all"]}, run.broken)
    film(call, run.sequences, lambda one: _drawn(one, run.tracks[one.name]))
    return Result(
        task="vos",
        protocol=Protocol("vos-unitrack", {**call.protocol_settings(), **vars(settings)}),
        dataset=run.summary(data),
        encoder=call.dense.description,
        rows={row: to_metrics(values) for row, values in figures.items()},
        seconds=clock(),
        skipped=run.broken,
        note=run.speed,
    )


def follow_masks(frames: Frames, first: Labels, dense: Dense, settings: Propagation | None = None) -> Iterator[Labels]:
    """The labels (h, w) of each frame: those of the first as they were given, then what is found.

    Raises:
        SequenceError: a frame that cannot be read, or of another size than the mask.
    """
    ids = np.unique(first[first != VOID])
    ids = np.union1d([0], ids).astype(np.uint8)
    propagation: LabelPropagation | None = None
    for frame in frames:
        if frame.shape[:2] != first.shape:
            sizes = f"{frame.shape[1]} x {frame.shape[0]}", f"{first.shape[1]} x {first.shape[0]}"
            raise SequenceError(f"a frame is {sizes[0]}, the mask of the first {sizes[1]}")
        features = dense(dense.image(frame))
        if propagation is None:
            shares = torch.from_numpy(first[None] == ids[:, None, None]).to(features)
            coarse = F.interpolate(shares[None], size=features.shape[2:], mode="bilinear")[0]
            propagation = LabelPropagation(features, coarse, dense.stride, settings)
            yield first
            continue
        soft = propagation.step(features)
        yield ids[F.interpolate(soft[None], size=first.shape, mode="bilinear")[0].argmax(0).cpu().numpy()]


def _first(sequence: MaskSequence) -> Labels:
    first = sequence.ground_truth(0)
    assert first is not None
    return first


def _drawn(sequence: MaskSequence, labels: list[Labels]) -> Callable[[int, Frame], Frame]:
    return lambda number, frame: draw_labels(frame, labels[number], sequence.palette)
