"""``track``: an object followed through any video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.engine.progress import ProgressBar, log
from mec.errors import InputError
from mec.evaluate.drawing.tracks import VideoWriter, check_video_path, draw_labels, draw_objects
from mec.evaluate.task import EncoderLike
from mec.evaluate.tracking.datasets.davis import read_mask, write_labels
from mec.evaluate.tracking.datasets.single_object_boxes import write_boxes
from mec.evaluate.tracking.datasets.video import open_frames
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.runner import counted
from mec.evaluate.tracking.sequences import Frame, FrameObjects, Frames, Labels, SequenceError
from mec.evaluate.tracking.track_box import track_box
from mec.evaluate.tracking.vos import follow_masks


def track(
    video: str | os.PathLike[str],
    encoder: EncoderLike = "resnet18",
    box: str | Sequence[float] | None = None,
    mask: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    tracker: str = "dcf",
    stage: str = "s3",
    half: bool | None = None,
) -> Path:
    """Follow an object through a video, from a box or a mask in its first frame; nothing is trained.

    Args:
        video: a video file, or a folder of its frames.
        encoder: an Encoder, a run folder, a file of weights or a timm name; the default is an untrained one, which is
            enough for a first look.
        box: of the object in the first frame: left, top, width, height in pixels.
        mask: a PNG as large as the first frame: white or another gray where the object is; several objects have a
            color or an index each.
        out: film to draw; null is VIDEO-tracked.mp4 in the working folder. Beside it lie the boxes, one a line as OTB
            has them, in a .txt, or a folder of masks, which must be new.
        tracker: of boxes: dcf, a correlation filter learned anew in every frame; or xcorr, cross-correlation with the
            first frame.
        stage: which maps of the encoder: s3, of its last stage but one, or s4, of its last.
        half: compute in 16 bits; null: on GPUs.

    Returns:
        The film.

    Raises:
        InputError: neither or both of box and mask, or one that does not fit the first frame; no video; or something
            else where the film or the masks would lie.
    """
    if (box is None) == (mask is None):
        raise InputError("box, mask: expected one of them, to say what to follow in the first frame")
    place = None if box is None else _numbers(box)
    path = Path(video).expanduser()
    film = Path(f"{path.absolute().stem}-tracked.mp4" if out is None else out).expanduser()
    check_video_path(film, "out")
    if film.exists() and path.exists() and film.samefile(path):
        raise InputError(f"out: {film} is the video itself")
    masks_folder = film.with_suffix("")
    if mask is not None and masks_folder.exists():
        raise InputError(f"out: {masks_folder}, where the masks would lie, is there already")
    frames = open_frames(path)
    dense = Dense(encoder, stage, half)
    log(f"encoder: {dense.description}, a cell every {dense.stride} pixels")
    watched = _Watched(frames)
    try:
        with (
            ProgressBar("following", len(frames), unit="frames") as shown,
            VideoWriter(film, frames.frame_rate) as drawn,
        ):
            if place is not None:
                found = track_box(watched, place, dense, tracker, corrected=True)
                write_boxes(film.parent, film.stem, np.stack(list(_boxes_drawn(found, watched, drawn, shown))))
            else:
                first = next(iter(frames), None)
                if first is None:
                    raise SequenceError("no frame can be read")
                labels, palette = _read(Path(str(mask)).expanduser(), first.shape[:2])
                masks = follow_masks(watched, labels, dense)
                write_labels(masks_folder, _masks_drawn(masks, palette, watched, drawn, shown))
    except SequenceError as error:
        raise InputError(f"video: {error}") from error
    speed, share = shown.done / shown.seconds, dense.seconds / shown.seconds
    log(f"{counted(shown.done)}, {speed:.2f} a second, {share:.0%} in the encoder")
    return film


def _read(mask: Path, size: tuple[int, int]) -> tuple[Labels, NDArray[np.uint8]]:
    if not mask.is_file():
        raise InputError(f"mask: {mask} {'is no file' if mask.exists() else 'does not exist'}")
    try:
        return read_mask(mask, size)
    except SequenceError as error:
        raise InputError(f"mask: {error}") from error


class _Watched:
    """Frames of which the last one read is ``frame``."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.frame_rate = frames, frames.frame_rate
        self.frame: Frame = np.zeros((0, 0, 3), np.uint8)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.frames:
            self.frame = frame
            yield frame


def _boxes_drawn(
    boxes: Iterator[NDArray[np.float64]], watched: _Watched, film: VideoWriter, shown: ProgressBar
) -> Iterator[NDArray[np.float64]]:
    for box in boxes:
        film.add(draw_objects(watched.frame, FrameObjects(box[None], np.ones(1), np.ones(1, np.int64))))
        shown.advance(1)
        yield box


def _masks_drawn(
    masks: Iterator[Labels], palette: NDArray[np.uint8], watched: _Watched, film: VideoWriter, shown: ProgressBar
) -> Iterator[tuple[str, Labels]]:
    for number, labels in enumerate(masks):
        film.add(draw_labels(watched.frame, labels, palette))
        shown.advance(1)
        yield f"{number:05}", labels


def _numbers(box: str | Sequence[float]) -> NDArray[np.float64]:
    words = box.strip("[]() ").split(",") if isinstance(box, str) else list(box)
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.shape != (4,) or not np.isfinite(numbers).all() or (numbers[2:] <= 0).any():
        raise InputError(f"box: expected left,top,width,height in pixels, such as 210,95,60,48, got {box}")
    return numbers
