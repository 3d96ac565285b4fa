import pytest
import timm
import torch
from torch import Tensor, nn

from mec.errors import InputError
from mec.models import create_encoder, untrained
from mec.models.encoder import (
    PROBE_SIZE,
    Encoder,
    dynamic_size_backbone,
    estimate_stride,
    extract_feature_maps,
    probe_image,
)

TINY = {
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24)},
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 24},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "efficientnet_lite0": {},
    "compact_resnet": {"width_factor": 0.125},
}
STRIDES = {
    "resnet18": [2, 4, 8, 16, 32],
    "vit_tiny_patch16_224": [16, 16, 16, 16],
    "convnext_atto": [4, 8, 16, 32],
    "swin_tiny_patch4_window7_224": [4, 8, 16, 32],
    "efficientnet_lite0": [2, 4, 8, 16, 32],
    "compact_resnet": [2, 4, 8],
}


def tiny_encoder(backbone: str, channels: int = 3) -> Encoder:
    torch.manual_seed(0)
    return create_encoder(backbone, channels=channels, options=TINY[backbone]).eval()


@pytest.mark.parametrize(
    ("backbone", "size", "channels"),
    [
        ("resnet18", 32, 3),
        ("resnet18", 224, 3),
        ("resnet26d", 64, 5),
        ("vit_tiny_patch16_224", 32, 3),
        ("vit_tiny_patch16_224", 112, 1),
        ("convnext_atto", 64, 3),
        ("efficientnet_lite0", 64, 4),
        ("mobilenetv3_small_050", 96, 2),
        ("compact_resnet", 24, 1),
    ],
)
def test_any_timm_architecture_returns_pooled_features(backbone: str, size: int, channels: int) -> None:
    encoder = create_encoder(backbone, size, channels).eval()
    x = encoder.normalize(torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8))
    with torch.no_grad():
        assert encoder(x).shape == (2, encoder.num_features)


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_compact_resnet_gives_feature_maps_as_other_networks_of_timm(stride: int) -> None:
    network = timm.create_model("compact_resnet", features_only=True, width_factor=0.125, stem_stride=stride)
    reductions = [stride, 2 * stride, 4 * stride]
    assert network.feature_info.reduction() == reductions
    maps = network(torch.zeros(1, 3, 64, 64))
    assert [x.shape for x in maps] == [(1, c, 64 // r, 64 // r) for c, r in zip((8, 16, 32), reductions, strict=True)]


def test_small_stem_depends_on_the_image_size_and_can_be_overridden() -> None:
    small, large = create_encoder("resnet18", 32).backbone, create_encoder("resnet18", 96).backbone
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.stride == (2, 2)
    assert create_encoder("resnet18", 32, small_stem=False).backbone.conv1.stride == (2, 2)
    assert create_encoder("resnet18", 224, small_stem=True).backbone.conv1.stride == (1, 1)
    assert create_encoder("vit_tiny_patch16_224", 32).backbone.patch_embed.patch_size == (4, 4)
    x = small.maxpool(small.act1(small.bn1(small.conv1(torch.randn(1, 3, 32, 32)))))
    assert x.shape[2:] == (32, 32)  # the small stem preserves the resolution
    assert small.layer1(x).shape[2:] == (32, 32)


def test_residual_branches_are_zero_initialized() -> None:
    encoder = create_encoder("resnet18", 32)
    weights = [m.bn2.weight for m in encoder.backbone.modules() if type(m).__name__ == "BasicBlock"]
    assert len(weights) == 8
    assert all((weight == 0).all() for weight in weights)


def test_normalize_accepts_uint8_and_float_images() -> None:
    encoder = create_encoder("resnet18", 32, channels=1, mean=[0.2], std=[0.5])
    white = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    assert torch.allclose(encoder.normalize(white), torch.full((1, 1, 32, 32), 1.6))
    assert torch.allclose(encoder.normalize(white / 255), encoder.normalize(white))


def test_untrained_is_seeded_and_preserves_the_global_random_state() -> None:
    encoder = create_encoder("resnet18", 32)
    state = torch.get_rng_state()
    a, b, c = untrained(encoder), untrained(encoder), untrained(encoder, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.backbone.conv1.weight, b.backbone.conv1.weight)
    assert not torch.equal(a.backbone.conv1.weight, c.backbone.conv1.weight)
    assert a.untrained
    assert not encoder.untrained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, "backbone: .*resnet19.*resnet18"),
        ({"backbone": "resnet18", "image_size": 4}, "image_size: .*at least 8.*4"),
        ({"backbone": "resnet18", "channels": 0}, "channels: .*at least 1.*0"),
        ({"backbone": "resnet18", "mean": [0.5]}, "mean, std: expected 3"),
        ({"backbone": "convnext_atto", "small_stem": True}, "small_stem: .*convnext_atto"),
        ({"backbone": "resnet18", "options": {"nonsense": 1}}, "backbone: .*nonsense"),
    ],
)
def test_invalid_arguments_are_named_in_the_error(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_encoder(**arguments)


@pytest.mark.parametrize("backbone", TINY)
def test_dynamic_size_backbone_has_the_encoders_maps_and_leaves_the_encoder_unchanged(backbone: str) -> None:
    encoder = tiny_encoder(backbone)
    weights = {key: value.clone() for key, value in encoder.state_dict().items()}
    dynamic, maps = dynamic_size_backbone(encoder)
    sizes = [(PROBE_SIZE[0] // stride, PROBE_SIZE[1] // stride) for stride in STRIDES[backbone]]
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == sizes
    assert [estimate_stride(feature_map) for feature_map in maps] == STRIDES[backbone]
    with torch.no_grad():
        images = torch.zeros(1, 3, 96, 160)
        (last,) = extract_feature_maps(dynamic, images, [len(maps) - 1], norm=True, stop_early=True)
        assert tuple(last.shape[2:]) == (96 // STRIDES[backbone][-1], 160 // STRIDES[backbone][-1])
        # at the encoder's own image size, position embeddings are not interpolated
        x = torch.randn(2, 3, 224, 224)
        expected = encoder.backbone.forward_intermediates(x, intermediates_only=True)
        for index, feature_map in zip((0, 2), extract_feature_maps(dynamic, x, [0, 2]), strict=True):
            assert feature_map.std() > 0
            torch.testing.assert_close(feature_map, _channels_first(expected[index], feature_map))
        for parameter in dynamic.parameters():
            parameter.zero_()
    assert encoder.state_dict().keys() == weights.keys()
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, weights[key], msg=f"{key} of the encoder was changed")


def _channels_first(x: Tensor, like: Tensor) -> Tensor:
    return x if x.shape == like.shape else x.permute(0, 3, 1, 2)


def test_feature_maps_are_the_outputs_of_the_stages() -> None:
    encoder = tiny_encoder("resnet18")
    net = encoder.backbone
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        stem = net.act1(net.bn1(net.conv1(x)))
        layer1 = net.layer1(net.maxpool(stem))
        layer2 = net.layer2(layer1)
        maps = extract_feature_maps(net, x, [2, 0])
        torch.testing.assert_close(maps, [stem, layer2], msg="maps come finest first, in any order of indices")


def test_estimated_stride_ignores_padding_at_the_borders() -> None:
    # of an image 448 wide: padding 2 of a small stem gives 450, 225, 113, 57; a patch of 14 divides it
    for width, stride in [(448, 1), (450, 1), (225, 2), (113, 4), (57, 8), (32, 14), (28, 16), (14, 32), (7, 64)]:
        assert estimate_stride(torch.zeros(1, 1, 1, width)) == stride


def test_probe_image_has_the_encoders_channels() -> None:
    encoder = tiny_encoder("resnet18", channels=1)
    assert tuple(probe_image(encoder).shape) == (1, 1, 224, 448)
    assert tuple(probe_image(encoder, 3).shape) == (1, 1, 227, 451)
    assert not probe_image(encoder).any()


def test_backbones_without_dynamic_size_raise_a_one_line_error() -> None:
    encoder = create_encoder("cait_xxs24_224", options={"depth": 1})
    with pytest.raises(InputError, match=r"^encoder: cait_xxs24_224 has no feature maps for images of any size \(.+"):
        dynamic_size_backbone(encoder)
