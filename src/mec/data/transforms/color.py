"""Color and sharpness augmentations of cropped images, batched, with separate parameters for each image."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mec.data.pixels import LUMA
from mec.data.transforms.view_settings import Array, ViewParameters

YIQ = np.array([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
MATRIX_BLUR_MAX_SIDE = 64
"""Up to this side in pixels, matrix products are the fastest blur on a CPU. On an accelerator they are at any side."""


def apply_color(x: Tensor, parameters: ViewParameters, maps: Tensor, out: Tensor) -> Tensor:
    """Apply color jitter, grayscale, blur and solarization to float images (n, c, h, w) of any white value.

    ``maps`` (n, 2, c, c) are the ``color_maps`` of the parameters, divided by the white value of ``x``. The result in
    [0, 1] is written to ``out`` (n, c, h, w) and returned.
    """
    n, c, h, w = x.shape
    offset = maps[:, 1] @ x.mean(dim=(2, 3))[:, :, None]
    torch.baddbmm(offset, maps[:, 0], x.reshape(n, c, h * w), out=out.view(n, c, h * w))
    x = out.clamp_(0, 1)
    if (blurred := np.flatnonzero(parameters.sigma)).size:
        blur(x, parameters.sigma, blurred)
    if (solarized := np.flatnonzero(parameters.solarize)).size:
        rows = torch.from_numpy(solarized).to(x.device)
        # 1 - x where x is above 0.5, else x
        x.index_copy_(0, rows, 0.5 - (x[rows] - 0.5).abs_())
    return out


def color_maps(parameters: ViewParameters, channels: int) -> NDArray[np.float64]:
    """Return A and B, (n, 2, c, c), of the map x -> A x + B mean that combines color jitter and grayscale.

    ``mean`` (c,) is the mean color of the image; contrast scales the distance to its luma. Images without three
    channels have brightness and contrast only, and their luma is the mean of the channels.
    """
    n, c = len(parameters.grayscale), channels
    brightness, contrast, saturation, hue = parameters.factors.T[:, :, None, None]
    identity = np.eye(c)
    # maps every channel to the luma
    to_gray = np.tile(LUMA if c == 3 else np.full(c, 1 / c), (c, 1))
    steps = np.empty((n, 4, c, c))
    steps[:, 0] = brightness * identity
    steps[:, 1] = contrast * identity
    steps[:, 2] = saturation * identity + (1 - saturation) * to_gray if c == 3 else identity
    steps[:, 3] = _hue_rotations(hue[:, 0, 0]) if c == 3 else identity

    A, B = np.tile(identity, (n, 1, 1)), np.zeros((n, c, c))
    for step in parameters.order.T:
        S = steps[np.arange(n), step]
        # only contrast adds an offset: it preserves the luma of the mean color after the steps so far
        offset = np.where(step[:, None, None] == 1, (1 - contrast) * (to_gray @ (A + B)), 0.0)
        A, B = S @ A, S @ B + offset
    if c == 3:
        grayscale = parameters.grayscale[:, None, None]
        A, B = np.where(grayscale, to_gray @ A, A), np.where(grayscale, to_gray @ B, B)
    return np.stack([A, B], axis=1)


def _hue_rotations(shifts: Array) -> Array:
    """Return (n, 3, 3) RGB matrices that rotate the chroma plane of YIQ by ``shifts`` (n,) full circles."""
    cos, sin = np.cos(-2 * math.pi * shifts), np.sin(-2 * math.pi * shifts)
    rotation = np.zeros((len(shifts), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1], rotation[:, 2, 2] = cos, cos
    rotation[:, 1, 2], rotation[:, 2, 1] = -sin, sin
    in_rgb: Array = np.linalg.inv(YIQ) @ rotation @ YIQ
    return in_rgb


def blur(x: Tensor, sigma: Array, rows: NDArray[np.int64]) -> None:
    """Apply a Gaussian blur in place to the images ``rows`` (k,) of ``x`` (n, c, h, w).

    ``sigma`` (n,) is in pixels and above 0 in these rows. The kernel ends at three sigma; borders are replicated.
    """
    _, c, h, w = x.shape
    if x.device.type == "cpu" and max(h, w) > MATRIX_BLUR_MAX_SIDE:
        for row in rows:
            _blur_image(x[row], float(sigma[row]))
        return
    vertical, horizontal = (_blur_matrices(sigma[rows], side).to(x) for side in (h, w))
    indices = torch.from_numpy(rows).to(x.device)
    blurred = vertical[:, None] @ (x[indices].view(-1, c * h, w) @ horizontal.mT).view(-1, c, h, w)
    x.index_copy_(0, indices, blurred)


def _gaussian_kernels(sigma: Array, radius: int) -> Array:
    """Return normalized Gaussian kernels (n, 2 radius + 1) for ``sigma`` (n,)."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    kernels: Array = weights / weights.sum(axis=1, keepdims=True)
    return kernels


def _blur_matrices(sigma: Array, side: int) -> Tensor:
    """Return (n, side, side) matrices that blur along one axis."""
    radius = math.ceil(3 * float(sigma.max()))
    kernels = torch.from_numpy(_gaussian_kernels(sigma, radius)).float()
    return (kernels @ _shift_matrices(radius, side)).view(-1, side, side)


@functools.lru_cache(maxsize=64)
def _shift_matrices(radius: int, side: int) -> Tensor:
    """Return, for each kernel tap, the flattened matrix (side * side) that shifts an axis, with replicated borders."""
    rows = np.arange(side)
    matrices = np.zeros((2 * radius + 1, side, side), dtype=np.float32)
    for tap in range(2 * radius + 1):
        matrices[tap, rows, np.clip(rows + tap - radius, 0, side - 1)] = 1
    return torch.from_numpy(matrices).flatten(1)


def _blur_image(image: Tensor, sigma: float) -> None:
    """Blur (c, h, w) in place. Symmetric pixels are added before the product, which halves the products."""
    h, w = image.shape[1:]
    radius = math.ceil(3 * sigma)
    kernel = _gaussian_kernels(np.array([sigma]), radius)[0].tolist()
    pair, rows_blurred = torch.empty_like(image), torch.empty_like(image)
    padded = F.pad(image[None], (radius, radius, 0, 0), mode="replicate")[0]
    torch.mul(padded[:, :, radius : radius + w], kernel[radius], out=rows_blurred)
    for tap in range(radius):
        opposite = 2 * radius - tap
        torch.add(padded[:, :, tap : tap + w], padded[:, :, opposite : opposite + w], out=pair)
        rows_blurred.add_(pair, alpha=kernel[tap])
    padded = F.pad(rows_blurred[None], (0, 0, radius, radius), mode="replicate")[0]
    torch.mul(padded[:, radius : radius + h], kernel[radius], out=image)
    for tap in range(radius):
        opposite = 2 * radius - tap
        torch.add(padded[:, tap : tap + h], padded[:, opposite : opposite + h], out=pair)
        image.add_(pair, alpha=kernel[tap])


def rotate(x: Tensor, degrees: Array) -> Tensor:
    """Rotate each image of (n, c, h, w) counterclockwise about its center, bilinear, with replicated borders."""
    a = torch.from_numpy(np.deg2rad(degrees)).to(x)
    cos, sin, zero = a.cos(), a.sin(), torch.zeros_like(a)
    aspect = x.shape[2] / x.shape[3]
    theta = torch.stack([torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
