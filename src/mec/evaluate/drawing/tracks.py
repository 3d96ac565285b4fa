"""What a tracker says drawn over the frames, and films of that."""

from __future__ import annotations

import os
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from math import ceil, sqrt
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mec.errors import InputError
from mec.evaluate.drawing.detections import LIGHT, LINE, LUMINANCE, SMALLEST, Color, Place, color_of
from mec.evaluate.tracking.datasets.video import video_library
from mec.evaluate.tracking.sequences import VOID, Boxes, Frame, FrameObjects, Labels
from mec.evaluate.tracking.skeletons import JOINTS, LIMBS
from mec.files import atomic_write

LETTERS = 45
"""Heights of letters in the root of the image's area: numbers are many, and short."""
NO_ID_COLOR: Color = (255, 200, 0)
"""Of what has no number."""
GROUND_TRUTH_COLOR: Color = (255, 255, 255)
LINES = [(JOINTS.index(a), JOINTS.index(b)) for a, b in (*LIMBS, ("left_hip", "right_hip"))]
OPAQUE, HALF = 255, 128
ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Which of them there is depends on how PyAV was built; the first is the best."""
QUALITY = {"crf": "20", "preset": "superfast"}
BITS = 0.25
"""A pixel and frame, for the encoders that know no constant quality."""
BT601 = 6
"""By what RGB becomes YUV; players guess otherwise where a film does not say."""


def draw_objects(frame: Frame, found: FrameObjects, ground_truth_box: Boxes | None = None) -> Frame:
    """A copy of the frame with what was found: half-transparent masks, else skeletons, else boxes; and the ids.

    An id has the same color in all frames. Lines and letters grow with the frame. Smaller objects lie above larger
    ones, and ids above all.

    Args:
        frame: (h, w, 3).
        found: in its pixels; boxes that are NaN or outside of the frame are not drawn.
        ground_truth_box: (4,) where the target is, drawn in white; NaN where it is not to be seen.
    """
    colors = [NO_ID_COLOR] * len(found) if found.ids is None else [color_of(i) for i in found.ids.tolist()]
    largest_first = np.argsort(-found.boxes[:, 2:].prod(axis=1), kind="stable").tolist()
    image = Image.fromarray(frame)
    if found.masks is not None:
        numbers = np.zeros(frame.shape[:2], np.uint16, order="F")  # that of the masks
        for i in largest_first:
            np.copyto(numbers, i + 1, where=rle.decode(found.masks[i]).view(bool))
        _paint(image, np.ascontiguousarray(numbers), np.array([(0, 0, 0), *colors], np.uint8))
    pencil, line = ImageDraw.Draw(image), _line(image)
    if ground_truth_box is not None and (place := _place(ground_truth_box, image.size)):
        _outline(pencil, place, GROUND_TRUTH_COLOR, line)
    boxed = found.masks is None and found.poses is None
    places = [_place(box, image.size) for box in found.boxes]
    for i in largest_first:
        if found.poses is not None and found.masks is None:
            _skeleton(pencil, found.poses[i], colors[i], line, image.size)
        elif boxed and (place := places[i]):
            _outline(pencil, place, colors[i], line)
    if found.ids is not None:
        for i in largest_first:
            if place := places[i]:
                x = place[0] if boxed else (place[0] + place[2]) / 2
                _write(image, str(found.ids[i]), colors[i], x, place[1], centered=not boxed)
    return np.array(image)


def draw_labels(frame: Frame, labels: Labels, palette: NDArray[np.uint8]) -> Frame:
    """A copy of the frame (h, w, 3) with its labels (h, w) half-transparent in colors of the palette (256, 3).

    Background and VOID stay as they are.
    """
    image = Image.fromarray(frame)
    _paint(image, np.where(labels == VOID, 0, labels), palette)
    return np.array(image)


def _paint(image: Image.Image, numbers: NDArray[Any], colors: NDArray[np.uint8]) -> None:
    """Half in the number's color, and all of it at the rims; where it is 0, the image is left."""
    rows, columns = np.flatnonzero(numbers.any(axis=1)), np.flatnonzero(numbers.any(axis=0))
    if not len(rows):
        return
    numbers = numbers[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, line = numbers > 0, _line(image)
    # where another, or nobody, is so many pixels away in one of four directions
    around, (height, width) = np.pad(numbers, line), numbers.shape
    rim = np.zeros_like(inside)
    for y, x in ((0, line), (2 * line, line), (line, 0), (line, 2 * line)):
        rim |= around[y : y + height, x : x + width] != numbers
    opacity = inside.view(np.uint8) * np.uint8(HALF) + (inside & rim).view(np.uint8) * np.uint8(OPAQUE - HALF)
    colored = Image.fromarray(np.take(colors, numbers, axis=0))
    image.paste(colored, (int(columns[0]), int(rows[0])), Image.fromarray(opacity))


def _line(image: Image.Image) -> int:
    return max(1, round(sqrt(image.width * image.height) / LINE))


def _place(box: Boxes, size: tuple[int, int]) -> Place | None:
    """In whole pixels, at least one, within the image; None where it is not in it."""
    if not np.isfinite(box).all():
        return None
    left, top, wide, high = box.tolist()
    if left >= size[0] or top >= size[1] or left + wide <= 0 or top + high <= 0:
        return None
    x, y = min(max(round(left), 0), size[0] - 1), min(max(round(top), 0), size[1] - 1)
    return x, y, max(min(round(left + wide), size[0]), x + 1), max(min(round(top + high), size[1]), y + 1)


def _outline(pencil: ImageDraw.ImageDraw, place: Place, color: Color, line: int) -> None:
    left, top, right, bottom = place
    # no wider than leaves half of a small object to be seen
    line = max(1, min(line, (right - left) // 4, (bottom - top) // 4))
    pencil.rectangle((left, top, right - 1, bottom - 1), outline=color, width=line)


def _skeleton(
    pencil: ImageDraw.ImageDraw, pose: NDArray[np.float64], color: Color, line: int, size: tuple[int, int]
) -> None:
    """The joints that are seen, and the limbs between two of them; (15, 3)."""
    places, sides = pose[:, :2], np.array(size)
    # what is far outside costs time by its distance; NaN is not seen either
    seen = (pose[:, 2] > 0) & ((places > -sides) & (places < 2 * sides)).all(axis=1)
    for a, b in LINES:
        if seen[a] and seen[b]:
            pencil.line([tuple(places[a].tolist()), tuple(places[b].tolist())], fill=color, width=line)
    for x, y in places[seen].tolist():
        pencil.ellipse((x - line, y - line, x + line, y + line), fill=color)


@lru_cache(maxsize=8)
def _font(letters: int) -> Any:
    return ImageFont.load_default(letters)


def _write(image: Image.Image, text: str, color: Color, x: float, bottom: int, centered: bool = False) -> None:
    """On a plate of the color above ``bottom``, from x or with x in its middle, but within the image."""
    letters = max(SMALLEST, round(sqrt(image.width * image.height) / LETTERS))
    font, margin = _font(letters), max(1, letters // 6)
    _, above, _, below = font.getbbox("0" if text.isdigit() else "Ag", anchor="ls")
    wide, high = ceil(font.getlength(text)) + 2 * margin, ceil(below - above) + 2 * margin
    left = max(0, min(round(x - wide / 2 if centered else x), image.width - wide))
    top = max(0, min(bottom - high, image.height - high))
    pencil = ImageDraw.Draw(image)
    pencil.rectangle((left, top, left + wide - 1, top + high - 1), fill=color)
    ink = "black" if np.dot(np.divide(color, 255) ** 2.2, LUMINANCE) > LIGHT else "white"
    pencil.text((left + margin, top + margin - above), text, fill=ink, font=font, anchor="ls")


def check_video_path(path: Path, argument: str = "render") -> None:
    """Whether a film can be written there, before hours are spent on what it would show. Raises InputError."""
    if path.suffix.lower() != ".mp4":
        raise InputError(f"{argument}: expected a file ending in .mp4, got {path}")
    if path.is_dir():
        raise InputError(f"{argument}: {path} is a folder, expected the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{argument}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: {folder} cannot be written to")
    video_library(f"{argument}: {path}")


class VideoWriter:
    """Frames written to an .mp4, whole or not at all: ``with VideoWriter(path, rate) as film: film.add(frame)``.

    The first frame gives the size, an even one; others are scaled to fit in it. Without frames nothing is written.

    Args:
        path: of the file.
        rate: frames a second.
        note: written small in the corner; it may be set anew between frames.

    Raises:
        InputError: a path where no film can be written, or a rate that is none.
    """

    def __init__(self, path: Path, rate: float, note: str = "") -> None:
        check_video_path(path)
        if not 0 < rate < 1000:
            raise InputError(f"rate: expected frames a second, got {rate}")
        self.path, self.note = path, note
        # 30000/1001 is met exactly, and the numbers are not larger than MPEG-4 allows
        self.frame_rate = Fraction(rate).limit_denominator(int(65535 / max(rate, 1)))
        self.count = 0
        self._opened = ExitStack()
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def add(self, frame: Frame) -> None:
        """(h, w, 3)."""
        av = video_library(f"render: {self.path}")
        if self._stream is None:
            self._open(av, frame.shape[1] + frame.shape[1] % 2, frame.shape[0] + frame.shape[0] % 2)
        size = self._stream.width, self._stream.height
        missing = size[1] - frame.shape[0], size[0] - frame.shape[1]
        if all(m in (0, 1) for m in missing):
            frame = np.pad(frame, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        else:
            frame = np.array(ImageOps.pad(Image.fromarray(frame), size))
        if self.note:
            image = Image.fromarray(frame)
            _write(image, " ".join(self.note.split()), (0, 0, 0), 0, image.height)
            frame = np.array(image)
        video_frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
        video_frame.pts, video_frame.time_base = self.count, 1 / self.frame_rate
        self._container.mux(self._stream.encode(video_frame))
        self.count += 1

    def _open(self, av: Any, width: int, height: int) -> None:
        temporary = self._opened.enter_context(atomic_write(self.path))
        options = {"movflags": "faststart"}
        self._container = self._opened.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        self._stream = self._container.add_stream(encoder, rate=self.frame_rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.bit_rate = int(BITS * width * height * self.frame_rate)
        if encoder == "libx264":
            self._stream.options = QUALITY
        self._stream.codec_context.colorspace = BT601
        self._opened.push(self._finish)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        """What the encoder still holds; of a film that is thrown away there is no need."""
        if kind is None:
            self._container.mux(self._stream.encode())
