"""The frames of a video that has no annotation: a file, or a folder of images."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mec.data.datasets.video import VIDEO_EXTENSIONS, decode_frames, to_upright_rgb
from mec.data.decode import EXTENSIONS
from mec.engine.progress import log
from mec.errors import InputError
from mec.evaluate.tracking.sequences import Frame, Frames, ImageFrames, SequenceError

RATE = 30.0
"""Frames a second, where a file does not say."""
AHEAD = 4
"""Frames that are decoded before they are asked for; of 4K, each is 25 MB."""
EXPECTED = f"expected a video ({', '.join(sorted(VIDEO_EXTENSIONS))}) or a folder of images"


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a file, upright, the next few decoded while the last is looked at.

    length: as the file says, or of its packets; damage and edits make it an estimate, and there may be fewer frames
        or more.
    """

    path: Path
    rate: float
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Frame]:
        """Raises SequenceError when the frames change their size; damaged packets are passed over."""
        decoding = self.decode()
        ahead = ThreadPoolExecutor(1)
        try:
            coming = deque(ahead.submit(next, decoding, None) for _ in range(AHEAD))
            while (frame := coming.popleft().result()) is not None:
                coming.append(ahead.submit(next, decoding, None))
                yield frame
        finally:  # also when nobody asks for the rest
            ahead.shutdown(cancel_futures=True)
            decoding.close()

    def decode(self) -> Generator[Frame, None, None]:
        """The frames, each decoded when it is asked for."""
        av = video_library(f"video: {self.path}")
        damaged: list[Exception] = []
        count, shape = 0, None
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for count, image in enumerate(decode_frames(av, container, stream, damaged.append), 1):
                    frame = to_upright_rgb(image)
                    shape = shape or frame.shape
                    if frame.shape != shape:
                        sizes = [f"{width} x {height}" for height, width, _ in (frame.shape, shape)]
                        raise SequenceError(f"{self.path}: frame {count} is {sizes[0]}, those before {sizes[1]}")
                    yield frame
        except av.FFmpegError as error:
            if not count:
                raise SequenceError(f"{self.path}: {error.strerror}") from error
            damaged.append(error)
        if damaged:
            log(f"{self.path}: {len(damaged)} damaged packets were passed over; {count} frames are left")


def open_frames(path: Path) -> Frames:
    """The frames of a video file, or the images in a folder in the order of the numbers in their names.

    Raises:
        InputError: nothing there that can be read as frames, or no library that reads videos.
    """
    if path.is_dir():
        return ImageFrames(_images_in(path), RATE)
    if not path.exists():
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else EXPECTED
        raise InputError(f"video: {path} does not exist; {hint}")
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        raise InputError(f"video: {EXPECTED}, got {path}")
    return _open_video(path)


def _open_video(path: Path) -> VideoFrames:
    av = video_library(f"video: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"video: {path} has no images, only sound or text")
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or RATE)
            length = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except av.FFmpegError as error:
        raise InputError(f"video: {path} cannot be read as a video ({error.strerror})") from error
    frames = VideoFrames(path, rate, max(1, length))
    try:
        first = next(frames.decode(), None)
    except SequenceError as error:
        raise InputError(f"video: {error}") from error
    if first is None:
        raise InputError(f"video: no frame of {path} can be decoded")
    return frames


def _images_in(folder: Path) -> tuple[Path, ...]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"video: {folder} cannot be entered ({error.strerror})") from error
    images = sorted((n for n in names if os.path.splitext(n)[1].lower() in EXTENSIONS), key=_natural)
    if images:
        return tuple(folder / name for name in images)
    videos = sorted(n for n in names if os.path.splitext(n)[1].lower() in VIDEO_EXTENSIONS)
    hint = f"did you mean {folder / videos[0]}?" if videos else f"expected {', '.join(sorted(EXTENSIONS))}"
    raise InputError(f"video: no image in {folder}; {hint}")


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """9 comes before 10, and 09 beside 9."""
    words = re.split(r"(\d+)", name)
    return [(int(word), "") if i % 2 else (-1, word) for i, word in enumerate(words)], name


def video_library(wanted: str) -> Any:
    """PyAV, which reads and writes videos and is not always installed; ``wanted`` names the argument that needs it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(f"{wanted} needs PyAV; pip install 'mec-ssl[tracking]'") from error
