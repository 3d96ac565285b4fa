"""Pictures as arrays: what is asked of them, arrays of any kind made so, and what people see of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from mec.errors import InputError

ImageArray = NDArray[np.uint8] | NDArray[np.float32]
"""(height, width, channels): uint8, or float32 in [0, 1]."""
MAX_CHANNELS = 64
LUMA = (0.299, 0.587, 0.114)


class BrokenPictureError(InputError):
    """A picture that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class Reading:
    """How a picture becomes an array.

    Attributes:
        channels: of the array: 3 for colour, 1 for grey; any other number takes pictures that have as many.
        value_range: what becomes 0 and 1 in pictures of more than 8 bits; every picture is then float32. None: every
            picture is uint8, deeper ones by the range of their type.
        background: colour behind transparent pictures, by name or as #rrggbb.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InputError(f"channels: expected 1 to {MAX_CHANNELS}, got {self.channels}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range: expected two rising numbers, got {self.value_range}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise InputError(
                f"background: expected a colour such as white or #808080, got {self.background!r}"
            ) from error


def as_asked(values: NDArray[Any], reading: Reading) -> ImageArray:
    """(h, w, c) numbers of any type -> as ``reading`` asks: uint8, or float32 in [0, 1] where it has a value_range."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint8:
        low, high = reading.value_range or type_range(values.dtype)
        with np.errstate(over="ignore"):  # what overflows is clipped
            scaled = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / (high - low)
        values = scaled.clip(0, 1)
        if reading.value_range is None:
            values = np.rint(values * 255).astype(np.uint8)
    elif reading.value_range is not None:
        values = values.astype(np.float32) / 255
    return with_channels(values, reading.channels)


def type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """What is black and white in numbers of a type, when nothing else is known of them."""
    if dtype.kind == "f":
        return 0.0, 1.0
    if dtype.itemsize > 2:  # 32 bits are the container, not what an instrument resolves
        return 0.0, 2.0**16 - 1
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def with_channels(picture: NDArray[Any], channels: int) -> ImageArray:
    """(..., c) -> (..., channels): grey is repeated, colour weighed to grey; anything else is refused."""
    have = picture.shape[-1]
    if have == channels:
        return picture
    if have == 1:
        return np.repeat(picture, channels, axis=-1)
    if have == 3 and channels == 1:
        grey = picture @ np.array(LUMA)
        weighed: ImageArray = (np.rint(grey) if picture.dtype == np.uint8 else grey).astype(picture.dtype)[..., None]
        return weighed
    raise BrokenPictureError(f"channels: expected a picture with {channels} channels (or 1), got {have}")


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """(c, h, w) -> (h, w, c): told by its first axis, which is the shortest, and its last, which is more than 4."""
    if values.ndim == 3 and values.shape[0] < min(values.shape[1:]) and values.shape[2] > 4:
        return values.transpose(1, 2, 0)
    return values


def three_axes(values: NDArray[Any]) -> NDArray[Any]:
    """(h, w), (h, w, c) or (c, h, w) -> (h, w, c), where c is at most 64."""
    if values.dtype.kind not in "buif":
        raise BrokenPictureError(f"an array of {values.dtype}, expected numbers")
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 3 and 1 <= values.shape[2] <= MAX_CHANNELS:
        return values
    if values.ndim == 3 and 1 <= values.shape[0] <= MAX_CHANNELS:
        return values.transpose(1, 2, 0)
    raise BrokenPictureError(f"an array of shape {values.shape}, expected (height, width[, channels])")


def shown(picture: NDArray[Any]) -> Image.Image:
    """uint8 or [0, 1] (h, w, c), of whose channels the first three, or the first, are shown."""
    if picture.dtype != np.uint8:
        picture = np.rint(picture * 255).astype(np.uint8)
    return Image.fromarray(picture[..., :3] if picture.shape[2] >= 3 else picture[..., 0]).convert("RGB")


def fitted(picture: NDArray[Any], side: int) -> Image.Image:
    """As it is shown, its longer side resized to ``side`` pixels."""
    fit = shown(picture)
    scale = side / max(fit.size)
    size = (max(1, round(fit.width * scale)), max(1, round(fit.height * scale)))
    return fit.resize(size, Image.Resampling.BICUBIC)


def in_square(picture: NDArray[Any], side: int) -> Image.Image:
    """All of it, in the middle of a white square."""
    fit = fitted(picture, side)
    square = Image.new("RGB", (side, side), "white")
    square.paste(fit, ((side - fit.width) // 2, (side - fit.height) // 2))
    return square
