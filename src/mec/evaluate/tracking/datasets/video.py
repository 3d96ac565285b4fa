"""Reader of the frames of a video file or a folder of images, and writer of video files."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mec.data.datasets.video import VIDEO_EXTENSIONS, decode_frames, to_upright_rgb
from mec.data.decode import EXTENSIONS
from mec.errors import InputError
from mec.evaluate.drawing import draw_text
from mec.evaluate.tracking.datasets.files import count as plural
from mec.evaluate.tracking.datasets.files import image_files
from mec.evaluate.tracking.sequences import Frame, Frames, ImageFrames, SequenceError
from mec.files import atomic_write

logger = logging.getLogger("mec")

DEFAULT_FRAME_RATE = 30.0  # frames per second of image folders and of files that do not specify it
VIDEO_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # best first. Which of them exist depends on how PyAV was built
X264_OPTIONS = {"crf": "20", "preset": "superfast"}
BITS_PER_PIXEL = 0.25  # bit rate of the other encoders, which have no constant quality
BT601 = 6  # conversion from RGB to YUV. Without it in the file, players guess
PREFETCH = 4  # frames that are decoded in advance. A 4K frame takes 25 MB


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video file, upright. The next few are decoded while the caller processes the current one.
    ``length`` is an estimate: damage and edit lists change the number."""

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
            logger.warning(
                f"{self.path}: {plural(len(damaged), 'damaged packet')} skipped, {plural(count, 'frame')} decoded"
            )


def open_frames(path: Path) -> Frames:
    """Open the frames of a video file, or the images of a folder in the order of the numbers in their names."""
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


def check_video_path(path: Path, argument: str = "render") -> None:
    """Check before tracking starts that a video can be written. Raises InputError with the name of the argument."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{argument}: expected a file ending in .mp4, got {path}")
    if path.is_dir():
        raise InputError(f"{argument}: expected the name of a file, got the folder {path}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{argument}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: {folder} is not writable")
    import_av(f"{argument}: {path}")


class VideoWriter(ExitStack):
    """Write an .mp4 atomically: ``with VideoWriter(path, frame_rate) as video: video.add(frame)``.

    The first frame determines the size of the video, rounded up to even numbers. Other frames are scaled to fit. No
    file is written if there are no frames, or if the block raises. ``caption``, in the lower left corner, may change
    between frames.
    """

    def __init__(self, path: Path, frame_rate: float, caption: str = "") -> None:
        super().__init__()
        check_video_path(path)
        if not 0 < frame_rate < 1000:
            raise InputError(f"frame_rate: expected between 0 and 1000 frames per second, got {frame_rate}")
        self.path, self.caption = path, caption
        # represents 30000/1001 exactly, with numbers as small as MPEG-4 requires
        self.frame_rate = Fraction(frame_rate).limit_denominator(int(65535 / max(frame_rate, 1)))
        self.count = 0
        self._container: Any = None
        self._stream: Any = None

    def add(self, frame: Frame) -> None:
        """Append a frame (h, w, 3)."""
        av = import_av(f"render: {self.path}")
        if self._stream is None:
            self._open(av, frame.shape[1] + frame.shape[1] % 2, frame.shape[0] + frame.shape[0] % 2)
        size = self._stream.width, self._stream.height
        missing = size[1] - frame.shape[0], size[0] - frame.shape[1]
        if all(pixels in (0, 1) for pixels in missing):
            frame = np.pad(frame, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        else:
            frame = np.array(ImageOps.pad(Image.fromarray(frame), size))
        if self.caption:
            image = Image.fromarray(frame)
            draw_text(image, " ".join(self.caption.split()), (0, 0, 0), 0, image.height)
            frame = np.array(image)
        video_frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
        video_frame.pts, video_frame.time_base = self.count, 1 / self.frame_rate
        self._container.mux(self._stream.encode(video_frame))
        self.count += 1

    def _open(self, av: Any, width: int, height: int) -> None:
        temporary = self.enter_context(atomic_write(self.path))
        options = {"movflags": "faststart"}
        self._container = self.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
        encoder = next(name for name in VIDEO_ENCODERS if name in av.codecs_available)
        self._stream = self._container.add_stream(encoder, rate=self.frame_rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.bit_rate = int(BITS_PER_PIXEL * width * height * self.frame_rate)
        if encoder == "libx264":
            self._stream.options = X264_OPTIONS
        self._stream.codec_context.colorspace = BT601
        self.push(self._finish)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the frames that the encoder still buffers, unless an exception discards the video."""
        if kind is None:
            self._container.mux(self._stream.encode())
