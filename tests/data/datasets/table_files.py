"""Write tables of small images and their classes, as parquet files and as Hugging Face datasets."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.datasets.shard_files import encode_image

TOTAL = 11


IMAGES = [encode_image(i, "png", side=20 + i) for i in range(TOTAL)]
CLASS_NAMES = [("bee", "ant", "cat")[i % 3] for i in range(TOTAL)]


def hub_dataset(rows: range = range(TOTAL), names: tuple[str, ...] = ("ant", "bee", "cat")) -> datasets.Dataset:
    """Return a dataset with the features that datasets on the Hugging Face hub have."""
    columns = {
        "id": list(rows),
        "label": [names.index(CLASS_NAMES[i]) for i in rows],
        "photo": [{"bytes": IMAGES[i], "path": None} for i in rows],
    }
    features = {
        "id": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=list(names)),
        "photo": datasets.Image(),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_parquet(path: Path, rows: range = range(TOTAL)) -> Path:
    """Write a parquet file of bytes and strings, without the metadata of Hugging Face features."""
    table = pa.table({"image": [IMAGES[i] for i in rows], "label": [CLASS_NAMES[i] for i in rows]})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path
