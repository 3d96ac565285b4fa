"""What the five tasks share: frames of a video, what is given in them, and what a tracker says of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError

Frame = NDArray[np.uint8]
"""(height, width, 3), RGB."""
Boxes = NDArray[np.float64]
"""(k, 4): left, top, width, height, in pixels."""
RLE = dict[str, Any]
"""A mask of a whole frame in COCO's compressed run lengths: {"size": [height, width], "counts": bytes}."""
Labels = NDArray[np.uint8]
"""(height, width): 0 is background, 1 ... are objects, VOID is neither right nor wrong."""
VOID = 255


class SequenceError(Exception):
    """One sequence cannot be used; the message is the reason, in a line. The others go on."""


class Frames(Protocol):
    """The frames of one video, in turn. ``rate``: of them a second."""

    @property
    def rate(self) -> float: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class ImageFrames:
    """Frames in files; the next one is decoded while the last is looked at."""

    files: tuple[Path, ...]
    rate: float = 30.0

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        with ThreadPoolExecutor(1) as ahead:
            coming = None
            for file in self.files:
                ready, coming = coming, ahead.submit(read_frame, file)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()


def read_frame(file: Path) -> Frame:
    """Raises SequenceError when it is missing or damaged."""
    try:
        return open_image(file.read_bytes()).decode(PixelFormat()).astype(np.uint8, copy=False)
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except CorruptImageError as error:
        raise SequenceError(f"{file}: {error}") from error


def image_size(file: Path) -> tuple[int, int]:
    """Height and width. Raises SequenceError when it is missing or damaged."""
    try:
        opened = open_image(file.read_bytes())
    except OSError as error:
        raise SequenceError(f"{file}: {error.strerror or error}") from error
    except CorruptImageError as error:
        raise SequenceError(f"{file}: {error}") from error
    return opened.height, opened.width


@dataclass(frozen=True)
class FrameObjects:
    """What was found in one frame, k objects: by a detector, an annotator, or a tracker, which knows who is who.

    boxes: of each.
    scores: (k,) how sure, 1 where nothing was said.
    ids: (k,) of the tracks, or None where they are not known.
    masks: of each, or None.
    poses: (k, joints, 3) x, y in pixels and 1, or 0 where a joint is not seen; or None.
    """

    boxes: Boxes
    scores: NDArray[np.float64]
    ids: NDArray[np.int64] | None = None
    masks: Sequence[RLE] | None = None
    poses: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, kept: NDArray[Any], ids: NDArray[np.int64] | None = None) -> FrameObjects:
        """Some of them, by number or by a flag each; ``ids`` replaces theirs."""
        numbers = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(np.int64)
        return FrameObjects(
            self.boxes[numbers],
            self.scores[numbers],
            ids if ids is not None else None if self.ids is None else self.ids[numbers],
            None if self.masks is None else [self.masks[n] for n in numbers.tolist()],
            None if self.poses is None else self.poses[numbers],
        )


@dataclass(frozen=True)
class BoxSequence:
    """One target to follow from its first box (``sot``).

    truth: (frames, 4) left, top, width, height in pixels; the upper left corner of the image is (0, 0). Rows of NaN
        where the data set says that the target is not to be seen.
    attributes: such as OCC, SV.
    """

    name: str
    frames: Frames
    truth: Boxes
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskSequence:
    """Objects to follow from their masks in the first frame (``vos``).

    truth: labels of frame i, or None where it is not annotated; that of frame 0 is always there. Raises
        SequenceError.
    palette: (256, 3) colors of the labels, as the annotation has them.
    """

    name: str
    frames: Frames
    names: tuple[str, ...]
    """Of the frames, without suffix: those of the files to write."""
    truth: Callable[[int], Labels | None]
    palette: NDArray[np.uint8]


@dataclass(frozen=True)
class DetectionSequence:
    """Objects found in every frame, to be told apart (``mot``, ``mots``, ``pose``).

    given: what was found, frame by frame, without ids.
    truth: what figures are computed against; only the module that read it knows what it is.
    """

    name: str
    frames: Frames
    given: tuple[FrameObjects, ...]
    truth: Any = field(repr=False, default=None)


Tracks = Sequence[FrameObjects]
"""What a tracker says: one for every frame, with ids."""
T = TypeVar("T", covariant=True)
SequenceLoaders = dict[str, Callable[[], T]]
"""Sequences by name, each read when it is called: one that raises SequenceError does not lose the others."""
Scores = dict[str, dict[str, float]]
"""Figures of each sequence by name: column -> value. Shares are real numbers, counts are whole ones (int)."""
V = TypeVar("V")


def matching(known: Mapping[str, V], patterns: Sequence[str] | None) -> dict[str, V]:
    """Those whose names fit one of the patterns, such as "*-FRCNN"; without patterns all.

    Raises:
        InputError: a pattern that fits none.
    """
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, 1, 0)[0]
            raise InputError(f"sequences: {pattern!r} fits none of the {len(known)} sequences; the nearest is {near!r}")
    return {n: one for n, one in known.items() if not patterns or any(fnmatchcase(n, pattern) for pattern in patterns)}
