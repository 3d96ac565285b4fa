"""What was found out about an encoder, kept in its run folder until the encoder changes."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mec.files import atomic_write
from mec.models.io import SPEC_FILE
from mec.report.inputs import Weights
from mec.report.schema import EmbeddedImage, Learned, Neighbors, Sprites

FORM = 1
"""Of the file; another makes all anew."""
ARRAYS = ("points", "clusters", "singular_values")


def key_of(weights: Weights, source: str, most: int) -> str:
    """Of all that decides what is found out."""
    digest = hashlib.sha256(json.dumps([FORM, weights.words, source, most]).encode())
    with weights.file.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    spec = weights.file.with_name(SPEC_FILE)
    digest.update(spec.read_bytes() if spec.exists() else b"")
    return digest.hexdigest()[:32]


def kept(run: Path, key: str) -> Learned | None:
    """None where there is none, or none that is whole."""
    try:
        with np.load(_path(run, key)) as file:
            arrays = {name: file[name] for name in ARRAYS}
            words = json.loads(file["words"].tobytes())
        found = Learned(
            **arrays,
            **words
            | {"sprites": Sprites(**words["sprites"]), "neighbors": [_neighbors(row) for row in words["neighbors"]]},
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return found if len({len(found.points), len(found.titles), len(found.clusters)}) == 1 else None


def keep(run: Path, key: str, found: Learned) -> None:
    """In place of what was kept before. A folder that cannot be written to is left as it is."""
    words = {name: value for name, value in asdict(found).items() if name not in ARRAYS}
    text = np.frombuffer(json.dumps(words).encode(), np.uint8)
    path = _path(run, key)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, words=text, **{name: getattr(found, name) for name in ARRAYS})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        for old in set(path.parent.glob("learned-*.npz")) - {path}:
            old.unlink(missing_ok=True)
    except OSError:
        pass


def _path(run: Path, key: str) -> Path:
    return run / "report" / f"learned-{key}.npz"


def _neighbors(row: dict[str, Any]) -> Neighbors:
    return Neighbors(
        EmbeddedImage(**row["query"]), [(float(cosine), EmbeddedImage(**one)) for cosine, one in row["found"]]
    )
