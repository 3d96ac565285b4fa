"""Tables of small images and their classes, as parquet files and as data sets of the Hugging Face hub."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TOTAL = 11


def image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


IMAGES = [image(i) for i in range(TOTAL)]
SPECIES = [("bee", "ant", "cat")[i % 3] for i in range(TOTAL)]


def data_set(rows: range = range(TOTAL), names: tuple[str, ...] = ("ant", "bee", "cat")) -> datasets.Dataset:
    """As the Hugging Face hub has them."""
    columns = {
        "id": list(rows),
        "label": [names.index(SPECIES[i]) for i in rows],
        "photo": [{"bytes": IMAGES[i], "path": None} for i in rows],
    }
    features = {
        "id": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=list(names)),
        "photo": datasets.Image(),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_plain(path: Path, rows: range = range(TOTAL), image: str = "image", label: str = "label") -> Path:
    table = pa.table({image: [IMAGES[i] for i in rows], label: [SPECIES[i] for i in rows]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path
