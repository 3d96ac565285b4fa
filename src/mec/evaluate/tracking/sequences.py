"""Data types of the tracking tasks: video frames, objects in a frame, sequences, and per-sequence scores."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from mec.data.decode import open_image
from mec.data.pixels import CorruptImageError, PixelFormat
from mec.errors import InputError
from mec.text_files import TextError

Frame = NDArray[np.uint8]  # (height, width, 3), RGB
Boxes = NDArray[np.float64]  # (k, 4): left, top, width, height, in pixels
RLE = dict[str, Any]  # a mask of a frame in COCO's compressed run lengths: {"size": [height, width], "counts": bytes}
Labels = NDArray[np.uint8]  # (height, width): 0 is background, 1, 2, ... are objects, VOID is ignored by the metrics
VOID = 255
JOINTS = (  # of a pose, in the order of its rows
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "head_bottom", "nose", "head_top",
)  # fmt: skip
LIMBS = (
    ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"), ("right_shoulder", "right_elbow"),
    ("right_elbow", "right_wrist"), ("left_shoulder", "head_bottom"), ("right_shoulder", "head_bottom"),
    ("head_bottom", "head_top"), ("left_shoulder", "left_hip"), ("left_hip", "left_knee"), ("left_knee", "left_ankle"),
    ("right_shoulder", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"),
)  # fmt: skip
MIN_BOX_SIDE = 10  # pixels; replaces a side of length 0, where all visible joints lie on one line


class SequenceError(Exception):
    """A sequence cannot be used. The message is the reason, in one line. The other sequences are still processed, as
    after a ``TextError`` in reading one of its files."""


UNUSABLE = (SequenceError, TextError)


class Frames(Protocol):
    """The frames of one video, in order. ``frame_rate`` is in frames per second."""

    @property
    def frame_rate(self) -> float: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass(frozen=True)
class ImageFrames:
    """Frames stored as image files. The next frame is decoded while the caller processes the current one."""

    files: tuple[Path, ...]
    frame_rate: float = 30.0

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Frame]:
        with ThreadPoolExecutor(1) as executor:
            upcoming = None
            for file in self.files:
                current, upcoming = upcoming, executor.submit(read_frame, file)
                if current is not None:
                    yield current.result()
            if upcoming is not None:
                yield upcoming.result()


def read_frame(file: Path) -> Frame:
    """Decode an image file. Raises SequenceError when it is missing or corrupt."""
    with _sequence_error(file):
        return open_image(file.read_bytes()).decode(PixelFormat()).astype(np.uint8, copy=False)


def image_size(file: Path) -> tuple[int, int]:
    """Return the height and width of an image file. Raises SequenceError when it is missing or corrupt."""
    with _sequence_error(file):
        image = open_image(file.read_bytes())
        return image.height, image.width


@contextmanager
def _sequence_error(file: Path) -> Iterator[None]:
    """Convert errors in reading an image."""
    try:
        yield
    except (OSError, CorruptImageError) as error:
        raise SequenceError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


@dataclass(frozen=True)
class FrameObjects:
    """The k objects in one frame: detections, annotations, or tracks, which have ids."""

    boxes: Boxes
    scores: NDArray[np.float64]  # (k,) confidences; 1 where the source has none
    ids: NDArray[np.int64] | None = None
    masks: Sequence[RLE] | None = None
    poses: NDArray[np.float64] | None = None  # (k, joints, 3) x, y in pixels and visibility, 1 or 0

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, indices: NDArray[Any], ids: NDArray[np.int64] | None = None) -> FrameObjects:
        """Return a subset of the objects, by indices or by a boolean mask (k,). ``ids`` replaces the track ids."""
        numbers = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        return FrameObjects(
            self.boxes[numbers],
            self.scores[numbers],
            ids if ids is not None else None if self.ids is None else self.ids[numbers],
            None if self.masks is None else [self.masks[n] for n in numbers.tolist()],
            None if self.poses is None else self.poses[numbers],
        )


def pose_boxes(poses: NDArray[np.float64]) -> Boxes:
    """Return the boxes around the visible joints of poses (k, joints, 3); each pose has a visible joint."""
    visible = poses[..., 2:] > 0
    low = np.where(visible, poses[..., :2], np.inf).min(axis=1, initial=np.inf)
    high = np.where(visible, poses[..., :2], -np.inf).max(axis=1, initial=-np.inf)
    sides = high - low
    return np.concatenate([low, np.where(sides > 0, sides, MIN_BOX_SIDE)], axis=1)


def hide_ignored(poses: NDArray[np.float64] | None, ignored: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return a copy of the poses (k, joints, 3) in which joints within ignored polygons are invisible."""
    assert poses is not None
    poses = poses.copy()
    for polygon in ignored:
        poses[..., 2] *= ~_inside(poses[..., :2], polygon)
    return poses


