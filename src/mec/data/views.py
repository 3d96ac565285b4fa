"""Two views of each picture: the paper's augmentations, batched, with own parameters for every picture.

What a picture goes through: crop and flip (PIL's bilinear filter), rotation, one affine map of its colours,
blur, solarisation, normalisation. Brightness, contrast, saturation, hue and grey are each affine in the
colour, so all of them are one 3 x 4 matrix per picture. Against the PIL pipeline that leaves out the clamp
between the steps and turns hue in YIQ, not in HSV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mec.data.draws import Numbers, uniforms
from mec.data.geometry import CROP_NUMBERS, Boxes, Sides, crop_boxes, resized_crops
from mec.data.pixels import LUMA
from mec.errors import InputError

YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class ViewSettings:
    """Augmentations of one view; a probability or a strength of 0 switches one off.

    crop_scale: share of the picture's area that the crop covers, least and most.
    crop_ratio: width over height of the crop, least and most.
    flip: probability of a horizontal flip.
    rotation: most degrees of rotation, to either side; what turns in from outside is the edge pixel.
    jitter: probability that brightness, contrast, saturation and hue change, in random order.
    brightness, contrast, saturation: factors uniform in [1 - x, 1 + x].
    hue: shift uniform in [-x, x], as a share of the full circle; at most 0.5.
    grey: probability of grey.
    blur: probability of a Gaussian blur.
    blur_sigma: its standard deviation in pixels, least and most.
    solarise: probability that tones above the middle are inverted.
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
    grey: float = 0.2
    blur: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise", "brightness", "contrast", "saturation"):
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
VIEW_1 = ViewSettings(blur=1.0, solarise=0.0)
VIEW_2 = replace(VIEW_1, blur=0.1, solarise=0.2)

NUMBERS = CROP_NUMBERS + 16


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for one view of n pictures. A factor of 1 and a shift, angle or sigma of 0 do nothing.

    boxes (n, 4): crop, as top, left, height, width; factors (n, 4): brightness, contrast, saturation (factors) and
    hue (share of the circle); order (n, 4): in which these four follow each other; the others (n,).
    """

    boxes: Boxes
    flip: Mask
    angle: Array
    factors: Array
    order: NDArray[np.int64]
    grey: Mask
    sigma: Array
    solarise: Mask


def draw_parameters(settings: ViewSettings, numbers: Numbers, height: Sides, width: Sides) -> ViewParameters:
    """(n, NUMBERS) uniform numbers -> the parameters of a view of pictures of height x width pixels."""
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
        grey=u[:, 11] < settings.grey,
        sigma=np.where(u[:, 12] < settings.blur, low + u[:, 13] * (high - low), 0.0),
        solarise=u[:, 14] < settings.solarise,
    )


def rotate(x: Tensor, degrees: Array) -> Tensor:
    """Turn each of (n, c, h, w) anti-clockwise about its centre, bilinear, edges repeated."""
    a = torch.from_numpy(np.deg2rad(degrees)).to(x)
    cos, sin, zero = a.cos(), a.sin(), torch.zeros_like(a)
    aspect = x.shape[2] / x.shape[3]
    theta = torch.stack([torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour_maps(parameters: ViewParameters, mean: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map A x + b that the jitter and grey of each picture amount to.

    mean (n, c): mean colour of each picture, about whose luma contrast turns. Returns A (n, c, c), b (n, c).
    Pictures without three channels have brightness and contrast only; their luma is the mean channel.
    """
    n, c = mean.shape
    factors = torch.from_numpy(parameters.factors).to(mean)
    luma = mean.new_tensor(LUMA) if c == 3 else mean.new_full((c,), 1 / c)
    identity = torch.eye(c, device=mean.device, dtype=mean.dtype).expand(n, c, c)
    to_grey = luma.expand(c, c)  # every channel becomes the luma

    f = factors[:, :, None, None]
    linear = [f[:, 0] * identity, f[:, 1] * identity]
    if c == 3:
        yiq = mean.new_tensor(YIQ)
        turn = factors[:, 3] * (-2 * math.pi)
        rotation = torch.zeros(n, 3, 3, device=mean.device, dtype=mean.dtype)
        rotation[:, 0, 0] = 1
        rotation[:, 1, 1] = rotation[:, 2, 2] = turn.cos()
        rotation[:, 1, 2], rotation[:, 2, 1] = -turn.sin(), turn.sin()
        linear += [f[:, 2] * identity + (1 - f[:, 2]) * to_grey, torch.linalg.inv(yiq) @ rotation @ yiq]
    else:
        linear += [identity, identity]
    steps = torch.stack(linear, dim=1)  # (n, 4, c, c)

    A, b = identity, torch.zeros_like(mean)
    rows = torch.arange(n, device=mean.device)
    order = torch.from_numpy(parameters.order).to(mean.device)
    for position in range(4):
        step = order[:, position]
        S = steps[rows, step]
        now = (A @ mean[:, :, None]).squeeze(2) + b
        # contrast alone has an offset: it keeps the luma of the picture as it is at that moment
        offset = torch.where(step == 1, (1 - factors[:, 1]) * (now @ luma), 0.0)
        A, b = S @ A, (S @ b[:, :, None]).squeeze(2) + offset[:, None]
    if c == 3:
        grey = torch.from_numpy(parameters.grey).to(mean.device)
        A = torch.where(grey[:, None, None], to_grey @ A, A)
        b = torch.where(grey[:, None], b @ to_grey.mT, b)
    return A, b


