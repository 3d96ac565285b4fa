"""What is drawn for a view of each image: its crop, colors, blur and the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from mec.data.rng import Numbers
from mec.data.transforms.geometry import CROP_NUMBERS, Boxes, Sides, crop_boxes
from mec.errors import InputError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ViewSettings:
    """Augmentations of one view; a probability or a strength of 0 switches one off.

    Attributes:
        crop_scale: share of the image's area that the crop covers, least and most.
        crop_ratio: width over height of the crop, least and most.
        flip: probability of a horizontal flip.
        rotation: most degrees of rotation, to either side; what turns in from outside is the edge pixel.
        jitter: probability that brightness, contrast, saturation and hue change, in random order.
        brightness: its factor is uniform in [1 - x, 1 + x].
        contrast: its factor is uniform in [1 - x, 1 + x].
        saturation: its factor is uniform in [1 - x, 1 + x].
        hue: its shift is uniform in [-x, x], as a share of the full circle; at most 0.5.
        gray: probability of gray.
        blur: probability of a Gaussian blur.
        blur_sigma: its standard deviation in pixels, least and most.
        solarize: probability that tones above the middle are inverted.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotation: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarize", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected a number in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"hue: expected a number in [0, 0.5], got {self.hue}")
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation: expected degrees in [0, 180], got {self.rotation}")
        for name, most in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most:
                raise InputError(f"{name}: expected 0 < least <= most <= {most}, got {low} and {high}")


# MoCo v3's asymmetric pair, which the paper's code uses
VIEW_1 = ViewSettings(blur=1.0, solarize=0.0)
VIEW_2 = replace(VIEW_1, blur=0.1, solarize=0.2)

NUMBERS = CROP_NUMBERS + 16


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for one view of n images. A factor of 1 and a shift, angle or sigma of 0 do nothing.

    boxes (n, 4): crop, as top, left, height, width; factors (n, 4): brightness, contrast, saturation (factors) and
    hue (share of the circle); order (n, 4): in which these four follow each other; the others (n,).
    """

    boxes: Boxes
    flip: Mask
    angle: Array
    factors: Array
    order: NDArray[np.int64]
    gray: Mask
    sigma: Array
    solarize: Mask

    def rows(self, rows: slice) -> ViewParameters:
        """Those of some of the images."""
        return ViewParameters(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def sample_parameters(settings: ViewSettings, numbers: Numbers, height: Sides, width: Sides) -> ViewParameters:
    """(n, NUMBERS) uniform numbers -> the parameters of a view of images of height x width pixels."""
    boxes = crop_boxes(numbers[:, :CROP_NUMBERS], height, width, settings.crop_scale, settings.crop_ratio)
    u = numbers[:, CROP_NUMBERS:]
    jittered = u[:, 2:3] < settings.jitter
    strength = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    factors = np.array([1.0, 1.0, 1.0, 0.0]) + np.where(jittered, (2 * u[:, 3:7] - 1) * strength, 0.0)
    low, high = settings.blur_sigma
    return ViewParameters(
        boxes=boxes,
        flip=u[:, 0] < settings.flip,
        angle=(2 * u[:, 1] - 1) * settings.rotation,
        factors=factors,
        order=np.argsort(u[:, 7:11], axis=1),
        gray=u[:, 11] < settings.gray,
        sigma=np.where(u[:, 12] < settings.blur, low + u[:, 13] * (high - low), 0.0),
        solarize=u[:, 14] < settings.solarize,
    )
