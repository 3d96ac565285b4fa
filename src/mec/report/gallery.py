"""Images that detection and tracking have left in a run folder."""

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
from mec.report import images
from mec.report.schema import EmbeddedImage

MOST = 3
"""Of each folder of detectors or tracks, and of films."""
SIDE = 480
EARLY = 30
"""Which frame of a film is shown; of a shorter one, its middle."""
FORMATS = ("JPEG",)
"""As mec writes them: what else lies there is not opened."""


def gallery(run: Path) -> list[EmbeddedImage]:
    """Some of what ``predict`` and the tracking tasks have drawn, the newest task first, and a frame of each film.

    Films are left out where PyAV is not installed.
    """
    found = [_opened(file, caption) for file, caption in [*_drawn(run), *_predicted(run)]]
    return [one for one in [*found, *_filmed(run)] if one is not None]


def _drawn(run: Path) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first(run.glob(f"*/{PREVIEWS}")):
        try:
            settings = json.loads((folder.parent / SETTINGS).read_text())
            task, encoder = str(settings["task"]), str(settings["encoder"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        for file in sorted(folder.rglob("*.jpg"))[:MOST]:
            yield file, f"{task}: {file.relative_to(folder).with_suffix('')}, followed with the {encoder}"


def _predicted(run: Path) -> Iterator[tuple[Path, str]]:
    for folder in _newest_first([*run.glob(PREDICTED), *run.glob(f"*/{PREDICTED}"), *run.glob(f"*/*/{PREDICTED}")]):
        detector = folder.parent.relative_to(run)
        for file in _newest_first(folder.rglob("*.jpg"))[:MOST]:
            yield file, f"detect: {file.relative_to(folder)}, found by the detector in {detector}"


def _filmed(run: Path) -> Iterator[EmbeddedImage | None]:
    if importlib.util.find_spec("av") is None:
        return
    from mec.evaluate.tracking.datasets.video import open_frames

    for file in _newest_first([*run.glob("*.mp4"), *run.glob("*/*.mp4")])[:MOST]:
        try:
            frames = open_frames(file)
            frame = next(islice(frames, min(len(frames) // 2, EARLY), None), None)
        except (InputError, SequenceError):
            continue
        if frame is not None:
            yield _image(Image.fromarray(frame), f"film: a frame of {file.relative_to(run)}")


def _opened(file: Path, caption: str) -> EmbeddedImage | None:
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (SIDE, SIDE))
            return _image(image, caption)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _image(image: Image.Image, caption: str) -> EmbeddedImage:
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return images.image(image, images.printable(caption))


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (-path.stat().st_mtime_ns, path))