def blur(x: Tensor, sigma: Array) -> Tensor:
    """Gaussian blur of each of (n, c, h, w) with its own sigma > 0 (n,), in pixels: two passes, edges repeated."""
    radius = min(math.ceil(3 * float(sigma.max())), min(x.shape[2:]) - 1)
    if radius < 1:
        return x
    n, c, h, w = x.shape
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps[None] / torch.from_numpy(sigma).to(x)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    # a picture and its channels are the groups of one convolution
    kernel = kernel.repeat_interleave(c, dim=0)
    x = F.pad(x, (radius, radius, 0, 0), mode="replicate").view(1, n * c, h, -1)
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * c).view(n, c, h, w)
    x = F.pad(x, (0, 0, radius, radius), mode="replicate").view(1, n * c, -1, w)
    return F.conv2d(x, kernel[:, None, :, None], groups=n * c).view(n, c, h, w)


def colour(x: Tensor, parameters: ViewParameters) -> Tensor:
    """Jitter, grey, blur and solarisation of float pictures (n, c, h, w) in [0, 1]."""
    n, c, h, w = x.shape
    A, b = colour_maps(parameters, x.mean(dim=(2, 3)))
    x = torch.baddbmm(b[:, :, None], A, x.reshape(n, c, h * w)).view(n, c, h, w).clamp_(0, 1)
    (blurred,) = np.nonzero(parameters.sigma)
    if len(blurred):
        rows = torch.from_numpy(blurred).to(x.device)
        x = x.index_copy(0, rows, blur(x[rows], parameters.sigma[blurred]))
    if parameters.solarise.any():
        inverted = torch.from_numpy(parameters.solarise).to(x.device)[:, None, None, None]
        x = torch.where(inverted & (x >= 0.5), 1 - x, x)
    return x


class TwoViews(nn.Module):
    """Two views of each picture of a batch, on the batch's device.

    Args:
        size: side of a view, in pixels.
        view_1: what the first view goes through; the default is the paper's.
        view_2: what the second view goes through; the default is the paper's.
        seed: with the epoch and the number of a picture it fixes the picture's views, for any batch and device.

    >>> import torch
    >>> pictures = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
    >>> x1, x2 = TwoViews(32)(pictures, torch.arange(4), epoch=0)
    >>> x1.shape, float(x1.min()) >= 0, float(x2.max()) <= 1
    (torch.Size([4, 3, 32, 32]), True, True)
    """

    def __init__(self, size: int, view_1: ViewSettings = VIEW_1, view_2: ViewSettings = VIEW_2, seed: int = 0) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {size}")
        self.size, self.settings, self.seed = size, (view_1, view_2), seed

    def parameters_of(self, view: int, indices: NDArray[np.int64], epoch: int, h: Sides, w: Sides) -> ViewParameters:
        """What view 0 or 1 of the pictures with these numbers (n,), of h x w pixels, goes through in an epoch."""
        return draw_parameters(self.settings[view], uniforms(self.seed, epoch, indices, NUMBERS, view), h, w)

    @torch.no_grad()
    def forward(self, pictures: Tensor, indices: NDArray[np.int64] | Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """uint8 pictures -> two float batches (n, c, size, size) in [0, 1].

        pictures: (n, c, h, w) whole pictures, or (n, 2, c, size, size): the two views already cropped and flipped
            by the loader (mec.data.loading). indices: (n,) numbers of the pictures, in memory.
        """
        numbers = np.asarray(indices)
        # half precision has fewer tones than a byte
        with torch.autocast(pictures.device.type, enabled=False):
            x1, x2 = (self._view(view, pictures, numbers, epoch) for view in (0, 1))
        return x1, x2

    def _view(self, view: int, pictures: Tensor, indices: NDArray[np.int64], epoch: int) -> Tensor:
        cropped = pictures.ndim == 5
        parameters = self.parameters_of(view, indices, epoch, pictures.shape[-2], pictures.shape[-1])
        if cropped:
            x = pictures[:, view].float()
        else:
            x = resized_crops(pictures, parameters.boxes, self.size, parameters.flip)
        x = x.div_(255)
        if self.settings[view].rotation:
            x = rotate(x, parameters.angle)
        return colour(x, parameters)
