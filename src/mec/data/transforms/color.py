"""What happens to the colors and the sharpness of cropped images, batched, with parameters for each."""

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
SMALL_SIDE = 64
"""Up to this side a CPU blurs fastest by matrices, as an accelerator does at any."""


def apply_color(x: Tensor, parameters: ViewParameters, maps: Tensor, out: Tensor) -> Tensor:
    """Jitter, gray, blur and solarization of float images (n, c, h, w), into ``out`` (n, c, h, w) in [0, 1].

    maps (n, 2, c, c): ``color_maps`` of the parameters, over the white of ``x``.
    """
    n, c, h, w = x.shape
    offset = maps[:, 1] @ x.mean(dim=(2, 3))[:, :, None]
    torch.baddbmm(offset, maps[:, 0], x.reshape(n, c, h * w), out=out.view(n, c, h * w))
    x = out.clamp_(0, 1)
    if (blurred := np.flatnonzero(parameters.sigma)).size:
        blur(x, parameters.sigma, blurred)
    if (inverted := np.flatnonzero(parameters.solarize)).size:
        rows = torch.from_numpy(inverted).to(x.device)
        # 1 - x above the middle, x below it
        x.index_copy_(0, rows, 0.5 - (x[rows] - 0.5).abs_())
    return out


def color_maps(parameters: ViewParameters, channels: int) -> NDArray[np.float64]:
    """The affine map A x + B mean that the jitter and gray of each image amount to: A and B as (n, 2, c, c).

    ``mean`` (c,) is the mean color of the image, about whose luma contrast turns. Images without three channels
    have brightness and contrast only; their luma is the mean channel.
    """
    n, c = len(parameters.gray), channels
    brightness, contrast, saturation, hue = parameters.factors.T[:, :, None, None]
    identity = np.eye(c)
    # every channel becomes the luma
    to_gray = np.tile(LUMA if c == 3 else np.full(c, 1 / c), (c, 1))
    steps = np.empty((n, 4, c, c))
    steps[:, 0] = brightness * identity
    steps[:, 1] = contrast * identity
    steps[:, 2] = saturation * identity + (1 - saturation) * to_gray if c == 3 else identity
    steps[:, 3] = _hue_turns(hue[:, 0, 0]) if c == 3 else identity

    A, B = np.tile(identity, (n, 1, 1)), np.zeros((n, c, c))
    for step in parameters.order.T:
        S = steps[np.arange(n), step]
        # contrast alone adds something: it keeps the luma of the mean color as it is at that moment
        added = np.where(step[:, None, None] == 1, (1 - contrast) * (to_gray @ (A + B)), 0.0)
        A, B = S @ A, S @ B + added
    if c == 3:
        gray = parameters.gray[:, None, None]
        A, B = np.where(gray, to_gray @ A, A), np.where(gray, to_gray @ B, B)
    return np.stack([A, B], axis=1)


def _hue_turns(shares: Array) -> Array:
    """Shares (n,) of the full circle -> (n, 3, 3), rotations of the chroma plane of YIQ, in RGB."""
    cos, sin = np.cos(-2 * math.pi * shares), np.sin(-2 * math.pi * shares)
    turn = np.zeros((len(shares), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1], turn[:, 2, 2] = cos, cos
    turn[:, 1, 2], turn[:, 2, 1] = -sin, sin
    turned: Array = np.linalg.inv(YIQ) @ turn @ YIQ
    return turned


def blur(x: Tensor, sigma: Array, rows: NDArray[np.int64]) -> None:
    """Gaussian blur, in place, of the ``rows`` (k,) of (n, c, h, w) with their own ``sigma`` (n,) > 0, in pixels.

    The kernel reaches three sigma; edges are repeated.
    """
    _, c, h, w = x.shape
    if x.device.type == "cpu" and max(h, w) > SMALL_SIDE:
        for row in rows:
            _blur_one(x[row], float(sigma[row]))
        return
    chosen = sigma[rows]
    vertical, horizontal = (_blur_matrices(chosen, side).to(x) for side in (h, w))
    at = torch.from_numpy(rows).to(x.device)
    blurred = vertical[:, None] @ (x[at].view(-1, c * h, w) @ horizontal.mT).view(-1, c, h, w)
    x.index_copy_(0, at, blurred)


def _weights(sigma: Array, radius: int) -> Array:
    """(n,) -> (n, 2 radius + 1), each row a normalized Gaussian."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[:, None]) ** 2)
    normalized: Array = weights / weights.sum(axis=1, keepdims=True)
    return normalized


def _blur_matrices(sigma: Array, side: int) -> Tensor:
    """Blurs of one axis as matrices (n, side, side)."""
    radius = math.ceil(3 * float(sigma.max()))
    weights = torch.from_numpy(_weights(sigma, radius)).float()
    return (weights @ _shifts(radius, side)).view(-1, side, side)


@functools.lru_cache(maxsize=64)
def _shifts(radius: int, side: int) -> Tensor:
    """(2 radius + 1, side * side): what each tap of a kernel reads, as matrices, edges repeated."""
    rows = np.arange(side)
    matrices = np.zeros((2 * radius + 1, side, side), dtype=np.float32)
    for tap in range(2 * radius + 1):
        matrices[tap, rows, np.clip(rows + tap - radius, 0, side - 1)] = 1
    return torch.from_numpy(matrices).flatten(1)


def _blur_one(image: Tensor, sigma: float) -> None:
    """In place on (c, h, w): symmetric taps are added first, so half the products are left."""
    h, w = image.shape[1:]
    radius = math.ceil(3 * sigma)
    taps = _weights(np.array([sigma]), radius)[0].tolist()
    pair, first = torch.empty_like(image), torch.empty_like(image)
    padded = F.pad(image[None], (radius, radius, 0, 0), mode="replicate")[0]
    torch.mul(padded[:, :, radius : radius + w], taps[radius], out=first)
    for near in range(radius):
        far = 2 * radius - near
        torch.add(padded[:, :, near : near + w], padded[:, :, far : far + w], out=pair)
        first.add_(pair, alpha=taps[near])
    padded = F.pad(first[None], (0, 0, radius, radius), mode="replicate")[0]
    torch.mul(padded[:, radius : radius + h], taps[radius], out=image)
    for near in range(radius):
        far = 2 * radius - near
        torch.add(padded[:, near : near + h], padded[:, far : far + h], out=pair)
        image.add_(pair, alpha=taps[near])


def rotate(x: Tensor, degrees: Array) -> Tensor:
    """Turn each of (n, c, h, w) anti-clockwise about its center, bilinear, edges repeated."""
    a = torch.from_numpy(np.deg2rad(degrees)).to(x)
    cos, sin, zero = a.cos(), a.sin(), torch.zeros_like(a)
    aspect = x.shape[2] / x.shape[3]
    theta = torch.stack([torch.stack([cos, -sin * aspect, zero], 1), torch.stack([sin / aspect, cos, zero], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
