"""Images as arrays: what is asked of them, arrays of any kind made so, and what people see of them."""

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


class CorruptImageError(InputError):
    """An image that cannot be decoded; the message is the reason."""


@dataclass(frozen=True)
class PixelFormat:
    """How an image becomes an array.

    Attributes:
        channels: of the array: 3 for color, 1 for gray; any other number takes images that have as many.
        value_range: what becomes 0 and 1 in images of more than 8 bits; every image is then float32. None: every
            image is uint8, deeper ones by the range of their type.
        background: color behind transparent images, by name or as #rrggbb.
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
                f"background: expected a color such as white or #808080, got {self.background!r}"
            ) from error


def convert_pixels(values: NDArray[Any], reading: PixelFormat) -> ImageArray:
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


def with_channels(image: NDArray[Any], channels: int) -> ImageArray:
    """(..., c) -> (..., channels): gray is repeated, color weighed to gray; anything else is refused."""
    have = image.shape[-1]
    if have == channels:
        return image
    if have == 1:
        return np.repeat(image, channels, axis=-1)
    if have == 3 and channels == 1:
        gray = image @ np.array(LUMA)
        weighed: ImageArray = (np.rint(gray) if image.dtype == np.uint8 else gray).astype(image.dtype)[..., None]
        return weighed
    raise CorruptImageError(f"channels: expected an image with {channels} channels (or 1), got {have}")


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """(c, h, w) -> (h, w, c): told by its first axis, which is the shortest, and its last, which is more than 4."""
    if values.ndim == 3 and values.shape[0] < min(values.shape[1:]) and values.shape[2] > 4:
        return values.transpose(1, 2, 0)
    return values


def to_hwc(values: NDArray[Any]) -> NDArray[Any]:
    """(h, w), (h, w, c) or (c, h, w) -> (h, w, c), where c is at most 64."""
    if values.dtype.kind not in "buif":
        raise CorruptImageError(f"an array of {values.dtype}, expected numbers")
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 3 and 1 <= values.shape[2] <= MAX_CHANNELS:
        return values
    if values.ndim == 3 and 1 <= values.shape[0] <= MAX_CHANNELS:
        return values.transpose(1, 2, 0)
    raise CorruptImageError(f"an array of shape {values.shape}, expected (height, width[, channels])")


def to_pil(image: NDArray[Any]) -> Image.Image:
    """uint8 or [0, 1] (h, w, c), of whose channels the first three, or the first, are shown."""
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    return Image.fromarray(image[..., :3] if image.shape[2] >= 3 else image[..., 0]).convert("RGB")


def resize_longer_side(image: NDArray[Any], side: int) -> Image.Image:
    """As it is shown, its longer side resized to ``side`` pixels."""
    fit = to_pil(image)
    scale = side / max(fit.size)
    size = (max(1, round(fit.width * scale)), max(1, round(fit.height * scale)))
    return fit.resize(size, Image.Resampling.BICUBIC)


def pad_to_square(image: NDArray[Any], side: int) -> Image.Image:
    """All of it, in the middle of a white square."""
    fit = resize_longer_side(image, side)
    square = Image.new("RGB", (side, side), "white")
    square.paste(fit, ((side - fit.width) // 2, (side - fit.height) // 2))
    return square
