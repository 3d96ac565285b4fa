"""Feature maps of each kind of encoder: stride, channels, and values against the network itself."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from mec.errors import InputError
from mec.evaluate.tracking.dense_features import DenseFeatures, Precision
from mec.evaluate.tracking.runner import weights_digest
from mec.models.encoder import Encoder, create_encoder
from tests.evaluate.tracking.crossings import narrow_encoder

SHALLOW = {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24)}
# name: backbone, options, then stride and channels of s3 and of s4
ENCODERS: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "resnet18": ("resnet18", {"channels": (8, 8, 16, 24)}, (8, 16), (8, 24)),
    "resnet50": ("resnet50", SHALLOW, (8, 64), (8, 96)),
    "resnet50d": ("resnet50d", SHALLOW, (8, 64), (8, 96)),
    "average pooling": ("resnetaa50", SHALLOW, (8, 64), (8, 96)),
    "blur pooling": ("resnetblur50", SHALLOW, (8, 64), (8, 96)),
    "vit": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24}, (16, 24), (16, 24)),
    "vit, patches of 14": ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24, "patch_size": 14}, (14, 24), (14, 24)),
    "vit, patches of 4": (
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


def make_encoder(backbone: str, options: dict[str, Any], **kwargs: Any) -> Encoder:
    """Create an encoder with random batch norm statistics, as after training."""
    torch.manual_seed(0)
    encoder = create_encoder(backbone, options=options, **kwargs)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return encoder


def random_image(height: int, width: int, dense: DenseFeatures, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, height, width, generator=generator).to(dense.device)


@pytest.mark.parametrize("kind", ENCODERS)
def test_images_of_any_size_have_the_expected_stride_and_channels(kind: str) -> None:
    backbone, options, *expected = ENCODERS[kind]
    encoder = make_encoder(backbone, options)
    for stage, (stride, channels) in zip(("s3", "s4"), expected, strict=True):
        dense = DenseFeatures(encoder, stage)
        assert (dense.stride, dense.channels) == (stride, channels)
        for height, width in ((83, 101), (64, 96), (57, 40)):
            features = dense(random_image(height, width, dense))
            assert tuple(features.shape) == (1, channels, -(-height // stride), -(-width // stride))
            assert features.dtype == torch.float32
            assert torch.isfinite(features).all()
            assert features.std() > 0


@pytest.mark.parametrize("stage", ["s3", "s4"])
def test_resnet_equals_torchvisions_with_strides_of_one(stage: str) -> None:
    encoder = make_encoder("resnet18", {})
    reference = torchvision.models.resnet18(num_classes=1)
    keys = reference.load_state_dict(encoder.backbone.state_dict(), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert not keys.unexpected_keys
    for layer in (reference.layer3, reference.layer4):
        layer[0].conv1.stride = layer[0].downsample[0].stride = (1, 1)
    dense = DenseFeatures(encoder, stage, precision="32-true")
    x = random_image(61, 90, dense)
    stages = [reference.layer1, reference.layer2, reference.layer3, reference.layer4]
    layers = [reference.conv1, reference.bn1, reference.relu, reference.maxpool, *stages]
    with torch.no_grad():
        expected = nn.Sequential(*layers[: 7 if stage == "s3" else 8]).eval().to(dense.device)(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(dense(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["resnet50", "blur pooling"])
def test_every_second_cell_equals_the_unchanged_encoder(kind: str) -> None:
    """With one block per stage, a stride of 1 only inserts cells."""
    encoder = make_encoder(*ENCODERS[kind][:2])
    dense = DenseFeatures(encoder, "s3", precision="32-true")
    x = random_image(96, 160, dense)
    with torch.no_grad():
        body = encoder.backbone.to(dense.device).eval()
        expected = body.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
    assert tuple(expected.shape[2:]) == (6, 10)
    torch.testing.assert_close(dense(x)[:, :, ::2, ::2], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("stage", ["s3", "s4"])
def test_maps_of_small_stems_are_pooled_to_a_stride_of_eight(stage: str, padding: int) -> None:
    encoder = make_encoder("resnet18", SMALL, image_size=32, stem_padding=padding)
    dense = DenseFeatures(encoder, stage, precision="32-true")
    assert (dense.stride, dense.channels) == (8, 8)
    x = random_image(36, 43, dense)
    net = encoder.backbone.to(dense.device).eval()
    with torch.no_grad():
        x3 = net.layer3(net.layer2(net.layer1(net.act1(net.bn1(net.conv1(x))))))
        unpooled = x3 if stage == "s3" else net.layer4(x3)
    features = dense(x)[0].cpu().double()
    assert tuple(features.shape[1:]) == (5, 6)
    unpooled = unpooled[0].cpu().double()
    side = 2 if stage == "s3" else 1
    for row in range(5):
        for column in range(6):
            cells = unpooled[:, side * row : side * (row + 1), side * column : side * (column + 1)]
            torch.testing.assert_close(features[:, row, column], cells.mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_transformer_stages_are_three_quarters_and_full_depth_with_final_norm() -> None:
    encoder = make_encoder("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 24, "dynamic_img_size": True})
    net = encoder.backbone.eval()
    for stage, blocks in (("s3", 3), ("s4", 4)):
        dense = DenseFeatures(encoder, stage, precision="32-true")
        x = random_image(224, 224, dense)
        with torch.no_grad():
            net.to(dense.device)
            tokens = net.norm(net.blocks[:blocks](net.norm_pre(net._pos_embed(net.patch_embed(x)))))
        expected = tokens[0, 1:].T.reshape(24, 14, 14)
        torch.testing.assert_close(dense(x)[0], expected, atol=1e-4, rtol=1e-4)
        net.cpu()


@pytest.mark.parametrize("kind", ["resnet50d", "average pooling", "vit", "swin"])
def test_encoder_is_not_modified(kind: str) -> None:
    encoder = make_encoder(*ENCODERS[kind][:2]).train()
    description = repr(encoder)
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    dense = DenseFeatures(encoder, "s3")
    first = dense(random_image(96, 96, dense))
    for parameter in dense.body.parameters():
        parameter.data.zero_()
    assert encoder.training
    assert repr(encoder) == description
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=0, rtol=0)
    again = DenseFeatures(encoder, "s3")
    torch.testing.assert_close(again(random_image(96, 96, again)), first, msg="the first call modified the encoder")


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_is_close_to_32_bits(precision: Precision) -> None:
    encoder = make_encoder("resnet18", {"channels": (8, 8, 16, 24)})
    full, mixed = DenseFeatures(encoder, precision="32-true"), DenseFeatures(encoder, precision=precision)
    expected, features = (dense(random_image(96, 160, dense)) for dense in (full, mixed))
    assert features.dtype == torch.float32
    assert 0 < (features - expected).norm() / expected.norm() < 0.02
    assert torch.cosine_similarity(features, expected, dim=1).min() > 0.99


def test_auto_precision_is_16_bits_on_gpus_only() -> None:
    dense = DenseFeatures(make_encoder("resnet18", SMALL))
    assert dense.precision == ("16-mixed" if dense.device.type == "cuda" else "32-true")


def test_frames_are_normalized() -> None:
    dense = DenseFeatures(make_encoder("resnet18", SMALL, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)))
    frame = np.zeros((5, 6, 3), np.uint8)
    frame[1, 2] = 255, 51, 102
    image = dense.preprocess(frame[:, ::-1])
    assert tuple(image.shape) == (1, 3, 5, 6)
    torch.testing.assert_close(image[0, :, 1, 3].cpu(), torch.tensor([1.0, -0.2, 0.4]))
    torch.testing.assert_close(image[0, :, 0, 0].cpu(), torch.tensor([-1.0, -1.0, 0.0]))


def test_frames_are_converted_to_grayscale_for_encoders_of_one_channel() -> None:
    dense = DenseFeatures(make_encoder("resnet18", SMALL, channels=1))
    frame = np.full((40, 50, 3), 51, np.uint8)
    frame[0, 0] = 0, 255, 0
    image = dense.preprocess(frame)
    assert tuple(image.shape) == (1, 1, 40, 50)
    assert image[0, 0, 3, 3].item() == pytest.approx((0.2 - 0.5) / 0.25)
    # green has the weight 0.587 in the luma of ITU-R 601
    assert image[0, 0, 0, 0].item() == pytest.approx((round(0.587 * 255) / 255 - 0.5) / 0.25, abs=1e-5)
    assert tuple(dense(image).shape) == (1, 8, 5, 7)


def test_time_in_the_network_is_measured() -> None:
    dense = DenseFeatures(make_encoder("resnet18", SMALL))
    assert dense.seconds == 0
    dense(random_image(64, 64, dense))
    after_one = dense.seconds
    dense(random_image(64, 64, dense))
    assert 0 < after_one < dense.seconds


def test_unsuitable_encoders_and_settings_are_rejected() -> None:
    with pytest.raises(InputError, match=r"^stage: expected s3 or s4, got 's5'$"):
        DenseFeatures("resnet18", "s5")
    with pytest.raises(InputError, match=r"^precision: expected one of auto, .*, got 'half'$"):
        DenseFeatures("resnet18", precision="half")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^encoder: expected 3 input channels.*, got resnet18 with 4$"):
        DenseFeatures(make_encoder("resnet18", SMALL, channels=4))
    unpadded = make_encoder("resnet18", SMALL)
    unpadded.backbone.conv1.padding, unpadded.backbone.maxpool.padding = (0, 0), 0
    with pytest.raises(InputError, match=r"^encoder: the feature maps of resnet18 do not cover the image borders$"):
        DenseFeatures(unpadded)


def test_digest_depends_on_the_weights_only() -> None:
    encoder = narrow_encoder()
    assert weights_digest(DenseFeatures(encoder)) != weights_digest(DenseFeatures(narrow_encoder(1)))
    assert weights_digest(DenseFeatures(encoder)) == weights_digest(DenseFeatures(narrow_encoder()))
    other_dtype = DenseFeatures(encoder)
    other_dtype.body.to(torch.bfloat16)
    assert weights_digest(other_dtype) != weights_digest(DenseFeatures(encoder))
