"""The map of each kind of encoder: its stride and channels, and that its numbers are the network's own."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from mec.errors import InputError
from mec.evaluate.tracking.dense_features import Dense
from mec.models.encoder import Encoder, create_encoder

SHALLOW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24)}
# an encoder: backbone, options, then stride and channels of s3 and of s4
KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "resnet18": ("resnet18", {"channels": (8, 8, 16, 24)}, (8, 16), (8, 24)),
    "resnet50": ("resnet50", SHALLOW, (8, 64), (8, 96)),
    "resnet50d": ("resnet50d", SHALLOW, (8, 64), (8, 96)),
    "averages": ("resnetaa50", SHALLOW, (8, 64), (8, 96)),
    "blurs": ("resnetblur50", SHALLOW, (8, 64), (8, 96)),
    "transformer": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24}, (16, 24), (16, 24)),
    "patches of 14": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24, "patch_size": 14}, (14, 24), (14, 24)),
    "patches of 4": (
        "vit_tiny_patch16_224",
        {"depth": 1, "embed_dim": 8, "num_heads": 1, "patch_size": 4},
        (8, 8),
        (8, 8),
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}, (16, 16), (32, 24)),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 12}, (16, 48), (32, 96)),
    "efficientnet": ("efficientnet_lite0", {}, (16, 112), (32, 320)),
}
SMALL = {"layers": (1, 1, 1, 1), "channels": (4, 4, 8, 8)}


def encoder_of(backbone: str, options: dict[str, Any], **more: Any) -> Encoder:
    """With statistics of batches as training leaves them, not 0 and 1."""
    torch.manual_seed(0)
    encoder = create_encoder(backbone, options=options, **more)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def images(height: int, width: int, dense: Dense, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, height, width, generator=generator).to(dense.device)


@pytest.mark.parametrize("kind", KINDS)
def test_stride_and_channels_of_images_of_any_size(kind: str) -> None:
    backbone, options, *expected = KINDS[kind]
    encoder = encoder_of(backbone, options)
    for stage, (stride, channels) in zip(("s3", "s4"), expected, strict=True):
        dense = Dense(encoder, stage)
        assert (dense.stride, dense.channels) == (stride, channels)
        for height, width in ((83, 101), (64, 96), (57, 40)):
            found = dense(images(height, width, dense))
            assert tuple(found.shape) == (1, channels, -(-height // stride), -(-width // stride))
            assert found.dtype == torch.float32
            assert torch.isfinite(found).all()
            assert found.std() > 0


@pytest.mark.parametrize("stage", ["s3", "s4"])
def test_a_resnet_is_torchvisions_with_strides_of_one(stage: str) -> None:
    encoder = encoder_of("resnet18", {})
    other = torchvision.models.resnet18(num_classes=1)
    missing = other.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert not missing.unexpected_keys
    for layer in (other.layer3, other.layer4):
        layer[0].conv1.stride = layer[0].downsample[0].stride = (1, 1)
    dense = Dense(encoder, stage, half=False)
    x = images(61, 90, dense)
    body = [other.conv1, other.bn1, other.relu, other.maxpool, other.layer1, other.layer2, other.layer3, other.layer4]
    with torch.no_grad():
        wanted = nn.Sequential(*body[: 7 if stage == "s3" else 8]).eval().to(dense.device)(x)
    assert wanted.std() > 0.1
    torch.testing.assert_close(dense(x), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["resnet50", "blurs"])
def test_every_second_cell_is_that_of_the_encoder_as_it_was(kind: str) -> None:
    """With one block to a stage, strides of 1 only add cells between."""
    encoder = encoder_of(*KINDS[kind][:2])
    dense = Dense(encoder, "s3", half=False)
    x = images(96, 160, dense)
    with torch.no_grad():
        body = encoder.backbone.to(dense.device).eval()
        own = body.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
    assert tuple(own.shape[2:]) == (6, 10)
    torch.testing.assert_close(dense(x)[:, :, ::2, ::2], own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("stage", ["s3", "s4"])
def test_small_stems_are_averaged_to_eight_pixels_a_cell(stage: str, padding: int) -> None:
    encoder = encoder_of("resnet18", SMALL, image_size=32, stem_padding=padding)
    dense = Dense(encoder, stage, half=False)
    assert (dense.stride, dense.channels) == (8, 8)
    x = images(36, 43, dense)
    net = encoder.backbone.to(dense.device).eval()
    with torch.no_grad():
        x3 = net.layer3(net.layer2(net.layer1(net.act1(net.bn1(net.conv1(x))))))
        own = x3 if stage == "s3" else net.layer4(x3)
    found = dense(x)[0].cpu().double()
    assert tuple(found.shape[1:]) == (5, 6)
    own = own[0].cpu().double()
    side = 2 if stage == "s3" else 1
    for row in range(5):
        for column in range(6):
            cells = own[:, side * row : side * (row + 1), side * column : side * (column + 1)]
            torch.testing.assert_close(found[:, row, column], cells.mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_transformers_at_three_quarters_and_at_the_end_both_normalized() -> None:
    encoder = encoder_of("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24, "dynamic_img_size": True})
    net = encoder.backbone.eval()
    for stage, blocks in (("s3", 3), ("s4", 4)):
        dense = Dense(encoder, stage, half=False)
        x = images(224, 224, dense)
        with torch.no_grad():
            net.to(dense.device)
            tokens = net.norm(net.blocks[:blocks](net.norm_pre(net._pos_embed(net.patch_embed(x)))))
        wanted = tokens[0, 1:].T.reshape(24, 14, 14)
        torch.testing.assert_close(dense(x)[0], wanted, atol=1e-4, rtol=1e-4)
        net.cpu()


@pytest.mark.parametrize("kind", ["resnet50d", "averages", "transformer", "swin"])
def test_the_encoder_given_is_not_changed(kind: str) -> None:
    encoder = encoder_of(*KINDS[kind][:2]).train()
    words = repr(encoder)
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    dense = Dense(encoder, "s3")
    first = dense(images(96, 96, dense))
    for parameter in dense.body.parameters():
        parameter.data.zero_()
    assert encoder.training
    assert repr(encoder) == words
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=0, rtol=0)
    again = Dense(encoder, "s3")
    torch.testing.assert_close(again(images(96, 96, again)), first, msg="the first one changed what it was given")


def test_sixteen_bits_are_near() -> None:
    encoder = encoder_of("resnet18", {"channels": (8, 8, 16, 24)})
    full, half = Dense(encoder, half=False), Dense(encoder, half=True)
    wanted, found = (dense(images(96, 160, dense)) for dense in (full, half))
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.02
    assert torch.cosine_similarity(found, wanted, dim=1).min() > 0.99


def test_frames_are_normalized_by_hand() -> None:
    dense = Dense(encoder_of("resnet18", SMALL, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)))
    frame = np.zeros((5, 6, 3), np.uint8)
    frame[1, 2] = 255, 51, 102
    found = dense.image(frame[:, ::-1])
    assert tuple(found.shape) == (1, 3, 5, 6)
    torch.testing.assert_close(found[0, :, 1, 3].cpu(), torch.tensor([1.0, -0.2, 0.4]))
    torch.testing.assert_close(found[0, :, 0, 0].cpu(), torch.tensor([-1.0, -1.0, 0.0]))


def test_gray_encoders_see_gray_frames() -> None:
    dense = Dense(encoder_of("resnet18", SMALL, channels=1))
    frame = np.full((40, 50, 3), 51, np.uint8)
    frame[0, 0] = 0, 255, 0
    found = dense.image(frame)
    assert tuple(found.shape) == (1, 1, 40, 50)
    assert found[0, 0, 3, 3].item() == pytest.approx((0.2 - 0.5) / 0.25)
    # green weighs 0.587 in the luma of television
    assert found[0, 0, 0, 0].item() == pytest.approx((round(0.587 * 255) / 255 - 0.5) / 0.25, abs=1e-5)
    assert tuple(dense(found).shape) == (1, 8, 5, 7)


def test_time_in_the_network_is_counted() -> None:
    dense = Dense(encoder_of("resnet18", SMALL))
    assert dense.seconds == 0
    dense(images(64, 64, dense))
    once = dense.seconds
    dense(images(64, 64, dense))
    assert 0 < once < dense.seconds


def test_what_is_no_encoder_of_frames_is_refused() -> None:
    with pytest.raises(InputError, match=r"^stage: expected s3 or s4, got 's5'$"):
        Dense("resnet18", "s5")
    with pytest.raises(InputError, match=r"^encoder: resnet18 takes 4 channels; frames have 3, or 1 as gray$"):
        Dense(encoder_of("resnet18", SMALL, channels=4))
    bare = encoder_of("resnet18", SMALL)
    bare.backbone.conv1.padding, bare.backbone.maxpool.padding = (0, 0), 0
    with pytest.raises(InputError, match=r"^encoder: maps of resnet18 leave out the borders of an image$"):
        Dense(bare)
