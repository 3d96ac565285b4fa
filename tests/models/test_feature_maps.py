import pytest
import torch
from torch import Tensor

from mec.errors import InputError
from mec.models.encoder import Encoder, create_encoder
from mec.models.feature_maps import PROBE_SIZE, probe_image, estimate_stride, extract_feature_maps, dynamic_size_backbone

TINY = {
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 24)},
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 24},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "efficientnet_lite0": {},
}
STRIDES = {
    "resnet18": [2, 4, 8, 16, 32],
    "vit_tiny_patch16_224": [16, 16, 16, 16],
    "convnext_atto": [4, 8, 16, 32],
    "swin_tiny_patch4_window7_224": [4, 8, 16, 32],
    "efficientnet_lite0": [2, 4, 8, 16, 32],
}


def encoder_of(backbone: str, **more: int) -> Encoder:
    torch.manual_seed(0)
    return create_encoder(backbone, options=TINY[backbone], **more).eval()


@pytest.mark.parametrize("backbone", TINY)
def test_images_of_any_size_and_the_encoders_own_maps(backbone: str) -> None:
    encoder = encoder_of(backbone)
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    body, maps = dynamic_size_backbone(encoder)
    assert [tuple(found.shape[2:]) for found in maps] == [(PROBE_SIZE[0] // s, PROBE_SIZE[1] // s) for s in STRIDES[backbone]]
    assert [estimate_stride(found) for found in maps] == STRIDES[backbone]
    with torch.no_grad():
        wide = extract_feature_maps(body, torch.zeros(1, 3, 96, 160), [len(maps) - 1], norm=True, stop_early=True)
        assert tuple(wide[0].shape[2:]) == (96 // STRIDES[backbone][-1], 160 // STRIDES[backbone][-1])
        # of the size that it was made for nothing is adapted
        x = torch.randn(2, 3, 224, 224)
        some, wanted = extract_feature_maps(body, x, [1, 3]), encoder.backbone.forward_intermediates(x, intermediates_only=True)
        for found, level in zip(some, (1, 3), strict=True):
            assert found.std() > 0
            torch.testing.assert_close(found, _by_channel(wanted[level], found))
        for parameter in body.parameters():
            parameter.zero_()
    assert encoder.state_dict().keys() == weights.keys()
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=f"{name} of the encoder given was changed")


def _by_channel(raw: Tensor, found: Tensor) -> Tensor:
    return raw if raw.shape == found.shape else raw.permute(0, 3, 1, 2)


def test_maps_are_what_the_stages_give_one_after_the_other() -> None:
    encoder = encoder_of("resnet18")
    net = encoder.backbone
    x = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        stem = net.act1(net.bn1(net.conv1(x)))
        first = net.layer1(net.maxpool(stem))
        second = net.layer2(first)
        found = extract_feature_maps(net, x, [2, 0])
        torch.testing.assert_close(found, [stem, second], msg="finest first, whatever the order asked for")


def test_cells_are_as_large_whatever_the_padding_at_the_borders() -> None:
    # of an image 448 wide: padding 2 of a small stem makes 450, 225, 113, 57; a patch of 14 divides it
    for columns, cell in [(448, 1), (450, 1), (225, 2), (113, 4), (57, 8), (32, 14), (28, 16), (14, 32), (7, 64)]:
        assert estimate_stride(torch.zeros(1, 1, 1, columns)) == cell


def test_a_blank_image_has_the_encoders_channels() -> None:
    encoder = encoder_of("resnet18", channels=1)
    assert tuple(probe_image(encoder).shape) == (1, 1, 224, 448)
    assert tuple(probe_image(encoder, 3).shape) == (1, 1, 227, 451)
    assert not probe_image(encoder).any()


def test_what_has_no_maps_of_any_size_is_refused_in_one_line() -> None:
    encoder = create_encoder("cait_xxs24_224", options={"depth": 1})
    with pytest.raises(InputError, match=r"^encoder: cait_xxs24_224 gives no feature maps of images of any size \(.+"):
        dynamic_size_backbone(encoder)
