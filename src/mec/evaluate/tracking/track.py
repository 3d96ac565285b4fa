"""``track``: track an object through any video."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from itertools import tee
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate.drawing import draw_labels, draw_objects
from mec.evaluate.tracking.datasets.davis import read_mask, write_labels
from mec.evaluate.tracking.datasets.files import count
from mec.evaluate.tracking.datasets.single_object import write_boxes
from mec.evaluate.tracking.datasets.video import VideoWriter, check_video_path, open_frames
from mec.evaluate.tracking.dense_features import DenseFeatures, Precision
from mec.evaluate.tracking.sequences import VOID, FrameObjects, Labels, SequenceError
from mec.evaluate.tracking.sot import track_box
from mec.evaluate.tracking.vos import track_masks
from mec.models.encoder import EncoderLike

logger = logging.getLogger("mec")


def track(
    video: str | os.PathLike[str],
    encoder: EncoderLike = "resnet18",
    box: str | Sequence[float] | None = None,
    mask: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    tracker: str = "dcf",
    stage: str = "s3",
    precision: Precision = "auto",
) -> Path:
    """Track an object through a video, from a box or a mask in its first frame, without training.

    Args:
        video: a video file, or a folder of its frames.
        encoder: an Encoder, a run folder, a weights file or a timm name; the default is untrained, which is enough for
            a first try.
        box: left, top, width, height of the object in the first frame, in pixels.
        mask: a PNG of the size of the first frame: white or another gray level marks the object; several objects have
            a color or an index each.
        out: video to write; null: VIDEO-tracked.mp4 in the working directory. Next to it, boxes are written to a .txt
            file with one box per line as in OTB, or masks to a folder, which must not exist.
        tracker: tracker of a box: dcf, a correlation filter that is updated in every frame; or xcorr,
            cross-correlation with the first frame.
        stage: feature map of the encoder: s3, of its second to last stage, or s4, of its last.
        precision: 32-true, bf16-mixed or 16-mixed; auto is 16-mixed on GPUs, else 32-true.

    Returns:
        Path of the written video.

    Raises:
        InputError: neither or both of box and mask, a box or mask that does not fit the first frame, no readable video,
            or an output path that cannot be written to.
    """
    if (box is None) == (mask is None):
        raise InputError("box, mask: expected one of them, for the object in the first frame")
    first_box = None if box is None else _parse_box(box)
    path = Path(video).expanduser()
    output = Path(f"{path.absolute().stem}-tracked.mp4" if out is None else out).expanduser()
    check_video_path(output, "out")
    if output.exists() and path.exists() and output.samefile(path):
        raise InputError(f"out: {output} is the video itself")
    masks_folder = output.with_suffix("")
    if mask is not None and masks_folder.exists():
        raise InputError(f"out: the folder of the masks, {masks_folder}, already exists")
    frames = open_frames(path)
    number = f"{'about ' if path.is_file() else ''}{count(len(frames), 'frame')}"
    logger.info(f"video: {number} of {path}, {frames.frame_rate:g} per second")
    dense = DenseFeatures(encoder, stage, precision)
    logger.info(f"encoder: {dense.description}, stride {dense.stride}")
    try:
        with (
            ProgressBar("tracking", len(frames), unit="frames") as progress,
            VideoWriter(output, frames.frame_rate) as writer,
        ):
            # each frame is drawn on as soon as it is tracked, so only one is held for drawing
            tracked_frames, drawn_frames = tee(frames)
            if first_box is not None:
                boxes = []
                for current, frame in zip(
                    track_box(tracked_frames, first_box, dense, tracker, corrected=True), drawn_frames, strict=True
                ):
                    writer.add(draw_objects(frame, FrameObjects(current[None], np.ones(1), np.ones(1, np.int64))))
                    progress.advance(1)
                    boxes.append(current)
                write_boxes(output.parent, output.stem, np.stack(boxes))
            else:
                first = next(iter(frames), None)
                if first is None:
                    raise SequenceError("no frame can be read")
                first_labels, palette = _read_mask(Path(str(mask)).expanduser(), first.shape[:2])
                objects = len(set(np.unique(first_labels).tolist()) - {0, VOID})
                logger.info(f"mask: {count(objects, 'object')} in {mask}")

                def drawn_labels() -> Iterator[tuple[str, Labels]]:
                    masks = track_masks(tracked_frames, first_labels, dense)
                    for i, (labels, frame) in enumerate(zip(masks, drawn_frames, strict=True)):
                        writer.add(draw_labels(frame, labels, palette))
                        progress.advance(1)
                        yield f"{i:05}", labels

                write_labels(masks_folder, drawn_labels())
    except SequenceError as error:
        raise InputError(f"video: {error}") from error
    frame_rate, encoder_fraction = progress.done / progress.seconds, dense.seconds / progress.seconds
    done = count(progress.done, "frame")
    logger.info(f"{done}, {frame_rate:.2f} per second, {encoder_fraction:.0%} of the time in the encoder")
    return output


def _read_mask(mask: Path, size: tuple[int, int]) -> tuple[Labels, NDArray[np.uint8]]:
    if not mask.is_file():
        raise InputError(f"mask: {mask} {'is not a file' if mask.exists() else 'does not exist'}")
    try:
        return read_mask(mask, size)
    except SequenceError as error:
        raise InputError(f"mask: {error}") from error


def _parse_box(box: str | Sequence[float]) -> NDArray[np.float64]:
    items = box.strip("[]() ").split(",") if isinstance(box, str) else list(box)
    try:
        numbers = np.array([float(item) for item in items])
    except ValueError:
        numbers = np.zeros(0)
    if numbers.shape != (4,) or not np.isfinite(numbers).all() or (numbers[2:] <= 0).any():
        raise InputError(f"box: expected left,top,width,height in pixels, such as 210,95,60,48, got {box}")
    return numbers
