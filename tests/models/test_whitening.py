"""The whitening of the first convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.models.whitening import MIN_VARIANCE, first_convolution, has_overlapping_stem, whiten_stem

NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}


def photographs(count: int, size: int, channels: int = 3) -> torch.Tensor:
    """Return smooth random images with a little noise, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic")
    noise = 0.02 * torch.randn(count, channels, size, size, generator=generator)
    return (255 * (smooth + noise).clamp(0, 1)).to(torch.uint8)


@pytest.mark.parametrize(
    ("backbone", "options", "size", "channels"),
    [("compact_resnet", {}, 24, 3), ("resnet18", NARROW, 32, 3), ("resnet18", NARROW, 112, 3), ("resnet18", {}, 32, 1)],
)
def test_responses_of_the_filters_are_white(
    backbone: str, options: dict[str, object], size: int, channels: int
) -> None:
    encoder = create_encoder(backbone, size, channels, options=options)
    images = photographs(12, size, channels)
    num_filters = whiten_stem(encoder, images)
    convolution = first_convolution(encoder)
    assert convolution is not None
    k, stride = convolution.kernel_size[0], convolution.stride[0]
    x = encoder.normalize(images).double().numpy()
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::stride, ::stride]
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, channels * k * k)
    variances = np.linalg.svd(patches / np.sqrt(len(patches)), compute_uv=False) ** 2
    num_pairs = min(convolution.out_channels // 2, int((variances > MIN_VARIANCE).sum()))
    assert num_filters == 2 * num_pairs >= 8
    filters = convolution.weight.detach().double().numpy()
    np.testing.assert_array_equal(filters[:num_pairs], -filters[num_pairs : 2 * num_pairs])
    responses = patches @ filters[:num_pairs].reshape(num_pairs, -1).T
    np.testing.assert_allclose(responses.T @ responses / len(patches), np.eye(num_pairs), atol=1e-3)


def test_filters_beyond_the_components_keep_their_values() -> None:
    encoder = create_encoder("resnet18", 32, 1, options=NARROW)
    (weight,) = encoder.backbone.conv1.parameters()
    before = weight.clone()
    # of the nine components of a 3x3 patch, constant columns leave three
    columns = torch.randint(0, 256, (8, 1, 1, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert whiten_stem(encoder, columns.expand(8, 1, 32, 32)) == 6
    assert not (weight[:6] == before[:6]).any()
    assert torch.equal(weight[6:], before[6:])


def test_images_without_contrast_give_finite_filters() -> None:
    encoder = create_encoder("compact_resnet", 24)
    whiten_stem(encoder, torch.full((2, 3, 24, 24), 255, dtype=torch.uint8))
    assert all(torch.isfinite(p).all() for p in encoder.parameters())


@pytest.mark.parametrize(
    ("backbone", "overlap"),
    [("resnet18", True), ("compact_resnet", True), ("efficientnet_lite0", True), ("vit_tiny_patch16_224", False),
     ("convnext_atto", False)],
)  # fmt: skip
def test_patches_of_a_first_convolution_overlap(backbone: str, overlap: bool) -> None:
    assert has_overlapping_stem(create_encoder(backbone)) == overlap


def test_a_first_layer_that_is_no_convolution_of_images_is_refused() -> None:
    encoder = create_encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 8, small_stem=False)
    with pytest.raises(InputError, match=r"whiten_stem: expected false for .*Sequential"):
        whiten_stem(encoder, photographs(2, 8))
