"""Reading and writing encoders: ``encoder.safetensors`` and beside it ``encoder.json``, enough to build it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mec.errors import InputError
from mec.files import replacing
from mec.models.encoder import Encoder, EncoderSpec, create_encoder

WEIGHTS = "encoder.safetensors"
SPEC = "encoder.json"


def save_encoder(encoder: Encoder, folder: str | os.PathLike[str]) -> Path:
    """Write the encoder into ``folder``, each file whole or not at all. Returns the path of the weights."""
    folder = Path(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    with replacing(folder / SPEC) as path:
        path.write_text(json.dumps(encoder.spec.as_dict(), indent=2) + "\n")
    with replacing(folder / WEIGHTS) as path:
        save_file(weights, path, metadata={"format": "pt"})
    return folder / WEIGHTS


def load_encoder(source: str | os.PathLike[str]) -> Encoder:
    """An encoder, in evaluation mode, from a run folder, an encoder.safetensors, or a timm name.

    A timm name gives the untrained architecture with seeded weights (its ``untrained`` is then true).

    Raises:
        InputError: nothing there, not an encoder, or weights that do not fill the architecture.
    """
    path = Path(source)
    if path.is_dir():
        path = path / WEIGHTS
        if not path.exists():
            raise InputError(f"encoder: {path.parent} has no {WEIGHTS}; it is written when a run ends")
    if path.exists():
        return _read(path)
    name = str(source)
    if os.sep in name or path.suffix:
        raise InputError(f"encoder: {name} does not exist")
    if not timm.is_model(name):
        raise InputError(f"encoder: {name!r} is neither a run folder, a file nor a timm architecture")
    published = timm.models.get_pretrained_cfg(name)
    return untrained(create_encoder(name, image_size=published.input_size[-1] if published else 224))


def untrained(encoder: Encoder, seed: int = 0) -> Encoder:
    """The same architecture with fresh weights from ``seed``: the baseline that a trained one is measured against."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = Encoder(encoder.spec)
    fresh.untrained = True
    return fresh.eval()


def _read(path: Path) -> Encoder:
    spec_path = path.with_name(SPEC) if path.name == WEIGHTS else path.with_suffix(".json")
    try:
        fields: dict[str, Any] = json.loads(spec_path.read_text())
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        spec = EncoderSpec(**fields | lists)
        weights = load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"encoder: {path} has no {spec_path.name} beside it") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"encoder: {spec_path} does not describe an encoder ({error})") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"encoder: {path} cannot be read as safetensors ({error})") from error
    encoder = Encoder(spec)
    try:
        encoder.backbone.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise InputError(f"encoder: {path} does not fit {spec.backbone} ({reason})") from error
    return encoder.eval()
