"""Augmentations: settings of a view, and the parameters sampled from them for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from mec.data.rng import Uniforms
from mec.errors import InputError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Boxes = NDArray[np.int64]  # crops as (top, left, height, width), in pixels
Sides = int | NDArray[np.int64]


@dataclass(frozen=True)
class ViewSettings:
    """Augmentations of one view. A probability or a strength of 0 turns an augmentation off.

    Attributes:
        crop_scale: area of the crop as a fraction of the image's, minimum and maximum.
        crop_ratio: width / height of the crop, minimum and maximum.
        flip: probability of a horizontal flip.
        rotation: maximum rotation in degrees, in either direction; borders are replicated.
        color_jitter: probability of jitter in brightness, contrast, saturation and hue, in random order.
        brightness: strength x of the jitter; the factor is uniform in [1 - x, 1 + x].
        contrast: strength x of the jitter; the factor is uniform in [1 - x, 1 + x].
        saturation: strength x of the jitter; the factor is uniform in [1 - x, 1 + x].
        hue: strength x of the jitter, at most 0.5; the shift is uniform in [-x, x] of the full circle.
        grayscale: probability of conversion to grayscale.
        blur: probability of a Gaussian blur.
        blur_sigma: standard deviation of the blur in pixels, minimum and maximum.
        solarize: probability of solarization, which inverts pixel values above 0.5.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    color_jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        up_to_one = ("flip", "color_jitter", "grayscale", "blur", "solarize", "brightness", "contrast", "saturation")
        maxima = dict.fromkeys(up_to_one, 1.0) | {"hue": 0.5, "rotation": 180.0}
        for name, maximum in maxima.items():
            if not 0 <= getattr(self, name) <= maximum:
                raise InputError(f"{name}: expected a number in [0, {maximum:g}], got {getattr(self, name)}")
        for name, limit in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= limit:
                raise InputError(f"{name}: expected 0 < minimum <= maximum <= {limit}, got {low} and {high}")


@dataclass(frozen=True)
class ExtraViewSettings(ViewSettings):
    """Further views of each image besides view_1 and view_2 (multi-crop), with the same augmentations.

    Views smaller than ``image_size`` of the recipe are *local*: they are compared with the first two views only, pass
    through the encoder together, and do not enter the running statistics of BatchNorm.

    Attributes:
        count: number of extra views of each image; 0: none.
        image_size: side in pixels, at most that of the other views; null: theirs.
    """

    count: int = 0
    image_size: int | None = None
    crop_scale: tuple[float, float] = (0.05, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 0:
            raise InputError(f"count: expected at least 0, got {self.count}")
        if self.image_size is not None and self.image_size < 8:
            raise InputError(f"image_size: expected at least 8 pixels, or null, got {self.image_size}")


# the asymmetric pair of MoCo v3, which the paper's code uses
VIEW_1 = ViewSettings(blur=1.0, solarize=0.0)
VIEW_2 = replace(VIEW_1, blur=0.1, solarize=0.2)

ATTEMPTS = 10
NUM_CROP_UNIFORMS = 2 * ATTEMPTS + 2  # an area and an aspect ratio for each attempt, and the position
NUM_UNIFORMS = NUM_CROP_UNIFORMS + 16  # random numbers per image and view


@dataclass(frozen=True)
class ViewParameters:
    """Augmentation parameters of one view of n images. A factor of 1 and a shift, angle or sigma of 0 are no-ops."""

    boxes: Boxes  # (n, 4)
    flip: Mask
    angle: Array  # degrees
    factors: Array  # (n, 4): factors of brightness, contrast and saturation, and the shift of hue in full circles
    order: NDArray[np.int64]  # (n, 4): order in which these four are applied
    grayscale: Mask
    sigma: Array  # standard deviation of the blur in pixels
    solarize: Mask

    def rows(self, rows: slice) -> ViewParameters:
        """Return the parameters of a slice of the images."""
        return ViewParameters(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def sample_parameters(settings: ViewSettings, uniforms: Uniforms, height: Sides, width: Sides) -> ViewParameters:
    """Convert ``uniforms`` (n, NUM_UNIFORMS) to the parameters of a view of height x width pixel images."""
    boxes = crop_boxes(uniforms[:, :NUM_CROP_UNIFORMS], height, width, settings.crop_scale, settings.crop_ratio)
    u = uniforms[:, NUM_CROP_UNIFORMS:]
    jittered = u[:, 2:3] < settings.color_jitter
    strength = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    factors = np.array([1.0, 1.0, 1.0, 0.0]) + np.where(jittered, (2 * u[:, 3:7] - 1) * strength, 0.0)
    low, high = settings.blur_sigma
    return ViewParameters(
        boxes=boxes,
        flip=u[:, 0] < settings.flip,
        angle=(2 * u[:, 1] - 1) * settings.rotation,
        factors=factors,
        order=np.argsort(u[:, 7:11], axis=1),
        grayscale=u[:, 11] < settings.grayscale,
        sigma=np.where(u[:, 12] < settings.blur, low + u[:, 13] * (high - low), 0.0),
        solarize=u[:, 14] < settings.solarize,
    )


def crop_boxes(
    u: Uniforms, height: Sides, width: Sides, scale: tuple[float, float], ratio: tuple[float, float]
) -> Boxes:
    """Sample one crop per image from ``u`` (n, NUM_CROP_UNIFORMS), distributed as torchvision's RandomResizedCrop.

    The area is uniform in ``scale`` times the area of the image, the logarithm of width / height is uniform in
    ``ratio``. The first of ten attempts that fits is taken, else the largest central crop with an allowed ratio.
    """
    height, width = (np.broadcast_to(np.asarray(side, dtype=np.int64), len(u)) for side in (height, width))
    area = (scale[0] + u[:, :ATTEMPTS] * (scale[1] - scale[0])) * (height * width)[:, None]
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = np.exp(low + u[:, ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths >= 1) & (widths <= width[:, None]) & (heights >= 1) & (heights <= height[:, None])
    rows = np.arange(len(u))
    first = fits.argmax(axis=1)
    h, w = heights[rows, first], widths[rows, first]
    top = (u[:, -2] * (height - h + 1)).astype(np.int64)
    left = (u[:, -1] * (width - w + 1)).astype(np.int64)
    boxes = np.stack([top, left, h, w], axis=1)

    none_fits = ~fits.any(axis=1)
    if none_fits.any():
        too_narrow, too_wide = width / height < ratio[0], width / height > ratio[1]
        h = np.where(too_narrow, np.maximum(1, np.rint(width / ratio[0])), height).astype(np.int64)
        w = np.where(too_wide, np.maximum(1, np.rint(height * ratio[1])), width).astype(np.int64)
        central = np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)
        boxes[none_fits] = central[none_fits]
    return boxes
