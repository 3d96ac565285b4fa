"""``mot``: people or other objects told apart, from their boxes in every frame (UniTrack's multi-object tracking)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mec.evaluate.task import EncoderLike, Source
from mec.evaluate.tracking.association import Association
from mec.evaluate.tracking.datasets.motchallenge import box_similarities, open_box_detections, read_tracks, write_tracks
from mec.evaluate.tracking.metrics.identity import identity_scores
from mec.evaluate.tracking.runner import Call, Keeping, loaded
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, Scores, Tracks
from mec.evaluate.tracking.track_objects import Look, boxes_look, tell_apart
from mec.results import Result, Stopwatch

COLUMNS = ("HOTA", "IDF1", "MOTA", "switches")


def mot(
    data: Source,
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
    half: bool | None = None,
) -> Result:
    """Tell apart objects whose boxes are given, with frozen features and nothing trained (UniTrack, Wang et al. 2021).

    Figures are MOTChallenge's, over all sequences together: HOTA, IDF1 and MOTA, switches of identity and so on. The
    last row joins boxes to tracks by overlap alone, without any encoder.

    Args:
        data: sequences as MOTChallenge has them (MOT15, 16, 17, 20), or one of them.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        detections: null for the det/det.txt of each sequence; gt for the true boxes; or a folder of SEQUENCE.txt.
        min_score: boxes of higher scores are taken.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last. The paper reports the
            better of the two.
        motion: let the distance from where a track is expected share in the cost of a pair; false compares what
            encoders see.
        corrected: cells as upright as people, placed exactly; false compares with published figures.
        patience: frames, at 30 a second, that an object may be out of sight.
        sequences: those to take, or patterns, such as [*-FRCNN]; null is all.
        out: folder for the tracks, as MOTChallenge has them, and the figures of each sequence.
        resume: go on with what is in ``out``.
        render: film to draw, such as out.mp4.
        half: compute in 16 bits; null: on GPUs.
    """
    clock = Stopwatch()
    settings = Association(motion=0.02 if motion else 0.0, gated=True, patience=patience, published=not corrected)
    opened = loaded(data, open_box_detections(Path(data).expanduser(), detections, min_score, sequences))
    chosen = {"task": "mot", "corrected": corrected, "detections": detections, "min_score": min_score}
    call = Call(data, encoder, stage, half, out, resume, render, chosen | vars(settings))

    def look(appearance: bool) -> Look:
        return boxes_look(call.dense if appearance else None, corrected)

    return tell_apart(call, opened, look, settings, Keeping(_write, _read), _score, COLUMNS).result(call, clock())


def _score(sequences: list[DetectionSequence], tracks: Mapping[str, Tracks]) -> Scores:
    return identity_scores({one.name: box_similarities(one, tracks[one.name]) for one in sequences})


def _write(folder: Path, sequence: DetectionSequence, tracks: list[FrameObjects]) -> None:
    write_tracks(folder, sequence.name, tracks)


def _read(folder: Path, sequence: DetectionSequence) -> list[FrameObjects]:
    return read_tracks(folder, sequence.name, len(sequence.frames))
