"""Write images of several sizes and formats, make a small encoder, read an embedding file."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mec.models.encoder import create_encoder
from mec.models.io import untrained

SIZES = [(60, 40), (40, 60), (64, 64), (90, 45), (33, 70)]


def encoder(size: int = 32) -> Any:
    return untrained(create_encoder("test_resnet", size))


def photographs(folder: Path, count: int, classes: int = 3) -> Path:
    """Write smooth images of several sizes and formats into sub-folders, one per class."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number:04}{('.png', '.jpg')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).save(path)
    return folder


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Return paths and embeddings of a .parquet."""
    table = pq.read_table(path)
    return table["path"].to_pylist(), np.stack(table["embedding"].to_numpy())
