"""Networks of torchvision and timm, and state dicts as other projects save them."""

import itertools
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from mec.models import Encoder

StateDict = dict[str, Tensor]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomize all weights, biases and BatchNorm statistics, and switch to evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.ndim > 1 and tensor.is_floating_point():
            tensor.data.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.data.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    return model.eval()


def resnet(name: str = "resnet18", seed: int = 0, small_stem: bool = False) -> Any:
    """Create torchvision's ResNet without its classifier."""
    model: Any = getattr(torchvision.models, name)()
    model.fc = nn.Identity()
    if small_stem:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return randomize(model, seed)


def vit(name: str = "vit_tiny_patch16_224", seed: int = 0, **options: Any) -> Any:
    return randomize(timm.create_model(name, num_classes=0, **options), seed)


def prefixed(prefix: str, module: nn.Module) -> StateDict:
    return {prefix + key: tensor for key, tensor in module.state_dict().items()}


def mlp(*widths: int, bias: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def assert_same_features(encoder: Encoder, original: nn.Module, size: int | None = None) -> None:
    size = size or encoder.image_size
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = original(x).flatten(1)
        torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not encoder.training
    assert not encoder.untrained


def save_checkpoint(tmp_path: Path, content: Any, name: str = "checkpoint.pth.tar") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name
