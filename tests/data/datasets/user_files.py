"""Files as users have them, for tests of how they are read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from mec.data import open_dataset

JPEG = io.BytesIO()
Image.new("RGB", (8, 6), "red").save(JPEG, "jpeg")


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG.getvalue())


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def labels_of(path: Path, split: str = "all", labels_csv: Path | None = None) -> dict[str, str | None]:
    dataset = open_dataset(path, split, labels_csv)
    assert dataset.labels is not None, dataset.layout
    return {name: dataset.classes[i] if i >= 0 else None for name, i in zip(dataset.names, dataset.labels, strict=True)}