def _inside(points: NDArray[np.float64], polygon: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return flags (...) of points (..., 2) in a polygon (n, 2): a ray to the right crosses an odd number of sides."""
    x, y = points[..., 0, None], points[..., 1, None]
    (x1, y1), (x2, y2) = polygon.T, np.roll(polygon, -1, axis=0).T
    spans = (y1 > y) != (y2 > y)
    crossing = x1 + (y - y1) * (x2 - x1) / np.where(y1 == y2, 1, y2 - y1)
    return np.asarray((spans & (x < crossing)).sum(axis=-1) % 2 == 1)


@dataclass(frozen=True)
class BoxSequence:
    """A target to track from its box in the first frame (``sot``)."""

    name: str
    frames: Frames
    ground_truth: Boxes  # from (0, 0); rows are NaN where the dataset marks the target as not visible
    attributes: tuple[str, ...] = ()  # the dataset's labels of the sequence, such as OCC or SV
    objects: int = 1


@dataclass(frozen=True)
class MaskSequence:
    """Objects to track from their masks in the first frame (``vos``)."""

    name: str
    frames: Frames
    names: tuple[str, ...]  # file names of the frames without suffix, which predicted masks take over
    ground_truth: Callable[[int], Labels | None]  # labels of frame i; None where it is not annotated, frame 0 always is
    palette: NDArray[np.uint8]  # (256, 3) RGB colors of the labels, from the annotation
    objects: int = 0  # in the first mask
    evaluated: tuple[int, ...] = ()  # annotated frames between the first and the last


@dataclass(frozen=True)
class DetectionSequence:
    """Detections in every frame, to be associated into tracks (``mot``, ``mots``, ``pose``)."""

    name: str
    frames: Frames
    detections: tuple[FrameObjects, ...]
    ground_truth: Any = field(repr=False, default=None)  # its type is defined by the module that reads the dataset
    objects: int = 0  # different ones that are evaluated, in all frames together


Tracks = Sequence[FrameObjects]  # output of a tracker: the objects of every frame, with ids
S = TypeVar("S")


class SequenceLoaders(dict[str, Callable[[], S]]):
    """Functions that load the sequences, by name; a SequenceError or TextError from one leaves the others usable.
    ``description`` is how the data was read: layout, folders, list, and every guess."""

    def __init__(self, loaders: Mapping[str, Callable[[], S]], description: str) -> None:
        super().__init__(loaders)
        self.description = description


Scores = dict[str, dict[str, float]]  # metrics by sequence and column. Fractions are floats, counts are ints
V = TypeVar("V")


def select_sequences(sequences: Mapping[str, V], patterns: Sequence[str] | None) -> dict[str, V]:
    """Return the sequences whose names match at least one pattern, such as "*-FRCNN"; all without patterns."""
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in sequences):
            near = difflib.get_close_matches(pattern, sequences, 1, 0)[0]
            raise InputError(
                f"sequences: {pattern!r} matches none of the {len(sequences)} sequences; the nearest is {near!r}"
            )
    return {
        name: sequence
        for name, sequence in sequences.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }
