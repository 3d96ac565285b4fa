"""Run folders of an untrained encoder, without a minute of training."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from mec.models.encoder import Encoder, create_encoder
from mec.models.foreign_checkpoints import MEC_BACKBONE_PREFIX
from mec.models.io import save_encoder
from mec.pretraining import Recipe
from mec.report.schema import EmbeddedImage, Sprites

NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32], "stem_type": "deep", "stem_width": 8}


def narrow(seed: int = 0, side: int = 32, channels: int = 3, **options: Any) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_encoder("resnet18", side, channels, options=NARROW, **options)


def make_run(folder: Path, data: Any, encoder: Encoder | None = None, **settings: Any) -> Path:
    encoder = encoder or narrow()
    save_encoder(encoder, folder)
    (folder / "environment.json").write_text(json.dumps({"data": str(data)}))
    recipe = Recipe(**{"image_size": encoder.image_size, **settings})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    return folder


def checkpoint(folder: Path, encoder: Encoder, step: int) -> Path:
    """As training keeps it: the checksum in its name."""
    state = {f"{MEC_BACKBONE_PREFIX}{name}": tensor for name, tensor in encoder.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    path = folder / "checkpoints" / f"step={step:09d}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def noisy(seed: int, height: int = 40, width: int = 40, channels: int = 3) -> np.ndarray:
    """A smooth random image, which compression leaves nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height))) for c in range(channels)]
    return np.stack(planes, axis=-1)


def write_images(folder: Path, classes: int, each: int) -> Path:
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(noisy(100 * c + i)).save(folder / f"class{c}" / f"{i}.png")
    return folder


def decoded(one: EmbeddedImage | Sprites) -> np.ndarray:
    form, _, content = one.source.partition(",")
    assert form == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(float)


def cell(sprites: Sprites, number: int) -> np.ndarray:
    row, column = divmod(number, sprites.columns)
    side = sprites.cell
    return decoded(sprites)[row * side : (row + 1) * side, column * side : (column + 1) * side]


def silent(line: str) -> None:
    pass
