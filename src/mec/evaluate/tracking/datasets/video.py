"""Frames of a video without annotations: a video file or a folder of images."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mec.data.datasets.video import VIDEO_EXTENSIONS, decode_frames, to_upright_rgb
from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.tracking.datasets.files import image_files
from mec.evaluate.tracking.sequences import Frame, Frames, ImageFrames, SequenceError

logger = logging.getLogger("mec")

DEFAULT_FRAME_RATE = 30.0  # frames per second of image folders and of files that do not specify it
PREFETCH = 4  # frames that are decoded in advance. A 4K frame takes 25 MB


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file, upright. The next few are decoded while the caller processes the current one.

    ``length``, from the file or its number of packets, is an estimate: damage and edit lists change the number.
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
            logger.warning(f"{self.path}: {len(damaged)} damaged packets were skipped; {count} frames were decoded")


def open_frames(path: Path) -> Frames:
    """Open the frames of a video file, or the images of a folder in the order of the numbers in their names.

    Raises:
        InputError: the path has no readable frames, or PyAV is not installed.
    """
    try:
        if not path.is_dir():
            return _open_video(path)
        if images := image_files(path):
            return ImageFrames(tuple(images), DEFAULT_FRAME_RATE)
        videos = image_files(path, VIDEO_EXTENSIONS)
    except SequenceError as error:
        raise InputError(f"video: {error}") from error
    hint = f"did you mean {videos[0]}?" if videos else f"expected {', '.join(sorted(EXTENSIONS))}"
    raise InputError(f"video: no image in {path}; {hint}")


def _open_video(path: Path) -> VideoFrames:
    if not path.exists():
        names = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"video: {path} does not exist{hint}")
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        kinds = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise InputError(f"video: expected a video ({kinds}) or a folder of images, got {path}")
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
    if next(frames.decode(), None) is None:
        raise InputError(f"video: no frame of {path} can be decoded")
    return frames


def import_av(argument: str) -> Any:
    """Return the module av (PyAV), an optional dependency. Raises InputError with the argument that needs it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(f"{argument} needs PyAV; pip install 'mec-ssl[tracking]'") from error
