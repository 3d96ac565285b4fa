"""Run folders with an untrained encoder, so that no training is needed."""

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
from mec.report.schema import EmbeddedImage, SpriteSheet

NARROW_RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32], "stem_type": "deep", "stem_width": 8}


def narrow_encoder(seed: int = 0, image_size: int = 32, channels: int = 3, **options: Any) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_encoder("resnet18", image_size, channels, options=NARROW_RESNET, **options)


def make_run(folder: Path, data: Any, encoder: Encoder | None = None, **settings: Any) -> Path:
    encoder = encoder or narrow_encoder()
    save_encoder(encoder, folder)
    (folder / "environment.json").write_text(json.dumps({"data": str(data)}))
    recipe = Recipe(**{"image_size": encoder.image_size, **settings})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    return folder


def write_checkpoint(folder: Path, encoder: Encoder, step: int) -> Path:
    """Write a checkpoint named as training does, with its checksum."""
    state = {f"{MEC_BACKBONE_PREFIX}{name}": tensor for name, tensor in encoder.backbone.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    path = folder / "checkpoints" / f"step={step:09d}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def smooth_noise(seed: int, height: int = 40, width: int = 40, channels: int = 3) -> np.ndarray:
    """A smooth random image, which lossy compression barely changes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, channels), dtype=np.uint8)
    planes = [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height))) for c in range(channels)]
    return np.stack(planes, axis=-1)


def write_images(folder: Path, classes: int, images_per_class: int) -> Path:
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(images_per_class):
            Image.fromarray(smooth_noise(100 * c + i)).save(folder / f"class{c}" / f"{i}.png")
    return folder


def decode(embedded: EmbeddedImage | SpriteSheet) -> np.ndarray:
    header, _, content = embedded.uri.partition(",")
    assert header == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(float)


def thumbnail(sprites: SpriteSheet, index: int) -> np.ndarray:
    row, column = divmod(index, sprites.columns)
    side = sprites.cell_size
    return decode(sprites)[row * side : (row + 1) * side, column * side : (column + 1) * side]


def no_log(message: str) -> None:
    pass
