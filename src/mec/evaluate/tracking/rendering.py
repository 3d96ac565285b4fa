"""Previews and videos of tracks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from PIL import Image

from mec.engine.progress import ProgressBar
from mec.evaluate.drawing.video import VideoWriter
from mec.evaluate.tracking.runner import PREVIEWS, FrameSequence, S, TrackingRun
from mec.evaluate.tracking.sequences import Frame, SequenceError
from mec.files import atomic_write

logger = logging.getLogger("mec")

MAX_PREVIEWS, MAX_PREVIEW_SIDE = 3, 960
"""Number of sequences with a preview, and the longer side of a preview in pixels."""

DrawFrame = Callable[[int, Frame], Frame]
"""Draws the tracks of frame number i on the frame."""


def render_video(run: TrackingRun, sequences: list[S], draw: Callable[[S], DrawFrame]) -> None:
    """Write previews of the first sequences, and the video of all sequences if the run has one.

    A preview is the middle frame, in previews/SEQUENCE.jpg.

    Args:
        run: has the paths.
        sequences: at least one.
        draw: returns the drawing function of a sequence.
    """
    for sequence in sequences[:MAX_PREVIEWS]:
        _write_preview(run.folder / PREVIEWS / f"{sequence.name}.jpg", sequence, draw(sequence))
    if run.render is None:
        return
    total = sum(len(sequence.frames) for sequence in sequences)
    with (
        ProgressBar("drawing", total, unit="frames") as progress,
        VideoWriter(run.render, sequences[0].frames.frame_rate) as video,
    ):
        for sequence in sequences:
            video.caption, draw_frame = sequence.name, draw(sequence)
            for i, frame in enumerate(sequence.frames):
                video.add(draw_frame(i, frame))
                progress.advance(1)
    logger.info(f"wrote {run.render}")


def _write_preview(path: Path, sequence: FrameSequence, draw_frame: DrawFrame) -> None:
    middle = len(sequence.frames) // 2
    with suppress(SequenceError):  # resumed tracks: a frame may have become unreadable since
        frame = next(islice(sequence.frames, middle, None), None)
        if frame is not None:
            image = Image.fromarray(draw_frame(middle, frame))
            image.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
            with atomic_write(path) as temporary:
                image.save(temporary, "JPEG", quality=90)
