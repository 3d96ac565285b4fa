"""``mots``: objects told apart, from their masks in every frame (UniTrack's multi-object tracking and segmentation)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.association import Association
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.mots_format import read_mots_tracks, write_mots_tracks
from mec.evaluate.tracking.metrics.mots import mask_similarities, mots_scores
from mec.evaluate.tracking.runner import Call, Keeping, loaded
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, Scores, Tracks
from mec.evaluate.tracking.track_objects import Look, masks_look, tell_apart
from mec.results import Result, Stopwatch

COLUMNS = ("sMOTSA", "HOTA", "IDF1", "switches")


def mots(
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
    """Tell apart objects whose masks are given, with frozen features and nothing trained (UniTrack, Wang et al. 2021).

    Figures are those of MOTS, over all sequences together: sMOTSA, HOTA, IDF1, MOTSA, switches of identity and so on.
    The last row joins masks to tracks by overlap alone, without any encoder.

    Args:
        data: sequences as MOTSChallenge or KITTI MOTS have them, or one of them.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        detections: null for the true masks, which UniTrack takes too; or a folder of SEQUENCE.txt.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last. The paper reports the
            better of the two.
        motion: let the distance from where a track is expected share in the cost of a pair; false compares what
            encoders see.
        corrected: compare sets of cells without filling them up to one size, and boxes as large as they are; false
            compares with published figures.
        patience: frames, at 30 a second, that an object may be out of sight.
        sequences: those to take, or patterns, such as [*-02]; null is all.
        out: folder for the tracks, as MOTS has them, and the figures of each sequence.
        resume: go on with what is in ``out``.
        render: film to draw, such as out.mp4.
        half: compute in 16 bits; null: on GPUs.
    """
    clock = Stopwatch()
    cost = 0.02 if motion else 0.0
    settings = Association(motion=cost, gated=False, confirmed=True, patience=patience, published=not corrected)
    opened = loaded(data, open_mask_detections(Path(data).expanduser(), detections, sequences))
    chosen = {"task": "mots", "corrected": corrected, "detections": detections}
    call = Call(data, encoder, stage, half, out, resume, render, chosen | vars(settings))

    def look(appearance: bool) -> Look:
        return masks_look(call.dense, appearance)

    return tell_apart(call, opened, look, settings, Keeping(_write, _read), _score, COLUMNS).result(call, clock())


def _score(sequences: list[DetectionSequence], tracks: Mapping[str, Tracks]) -> Scores:
    return mots_scores({one.name: mask_similarities(one, tracks[one.name]) for one in sequences})


def _write(folder: Path, sequence: DetectionSequence, tracks: list[FrameObjects]) -> None:
    write_mots_tracks(folder, sequence.name, tracks)


def _read(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    return read_mots_tracks(folder, sequence.name, len(sequence.frames))
