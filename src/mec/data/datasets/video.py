"""Frames of videos as images: every n-th is decoded once and kept as a JPEG."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track

from mec.data.dataset import FileDataset
from mec.data.datasets.builtin import data_home
from mec.data.datasets.folder import files_below, subfolder, walk
from mec.data.datasets.splits import TEST_NAMES, TRAIN_NAMES, Splits, encode_labels
from mec.data.decode import EXTENSIONS
from mec.errors import InputError

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
QUALITY = 95


def is_video(path: Path) -> bool:
    """A video, or a folder, at any depth, that holds videos and no images."""
    if path.is_file():
        return path.suffix.lower() in VIDEOS
    if not path.is_dir():
        return False
    seen = False
    for _, files in walk(os.fspath(path)):
        kinds = {os.path.splitext(f)[1].lower() for f in files}
        if kinds & EXTENSIONS:
            return False
        seen = seen or bool(kinds & VIDEOS)
    return seen


def open_videos(path: Path, every: int | None = None) -> Splits:
    """Every n-th frame of each video (None: one a second).

    Labels are first-level sub-folders, and ``train`` and ``test`` or ``val`` are a folder's own split, as for images.
    The frames are kept under ``data_home()/frames`` and found there the next time. A damaged video gives the frames
    that can be decoded; one without any is left out.
    """
    train, test = subfolder(path, TRAIN_NAMES), subfolder(path, TEST_NAMES)
    if train and test:
        part = _frames_of(train, every)
        return Splits(part, _frames_of(test, every, part.classes or None))
    return Splits(_frames_of(path, every))


def _frames_of(path: Path, every: int | None, classes: list[str] | None = None) -> FileDataset:
    try:
        import av
    except ImportError as error:
        raise InputError(f"data: {path} needs a video decoder; pip install 'mec-ssl[video]'") from error
    folder = path.parent if path.is_file() else path
    videos = [path.name] if path.is_file() else files_below(path)[0]
    videos = [v for v in videos if os.path.splitext(v)[1].lower() in VIDEOS]
    cache = data_home() / "frames"
    cache.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    names: list[str] = []
    heads: list[str] = []
    ignored_files = 0
    for video in track(videos, "reading frames", console=console, transient=True, disable=not console.is_terminal):
        try:
            state = (folder / video).resolve().stat()
        except OSError:  # a link to nowhere
            ignored_files += 1
            continue
        # another size, date or step is another set of frames
        key = f"{(folder / video).resolve()} {state.st_size} {state.st_mtime_ns} {every}"
        kept = cache / f"{Path(video).stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if not kept.is_dir():
            _extract(av, folder / video, kept, every)
        frames = sorted(os.listdir(kept))
        ignored_files += not frames
        names += [os.path.join(kept.name, f) for f in frames]
        heads += [video.split(os.sep, 1)[0]] * len(frames)
    if not names:
        raise InputError(f"data: no frame of {path} can be read")
    dataset = FileDataset(path.stem, cache, names, ignored_files=ignored_files)
    if not any(head in videos for head in heads):
        dataset.labels, dataset.classes = encode_labels(heads, classes)
    return dataset


def decoded(av: Any, container: Any, stream: Any, onerror: Callable[[Exception], None] | None = None) -> Iterator[Any]:
    """The frames of a video; a damaged packet costs what is in it."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError as error:
            if onerror:
                onerror(error)


def upright(frame: Any) -> NDArray[np.uint8]:
    """(h, w, 3) RGB, turned as the video says that it is to be shown: phones film lying down."""
    turned = round(getattr(frame, "rotation", 0) / 90)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turned))


def _extract(av: Any, video: Path, out: Path, every: int | None) -> None:
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        try:
            with av.open(str(video)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                step = every or max(1, round(float(stream.average_rate or 1)))
                for number, frame in enumerate(decoded(av, container, stream)):
                    if number % step == 0:
                        image = Image.fromarray(upright(frame))
                        image.save(unfinished / f"{number:08}.jpg", quality=QUALITY)
        except (av.FFmpegError, IndexError):
            pass  # what came before the break is kept
        unfinished.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was there first
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
