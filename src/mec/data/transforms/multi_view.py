"""Augmented views of images, batched, with separate random parameters for each image; normalization follows outside.

Brightness, contrast, saturation, hue and grayscale are each affine in the color, so one 3 x 4 matrix per image applies
them all. Unlike in the PIL pipeline, values are not clamped between these steps, and hue is rotated in YIQ, not in HSV.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mec.data.pixels import LUMA
from mec.data.rng import uniforms, view_stream
from mec.data.transforms import (
    NUM_UNIFORMS,
    VIEW_1,
    VIEW_2,
    Array,
    Boxes,
    Sides,
    ViewParameters,
    ViewSettings,
    sample_parameters,
)
from mec.errors import InputError

CACHE_BYTES = 3 * 2**20  # size of a chunk of images on a CPU, whose intermediate results stay in the cache
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of channels, of [0, 1]
YIQ = np.array([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
MATRIX_BLUR_MAX_SIDE = 64
"""Up to this side in pixels, matrix products are the fastest blur on a CPU. On an accelerator they are at any side."""


class Views(nn.Module):
    """Makes the views of a batch: ``views(images, indices, epoch)`` returns a float batch (n, c, size, size) for each.

    Attributes:
        size: side in pixels of the first views, the global ones; it may change between epochs.
        num_views: number of views of each image.
        num_global: number of global views; the others, local ones, are smaller.
        seed: fixes the views of each image index and epoch.
        statistics: mean and standard deviation of each channel, by which the views are already normalized; None: they
            are in [0, 1].
    """

    statistics: Statistics | None = None

    def __init__(self, size: int, num_views: int, seed: int = 0, local_sizes: Sequence[int] = ()) -> None:
        super().__init__()
        if size < 1:
            raise InputError(f"size: expected at least 1 pixel, got {size}")
        self.size, self.num_views, self.num_global, self.seed = size, num_views, num_views - len(local_sizes), seed
        self.local_sizes = tuple(local_sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view in pixels."""
        return (self.size,) * self.num_global + self.local_sizes


