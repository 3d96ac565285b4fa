"""A classifier of features: what turns an encoder into a model from images to class probabilities."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mec.errors import InputError
from mec.files import atomic_write

METADATA = "mec_classifier"


class ClassifierHead(nn.Module):
    """Features (n, d) -> probabilities of classes (n, k), which sum to 1: softmax of linear scores over a temperature.

    Args:
        classes: names of the k classes.
        weight: (d, k).
        bias: (k,).
        center: (d,), subtracted from the features, which are then scaled to length 1; None: they are taken as they are.
        temperature: divides the scores.
        encoder: a digest of the weights of the encoder whose features it classifies.
    """

    weight: Tensor
    bias: Tensor
    center: Tensor | None

    def __init__(
        self,
        classes: Sequence[str],
        weight: Tensor,
        bias: Tensor,
        center: Tensor | None = None,
        temperature: float = 1.0,
        encoder: str = "",
    ) -> None:
        super().__init__()
        self.classes, self.temperature, self.encoder = list(classes), temperature, encoder
        self.register_buffer("weight", weight.detach().float().contiguous())
        self.register_buffer("bias", bias.detach().float().contiguous())
        self.register_buffer("center", None if center is None else center.detach().float().contiguous())

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores (n, k) of features (n, d)."""
        if self.center is not None:
            features = F.normalize(features - self.center, dim=1)
        return features @ self.weight + self.bias

    def forward(self, features: Tensor) -> Tensor:
        return (self.scores(features) / self.temperature).softmax(dim=1)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the head as FILE.safetensors, atomically."""
        tensors = {name: tensor.cpu() for name, tensor in self.state_dict().items()}
        description = {"classes": self.classes, "temperature": self.temperature, "encoder": self.encoder}
        with atomic_write(Path(file)) as path:
            path.write_bytes(save(tensors, metadata={METADATA: json.dumps(description)}))


def load_head(file: str | os.PathLike[str]) -> ClassifierHead:
    """Load a head that ``ClassifierHead.save`` wrote.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"head: expected a file that mec classify --save wrote, got {path}, which does not exist")
    try:
        with safe_open(path, "pt") as opened:
            description = json.loads((opened.metadata() or {})[METADATA])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dictionary
        return ClassifierHead(
            description["classes"],
            tensors["weight"],
            tensors["bias"],
            tensors.get("center"),
            float(description["temperature"]),
            description["encoder"],
        )
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(f"head: expected a file that mec classify --save wrote, got {path} ({error})") from error


def weights_digest(encoder: nn.Module) -> str:
    """Return a digest of the weights of an encoder, by which a head recognizes the encoder that it was fitted to."""
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
