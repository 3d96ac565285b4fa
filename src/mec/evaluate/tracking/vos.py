"""``vos``: video object segmentation from the masks in the first frame (UniTrack)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mec.errors import InputError
from mec.evaluate.drawing.tracks import draw_labels
from mec.evaluate.tracking.datasets.davis import open_mask_sequences, read_masks, write_masks
from mec.evaluate.tracking.dense_features import DenseFeatures, Precision
from mec.evaluate.tracking.metrics.davis import mask_scores
from mec.evaluate.tracking.propagation import LabelPropagation, PropagationSettings
from mec.evaluate.tracking.rendering import DrawFrame, render_video
from mec.evaluate.tracking.runner import TrackFormat, TrackingRun, load_sequences, track_all
from mec.evaluate.tracking.sequences import VOID, Frames, Labels, MaskSequence, SequenceError
from mec.models.encoder import EncoderLike
from mec.results import Result, Stopwatch


def vos(
    data: str | os.PathLike[str],
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
    precision: Precision = "auto",
) -> Result:
    """Propagate the masks of the first frame through each sequence with frozen features, without training (UniTrack,
    Wang et al. 2021; Jabri et al. 2020).

    Metrics are those of DAVIS 2017, means over the objects without the first and the last frame. J is the overlap of
    masks and F that of their contours; recall is the fraction of frames above 0.5, decay the loss from the first to the
    last quarter. The last row is the baseline of masks that never move.

    Args:
        data: DAVIS 2016 or 2017, or a folder of that layout.
        encoder: an Encoder, a run folder, a weights file or a timm name.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last. The paper reports the
            better of the two.
        neighbors: number of most similar cells that vote for the label of a cell.
        temperature: a neighbor of cosine similarity s has the weight exp(s / temperature).
        radius: maximum movement of a cell since one of the previous frames, in units of 8 pixels.
        context: number of previous frames that vote, in addition to the first one.
        sequences: names of sequences to use, such as [blackswan,dog]; null: the val list, or all without a list.
        out: folder for the predicted masks, in DAVIS's format, and the metrics of each sequence.
        resume: continue with the tracks in ``out``.
        render: video to write, such as out.mp4.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.
    """
    clock = Stopwatch()
    settings = PropagationSettings(neighbors, temperature, radius, context)
    loaded = load_sequences(data, open_mask_sequences(Path(data).expanduser(), sequences))
    run = TrackingRun("vos", data, encoder, stage, precision, out, resume, render, vars(settings))

    def track(sequence: MaskSequence) -> Iterator[Labels]:
        return track_masks(sequence.frames, _first_labels(sequence), run.dense, settings)

    track_format: TrackFormat[MaskSequence, Labels] = TrackFormat(write_masks, read_masks)
    tracked = track_all(run, loaded, track, track_format)
    scores = mask_scores(tracked.sequences, tracked.tracks)
    if "all" not in scores:
        hint = f"the predicted masks are in {run.folder}" if out else "pass --out to keep the predicted masks"
        raise InputError(f"data: {data} has masks for first frames only, so there are no metrics; {hint}")
    first_masks = {s.name: [_first_labels(s)] * len(s.frames) for s in tracked.sequences}
    baseline = mask_scores(tracked.sequences, first_masks)["all"]
    run.write_metrics({**scores, "first mask": baseline}, tracked.skipped)
    render_video(run, tracked.sequences, lambda s: _draw(s, tracked.tracks[s.name]))
    return run.result(tracked, {"encoder": scores["all"], "first mask": baseline}, clock())


def track_masks(
    frames: Frames, first: Labels, dense: DenseFeatures, settings: PropagationSettings | None = None
) -> Iterator[Labels]:
    """Yield the labels (h, w) of each frame. The first are ``first`` itself.

    Args:
        frames: frames of one video.
        first: labels of the first frame.
        dense: encoder of the frames.
        settings: settings of the propagation; None: the defaults.

    Raises:
        SequenceError: a frame cannot be read, or its size is not that of ``first``.
    """
    ids = np.unique(first[first != VOID])
    ids = np.union1d([0], ids).astype(np.uint8)
    propagation: LabelPropagation | None = None
    for frame in frames:
        if frame.shape[:2] != first.shape:
            frame_size, mask_size = (f"{array.shape[1]} x {array.shape[0]}" for array in (frame, first))
            raise SequenceError(f"a frame is {frame_size}, the mask of the first {mask_size}")
        features = dense(dense.preprocess(frame))
        if propagation is None:
            one_hot = torch.from_numpy(first[None] == ids[:, None, None]).to(features)
            coarse = F.interpolate(one_hot[None], size=features.shape[2:], mode="bilinear")[0]
            propagation = LabelPropagation(features, coarse, dense.stride, settings)
            yield first
            continue
        soft = propagation.step(features)
        yield ids[F.interpolate(soft[None], size=first.shape, mode="bilinear")[0].argmax(0).cpu().numpy()]


def _first_labels(sequence: MaskSequence) -> Labels:
    labels = sequence.ground_truth(0)
    assert labels is not None
    return labels


def _draw(sequence: MaskSequence, labels: list[Labels]) -> DrawFrame:
    return lambda i, frame: draw_labels(frame, labels[i], sequence.palette)
