import pytest
import torch
from torch import nn

from mec.errors import InputError
from mec.models import create_encoder, untrained


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
    ],
)
def test_any_timm_architecture_returns_pooled_features(backbone: str, size: int, channels: int) -> None:
    encoder = create_encoder(backbone, size, channels).eval()
    x = encoder.normalize(torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8))
    with torch.no_grad():
        assert encoder(x).shape == (2, encoder.num_features)


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
