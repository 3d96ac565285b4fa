"""Cache the feature analysis in the run folder until the encoder, the data or the number of images changes."""

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
from mec.report.schema import EmbeddedImage, FeatureAnalysis, NearestNeighbors, SpriteSheet

FORMAT_VERSION = 1
"""Part of the key, so that files of another version are ignored."""
ARRAYS = ("points", "clusters", "singular_values")


def cache_key(weights: Weights, data: str, max_images: int) -> str:
    """Return a hash of everything that the analysis depends on."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, weights.description, data, max_images]).encode())
    with weights.file.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    spec = weights.file.with_name(SPEC_FILE)
    digest.update(spec.read_bytes() if spec.exists() else b"")
    return digest.hexdigest()[:32]


def load_analysis(run: Path, key: str) -> FeatureAnalysis | None:
    """Read the cached analysis. Return None if there is none, or if its file is damaged."""
    try:
        with np.load(_path(run, key)) as file:
            arrays = {name: file[name] for name in ARRAYS}
            fields = json.loads(file["fields"].tobytes())
        fields["sprites"] = SpriteSheet(**fields["sprites"])
        fields["neighbors"] = [_nearest_neighbors(row) for row in fields["neighbors"]]
        analysis = FeatureAnalysis(**arrays, **fields)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    lengths = {len(analysis.points), len(analysis.titles), len(analysis.clusters)}
    return analysis if len(lengths) == 1 else None


def save_analysis(run: Path, key: str, analysis: FeatureAnalysis) -> None:
    """Replace the cached analysis. Do nothing if the run folder is not writable."""
    fields = {name: value for name, value in asdict(analysis).items() if name not in ARRAYS}
    encoded = np.frombuffer(json.dumps(fields).encode(), np.uint8)
    path = _path(run, key)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, fields=encoded, **{name: getattr(analysis, name) for name in ARRAYS})
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        for outdated in set(path.parent.glob("features-*.npz")) - {path}:
            outdated.unlink(missing_ok=True)
    except OSError:
        pass


def _path(run: Path, key: str) -> Path:
    return run / "report" / f"features-{key}.npz"


def _nearest_neighbors(row: dict[str, Any]) -> NearestNeighbors:
    neighbors = [(float(cosine), EmbeddedImage(**image)) for cosine, image in row["neighbors"]]
    return NearestNeighbors(EmbeddedImage(**row["query"]), neighbors)
