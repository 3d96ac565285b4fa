"""Images and videos that detection and tracking have written to a run folder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from mec.errors import InputError
from mec.evaluate.detection.predict import PREDICTED
from mec.evaluate.tracking.runner import PREVIEWS, SETTINGS
from mec.evaluate.tracking.sequences import SequenceError
from mec.report.images import embed_image, printable
from mec.report.schema import EmbeddedImage

MAX_IMAGES = 3
"""Images per folder of detections or tracks, and number of videos."""
MAX_SIDE = 480
"""Longer side of an image in the page, in pixels."""
FRAME_INDEX = 30
"""Frame of a video to show; the middle frame of a video that is shorter than twice as many."""
IMAGE_FORMATS = ("JPEG",)
"""The only format that mec writes here; other files are not opened."""


def load_gallery(run: Path) -> list[EmbeddedImage]:
    """Return tracking previews, images with predicted boxes, and a frame of each video, newest folders first.

    Videos are skipped if PyAV is not installed.
    """
    images = [_load_image(file, caption) for file, caption in [*_tracking_previews(run), *_predicted_images(run)]]
    return [image for image in [*images, *_video_frames(run)] if image is not None]


def _tracking_previews(run: Path) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first(run.glob(f"*/{PREVIEWS}")):
        try:
            settings = json.loads((folder.parent / SETTINGS).read_text())
            task, encoder = str(settings["task"]), str(settings["encoder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for file in sorted(folder.rglob("*.jpg"))[:MAX_IMAGES]:
            yield file, f"{task}: {file.relative_to(folder).with_suffix('')}, tracked with the {encoder}"


def _predicted_images(run: Path) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first([*run.glob(PREDICTED), *run.glob(f"*/{PREDICTED}"), *run.glob(f"*/*/{PREDICTED}")]):
        detector = folder.parent.relative_to(run)
        for file in _newest_first(folder.rglob("*.jpg"))[:MAX_IMAGES]:
            yield file, f"detect: {file.relative_to(folder)}, predicted by the detector in {detector}"


def _video_frames(run: Path) -> Iterator[EmbeddedImage | None]:
    if importlib.util.find_spec("av") is None:
        return
    from mec.evaluate.tracking.datasets.video import open_frames

    for file in _newest_first([*run.glob("*.mp4"), *run.glob("*/*.mp4")])[:MAX_IMAGES]:
        try:
            frames = open_frames(file)
            frame = next(islice(frames, min(len(frames) // 2, FRAME_INDEX), None), None)
        except (InputError, SequenceError):
            continue
        if frame is not None:
            yield _embed(Image.fromarray(frame), f"video: a frame of {file.relative_to(run)}")


def _load_image(file: Path, caption: str) -> EmbeddedImage | None:
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))
            return _embed(image, caption)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _embed(image: Image.Image, caption: str) -> EmbeddedImage:
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return embed_image(image, printable(caption))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (-path.stat().st_mtime_ns, path))