class MultiView(Views):
    """Makes one view of each image per entry of ``settings``, on the device of the batch; see ``TwoViews``. The last
    ones have the ``local_sizes``."""

    def __init__(
        self, size: int, settings: Sequence[ViewSettings], seed: int = 0, local_sizes: Sequence[int] = ()
    ) -> None:
        super().__init__(size, len(settings), seed, local_sizes)
        self.settings = tuple(settings)

    def view_parameters(
        self, view: int, indices: NDArray[np.int64], epoch: int, height: Sides, width: Sides
    ) -> ViewParameters:
        """Return the augmentation parameters of one view of the images ``indices`` (n,), height x width pixels."""
        u = uniforms(self.seed, epoch, indices, NUM_UNIFORMS, view_stream(view))
        return sample_parameters(self.settings[view], u, height, width)

    @torch.no_grad()
    def forward(self, images: Tensor, indices: NDArray[np.int64] | Tensor, epoch: int) -> tuple[Tensor, ...]:
        """Make the views of a batch: for each view, floats (n, c, size, size) in [0, 1].

        ``images`` are whole images (n, c, h, w), or the crops of each view, already flipped, as in a ``Batch``
        (mec.data.transforms.crop); uint8, or float in [0, 1]. ``epoch`` selects new views of the same ``indices`` (n,).
        """
        indices = np.asarray(indices)
        # 16-bit floats resolve fewer values than uint8
        with torch.autocast(images.device.type, enabled=False):
            return tuple(self._view(view, images, indices, epoch) for view in range(len(self.settings)))

    def _view(self, view: int, images: Tensor, indices: NDArray[np.int64], epoch: int) -> Tensor:
        n, size, device = len(images), self.sizes[view], images.device
        are_crops = images.ndim != 4
        source = split_crops(images, self.sizes)[view] if are_crops else images
        c = source.shape[1]
        parameters = self.view_parameters(view, indices, epoch, source.shape[2], source.shape[3])
        white = 1.0 if images.is_floating_point() else 255.0
        maps = torch.from_numpy((color_maps(parameters, c) / white).astype(np.float32)).to(device)
        out = torch.empty(n, c, size, size, device=device)
        chunk_size = max(1, CACHE_BYTES // (4 * c * size**2)) if device.type == "cpu" else n
        for start in range(0, n, chunk_size):
            rows = slice(start, start + chunk_size)
            chunk = parameters.rows(rows)
            if are_crops:
                x = source[rows].to(torch.float32, memory_format=torch.contiguous_format)
            else:
                x = resized_crops(images[rows], chunk.boxes, size, chunk.flip)
            if self.settings[view].rotation:
                x = rotate(x, chunk.angle)
            apply_color(x, chunk, maps[rows], out[rows])
        return out


def split_crops(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return the crops (n, c, size, size) of each view, of those in a ``Batch``."""
    areas = [size**2 for size in sizes]
    channels = images.shape[1] // sum(areas)
    parts = torch.split(images, [channels * area for area in areas], dim=1)
    return [part.reshape(-1, size, size, channels).permute(0, 3, 1, 2) for part, size in zip(parts, sizes, strict=True)]


class TwoViews(MultiView):
    """Makes the two views of each image that pretraining compares, on the device of the batch.

    ``views(images, indices, epoch)`` takes images (n, c, h, w), uint8 or float in [0, 1], and their indices (n,) in
    the dataset, and returns two float batches (n, c, size, size) in [0, 1].

    Args:
        size: side of a view in pixels.
        view_1: augmentations of the first view; the default is the paper's.
        view_2: augmentations of the second view; the default is the paper's.
        seed: fixes the views of each image index and epoch, for any batch and device.

    Examples:
        >>> import torch
        >>> images = torch.randint(0, 256, (4, 3, 40, 60), dtype=torch.uint8)
        >>> x1, x2 = TwoViews(32)(images, torch.arange(4), epoch=0)
        >>> x1.shape, float(x1.min()) >= 0, float(x2.max()) <= 1
        (torch.Size([4, 3, 32, 32]), True, True)
    """

    def __init__(self, size: int, view_1: ViewSettings = VIEW_1, view_2: ViewSettings = VIEW_2, seed: int = 0) -> None:
        super().__init__(size, (view_1, view_2), seed)


def resized_crops(images: Tensor, boxes: Boxes, size: int, flip: NDArray[np.bool_]) -> Tensor:
    """Crop, resize and flip images (n, c, h, w) by their ``boxes`` (n, 4) to float (n, c, size, size)."""
    n, c, h, w = images.shape
    box = torch.from_numpy(boxes).to(images.device, torch.float32)
    flipped = torch.from_numpy(flip).to(images.device)
    vertical = _resize_matrices(box[:, 0], box[:, 2], h, size)
    horizontal = _resize_matrices(box[:, 1], box[:, 3], w, size, flipped)
    # rows of all channels in one product: (n, size, h) (n, h, c w), then (n, size c, w) (n, w, size)
    x = torch.bmm(vertical, images.transpose(1, 2).float().reshape(n, h, c * w)).view(n, size * c, w)
    return torch.bmm(x, horizontal.mT).view(n, size, c, size).transpose(1, 2).contiguous()


def _resize_matrices(
    start: Tensor, length: Tensor, source_size: int, target_size: int, flipped: Tensor | None = None
) -> Tensor:
    """Return matrices (n, target_size, source_size) that resize [start, start + length) like antialiased bilinear PIL.

    The filter is a triangle as wide as the larger of a source and a target pixel, cut off at the crop and normalized.
    """
    scale = (length / target_size).view(-1, 1, 1)
    support = scale.clamp_min(1.0)
    target = torch.arange(target_size, device=start.device, dtype=torch.float32).view(1, -1, 1)
    if flipped is not None:
        target = torch.where(flipped.view(-1, 1, 1), target_size - 1 - target, target)
    center = start.view(-1, 1, 1) + (target + 0.5) * scale
    pixel = torch.arange(source_size, device=start.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    inside = (pixel > start.view(-1, 1, 1)) & (pixel < (start + length).view(-1, 1, 1))
    weights = (1 - (pixel - center).abs() / support).clamp_min(0) * inside
    return weights / weights.sum(dim=2, keepdim=True)


def apply_color(x: Tensor, parameters: ViewParameters, maps: Tensor, out: Tensor) -> Tensor:
    """Apply color jitter, grayscale, blur and solarization to float images (n, c, h, w) of any white value.

    ``maps`` (n, 2, c, c) are the ``color_maps`` of the parameters, divided by the white value of ``x``. The result in
    [0, 1] is written to ``out`` and returned.
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
    return np.linalg.inv(YIQ) @ rotation @ YIQ  # type: ignore[no-any-return]


def blur(x: Tensor, sigma: Array, rows: NDArray[np.int64]) -> None:
    """Blur images ``rows`` (k,) of ``x`` (n, c, h, w) in place with Gaussians of ``sigma`` (n,) px, cut at 3 sigma."""
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
    return weights / weights.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


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
