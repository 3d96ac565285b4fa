"""Frames written to a video file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mec.errors import InputError
from mec.evaluate.drawing.tracks import draw_text
from mec.evaluate.tracking.datasets.video import import_av
from mec.evaluate.tracking.sequences import Frame
from mec.files import atomic_write

VIDEO_ENCODERS = ("libx264", "libopenh264", "mpeg4")  # best first. Which of them exist depends on how PyAV was built
X264_OPTIONS = {"crf": "20", "preset": "superfast"}
BITS_PER_PIXEL = 0.25  # bit rate of the other encoders, which have no constant quality
BT601 = 6  # conversion from RGB to YUV. Without it in the file, players guess


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
    file is written if there are no frames, or if the block raises.

    Args:
        path: file to write.
        frame_rate: frames per second.
        caption: text in the lower left corner; may be changed between frames.

    Raises:
        InputError: the path cannot be written, or the frame rate is not between 0 and 1000.
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
