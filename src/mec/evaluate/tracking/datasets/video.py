"""Frames of a video without annotations: a video file or a folder of images."""

from __future__ import annotations

import difflib
import importlib
import logging
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
from mec.errors import InputError
from mec.evaluate.tracking.sequences import Frame, Frames, ImageFrames, SequenceError

logger = logging.getLogger("mec")

DEFAULT_FRAME_RATE = 30.0
"""Frames per second of image folders and of files that do not specify it."""
PREFETCH = 4
"""Frames that are decoded in advance. A 4K frame takes 25 MB."""
EXPECTED = f"expected a video ({', '.join(sorted(VIDEO_EXTENSIONS))}) or a folder of images"


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file, upright. The next few are decoded while the caller processes the current one.

    length: number of frames according to the file, or number of packets. It is an estimate: damage and edit lists
        change the number of decoded frames.
    """

    path: Path
    frame_rate: float
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames. Raises SequenceError when their size changes; damaged packets are skipped."""
        frames = self.decode()
        executor = ThreadPoolExecutor(1)
        try:
            pending = deque(executor.submit(next, frames, None) for _ in range(PREFETCH))
            while (frame := pending.popleft().result()) is not None:
                pending.append(executor.submit(next, frames, None))
                yield frame
        finally:  # also runs when the caller stops early
            executor.shutdown(cancel_futures=True)
            frames.close()

    def decode(self) -> Generator[Frame, None, None]:
        """Yield the frames without decoding any in advance."""
        av = import_av(f"video: {self.path}")
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
                        raise SequenceError(f"{self.path}: frame {count} is {sizes[0]}, previous frames are {sizes[1]}")
                    yield frame
        except av.FFmpegError as error:
            if not count:
                raise SequenceError(f"{self.path}: {error.strerror}") from error
            damaged.append(error)
        if damaged:
            logger.info(f"{self.path}: {len(damaged)} damaged packets were skipped; {count} frames were decoded")


def open_frames(path: Path) -> Frames:
    """Open the frames of a video file, or the images of a folder in the order of the numbers in their names.

    Raises:
        InputError: the path has no readable frames, or PyAV is not installed.
    """
    if path.is_dir():
        return ImageFrames(_image_files(path), DEFAULT_FRAME_RATE)
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else EXPECTED
        raise InputError(f"video: {path} does not exist; {hint}")
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        raise InputError(f"video: {EXPECTED}, got {path}")
    return _open_video(path)


def _open_video(path: Path) -> VideoFrames:
    av = import_av(f"video: {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"video: {path} has no images, only audio or text")
            stream = container.streams.video[0]
            frame_rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE)
            length = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except av.FFmpegError as error:
        raise InputError(f"video: {path} cannot be read as a video ({error.strerror})") from error
    frames = VideoFrames(path, frame_rate, max(1, length))
    try:
        first = next(frames.decode(), None)
    except SequenceError as error:
        raise InputError(f"video: {error}") from error
    if first is None:
        raise InputError(f"video: no frame of {path} can be decoded")
    return frames


def _image_files(folder: Path) -> tuple[Path, ...]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"video: {folder} cannot be opened ({error.strerror})") from error
    images = sorted((n for n in names if os.path.splitext(n)[1].lower() in EXTENSIONS), key=_natural_sort_key)
    if images:
        return tuple(folder / name for name in images)
    videos = sorted(n for n in names if os.path.splitext(n)[1].lower() in VIDEO_EXTENSIONS)
    hint = f"did you mean {folder / videos[0]}?" if videos else f"expected {', '.join(sorted(EXTENSIONS))}"
    raise InputError(f"video: no image in {folder}; {hint}")


def _natural_sort_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort 9 before 10, and 09 next to 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name


def import_av(argument: str) -> Any:
    """Return the module av (PyAV), an optional dependency. Raises InputError with the argument that needs it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(f"{argument} needs PyAV; pip install 'mec-ssl[tracking]'") from error
