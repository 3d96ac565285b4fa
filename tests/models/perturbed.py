"""Small encoders whose weights differ from their initial values, and their features computed without mec."""

import torch
from torch import Tensor

from mec.models import Encoder, create_encoder

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}
SHALLOW = {"depth": 2}


def perturbed_encoder(*arguments, **settings) -> Encoder:
    """Create an encoder and perturb every weight and BatchNorm statistic, as training would."""
    torch.manual_seed(0)
    encoder = create_encoder(*arguments, **settings).eval()
    with torch.no_grad():
        for key, tensor in encoder.backbone.state_dict().items():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.2 * torch.rand_like(tensor)).add_(0.02 * torch.rand_like(tensor))
            if key.endswith("bn2.weight"):
                tensor.fill_(0.5)
    return encoder


@torch.inference_mode()
def reference_features(encoder: Encoder, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (encoder.spec.mean, encoder.spec.std))
    return encoder.backbone((images - mean) / std)


def random_images(encoder: Encoder, n: int = 2) -> Tensor:
    return torch.rand(n, encoder.spec.channels, encoder.image_size, encoder.image_size)


def is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-5 * b.abs().max()) and bool(b.std(dim=0).max() > 0)
