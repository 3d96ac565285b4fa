"""A set of pictures, in files or in memory, read one at a time as uint8 arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mec.errors import InputError

Picture = NDArray[np.uint8]


class Images(Protocol):
    """A source of pictures, by number; ``labels`` (n,) are indices into ``classes``, or None."""

    name: str
    labels: NDArray[np.int64] | None
    classes: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int, channels: int) -> Picture:
        """Picture ``index`` as uint8 (height, width, channels); raises InputError when it cannot be decoded."""

    def subset(self, indices: NDArray[np.int64]) -> Images: ...


@dataclass
class FileImages:
    """Pictures in files, decoded when asked for. ``names[i]`` is the path of picture i within ``root``."""

    name: str
    root: Path
    names: list[str]
    labels: NDArray[np.int64] | None = None
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int, channels: int) -> Picture:
        path = self.root / self.names[index]
        try:
            with Image.open(path) as image:
                return _as_array(ImageOps.exif_transpose(image), channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: cannot be read as a picture ({error})") from error

    def subset(self, indices: NDArray[np.int64]) -> FileImages:
        labels = None if self.labels is None else self.labels[indices]
        return FileImages(self.name, self.root, [self.names[i] for i in indices], labels, self.classes)


@dataclass
class ArrayImages:
    """Pictures of one size in memory: uint8 (n, height, width, channels)."""

    name: str
    pictures: Picture
    labels: NDArray[np.int64] | None = None
    classes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int, channels: int) -> Picture:
        return with_channels(self.pictures[index], channels)

    def subset(self, indices: NDArray[np.int64]) -> ArrayImages:
        labels = None if self.labels is None else self.labels[indices]
        return ArrayImages(self.name, self.pictures[indices], labels, self.classes)


def with_channels(picture: Picture, channels: int) -> Picture:
    """(..., c) -> (..., channels): grey is repeated, colour weighed to grey; anything else is refused."""
    have = picture.shape[-1]
    if have == channels:
        return picture
    if have == 1:
        return np.repeat(picture, channels, axis=-1)
    if have == 3 and channels == 1:
        grey: Picture = np.rint(picture @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
        return grey[..., None]
    raise InputError(f"channels: expected pictures with {channels} channels (or 1), got {have}")


def _as_array(image: Image.Image, channels: int) -> Picture:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16 bits fill the range of the type; what a float file means by white only its largest value tells
        white = 65535.0 if image.mode != "F" and values.max() > 255 else max(float(values.max()), 1.0)
        image = Image.fromarray((np.clip(values / white, 0, 1) * 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return with_channels(array if array.ndim == 3 else array[..., None], channels)
