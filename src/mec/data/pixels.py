"""Pixel formats, and the conversion of arrays of any type to them and to PIL images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from mec.errors import InputError

ImageArray = NDArray[np.uint8] | NDArray[np.float32]  # (height, width, channels); floats in [0, 1]
MAX_CHANNELS = 64
LUMA = (0.299, 0.587, 0.114)


class CorruptImageError(InputError):
    """An image that cannot be decoded. The message is the reason."""


@dataclass(frozen=True)
class PixelFormat:
    """The array format to which images are decoded.

    Attributes:
        channels: number of channels: 3 for color, 1 for grayscale; any other number requires images with that number.
        value_range: values of images of more than 8 bits that become 0 and 1; every image is then float32. None: every
            image is uint8, and those of more bits are scaled by the range of their type.
        background: color behind transparent images, a name or #rrggbb.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None
    background: str = "white"

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InputError(f"channels: expected 1 to {MAX_CHANNELS}, got {self.channels}")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise InputError(f"value_range: expected minimum < maximum, got {self.value_range}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise InputError(
                f"background: expected a color such as white or #808080, got {self.background!r}"
            ) from error


def convert_pixels(values: NDArray[Any], pixel_format: PixelFormat) -> ImageArray:
    """Convert (h, w, c) numbers of any type to ``pixel_format``: uint8, or float32 in [0, 1] with a value_range."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype != np.uint8:
        low, high = pixel_format.value_range or type_range(values.dtype)
        with np.errstate(over="ignore"):  # values that overflow are clipped below
            scaled = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / (high - low)
        values = scaled.clip(0, 1)
        if pixel_format.value_range is None:
            values = np.rint(values * 255).astype(np.uint8)
    elif pixel_format.value_range is not None:
        values = values.astype(np.float32) / 255
    return with_channels(values, pixel_format.channels)


def type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the values of black and white that are assumed for a dtype."""
    if dtype.kind == "f":
        return 0.0, 1.0
    if dtype.itemsize > 2:  # 32 bits are a container: instruments resolve fewer
        return 0.0, 2.0**16 - 1
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def with_channels(image: NDArray[Any], channels: int) -> ImageArray:
    """Convert (..., c) to (..., channels): repeat grayscale, or reduce color to its luma; else a CorruptImageError."""
    num_channels = image.shape[-1]
    if num_channels == channels:
        return image
    if num_channels == 1:
        return np.repeat(image, channels, axis=-1)
    if num_channels == 3 and channels == 1:
        luma = image @ np.array(LUMA)
        grayscale: ImageArray = (np.rint(luma) if image.dtype == np.uint8 else luma).astype(image.dtype)[..., None]
        return grayscale
    raise CorruptImageError(f"channels: expected an image with {channels} channels (or 1), got {num_channels}")


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Return whether an image array is (c, h, w): its first axis is the shortest and its last is longer than 4."""
    return len(shape) == 3 and shape[0] < min(shape[1:]) and shape[2] > 4


def channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """Convert (c, h, w), see ``is_channels_first``, to (h, w, c)."""
    return values.transpose(1, 2, 0) if is_channels_first(values.shape) else values


def to_hwc(values: NDArray[Any]) -> NDArray[Any]:
    """Convert (h, w), (h, w, c) or (c, h, w) to (h, w, c), with at most 64 channels."""
    if values.dtype.kind not in "buif":
        raise CorruptImageError(f"array dtype: expected numbers, got {values.dtype}")
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 3 and 1 <= values.shape[2] <= MAX_CHANNELS:
        return values
    if values.ndim == 3 and 1 <= values.shape[0] <= MAX_CHANNELS:
        return values.transpose(1, 2, 0)
    raise CorruptImageError(f"array shape: expected (height, width[, channels]), got {values.shape}")


def to_pil(image: NDArray[Any]) -> Image.Image:
    """Convert (h, w, c), uint8 or in [0, 1], to an RGB image of its first three channels, or of its first one."""
    if image.dtype != np.uint8:
        image = np.rint(image * 255).astype(np.uint8)
    return Image.fromarray(image[..., :3] if image.shape[2] >= 3 else image[..., 0]).convert("RGB")


def resize_longer_side(image: NDArray[Any], side: int) -> Image.Image:
    """Convert to an RGB image and resize its longer side to ``side`` pixels."""
    pil_image = to_pil(image)
    scale = side / max(pil_image.size)
    size = (max(1, round(pil_image.width * scale)), max(1, round(pil_image.height * scale)))
    return pil_image.resize(size, Image.Resampling.BICUBIC)


def pad_to_square(image: NDArray[Any], side: int) -> Image.Image:
    """Resize the longer side to ``side`` pixels and center the image on a white square."""
    resized = resize_longer_side(image, side)
    square = Image.new("RGB", (side, side), "white")
    square.paste(resized, ((side - resized.width) // 2, (side - resized.height) // 2))
    return square
