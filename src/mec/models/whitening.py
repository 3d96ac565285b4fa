"""Initialization of the first convolution from images, which small encoders need many steps to learn."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mec.errors import InputError
from mec.models.encoder import Encoder

MIN_VARIANCE = 5e-4
"""Components of normalized patches with less variance are noise of compression or interpolation: they get no filter."""


def first_convolution(encoder: Encoder) -> nn.Conv2d | None:
    """Return the convolution that the images enter; None if the first layer with weights is another one."""
    layer = next((m for m in encoder.backbone.modules() if list(m.parameters(recurse=False))), None)
    is_convolution = isinstance(layer, nn.Conv2d) and layer.in_channels == encoder.spec.channels and layer.groups == 1
    return layer if is_convolution else None  # type: ignore[return-value]


def has_overlapping_stem(encoder: Encoder) -> bool:
    """Return whether the patches of the first convolution overlap, as in ResNets; those of transformers do not."""
    first = first_convolution(encoder)
    return first is not None and all(k > s for k, s in zip(first.kernel_size, first.stride, strict=True))


@torch.no_grad()
def whiten_stem(encoder: Encoder, images: Iterable[Tensor]) -> int:
    """Initialize the filters of the first convolution as a whitening of the patches of ``images``.

    Filters come in pairs of opposite signs, as ReLU follows: the principal components of the normalized patches,
    divided by their standard deviation, largest variance first. The responses of the pairs have variance 1 and are
    uncorrelated. Filters beyond twice the number of components with variance keep their values. Source: Coates and Ng
    2012; as the initialization of a first layer, Jordan 2024, arXiv 2404.00498.

    Args:
        encoder: is changed.
        images: one or more of shape (c, h, w), uint8 or float in [0, 1], of the size of the views.

    Returns:
        The number of filters that were initialized.

    Raises:
        InputError: the encoder's first layer is not a convolution of images.
    """
    convolution = first_convolution(encoder)
    if convolution is None:
        raise InputError(
            f"whiten_stem: expected false for {encoder.spec.backbone}, whose first layer is not a convolution of images"
        )
    size: tuple[int, int] = convolution.kernel_size  # type: ignore[assignment]
    mean_square, count = torch.zeros(1, dtype=torch.float64), 0
    for image in images:
        patches = F.unfold(encoder.normalize(image[None]), size, stride=convolution.stride)[0].double()
        mean_square, count = mean_square + patches @ patches.T, count + patches.shape[1]
    variances, components = torch.linalg.eigh(mean_square / count)
    num_pairs = min(convolution.out_channels // 2, int((variances > MIN_VARIANCE).sum()))
    filters = (components / variances.sqrt()).T.flip(0)[:num_pairs]
    # the sign of a component is arbitrary; this choice does not depend on the library that computed it
    filters *= torch.gather(filters, 1, filters.abs().argmax(1, keepdim=True)).sign()
    convolution.weight[: 2 * num_pairs] = torch.cat([filters, -filters]).view(-1, *convolution.weight.shape[1:]).float()
    return 2 * num_pairs
