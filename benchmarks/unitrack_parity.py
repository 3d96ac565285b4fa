"""Do the trackers agree with the original code (UniTrack) frame by frame, and what do the corrections gain?

python benchmarks/unitrack_parity.py --data FOLDER --encoder FILE [--out FOLDER]

The folder of --data has OTB100 and davis16-subset. The metrics of the original code are in tests/golden/unitrack.json;
--encoder is resnet18_seed0.pth, the encoder that they were computed with. Tracks that exist in --out are not computed
again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from machine import write
from mec import evaluate
from mec.engine.run_folder import SETTINGS_FILE
from mec.evaluate.tracking.runner import METRICS

ORIGINAL = Path(__file__).parents[1] / "tests" / "golden" / "unitrack.json"
TRACKERS = {"xcorr": "siamfc_cross_correlation", "dcf": "cfnet_dcf"}
CORRECTED_TARGETS = ("Couple", "Crossing", "Football1")
"""Targets for the measurement of the corrections."""
COMPARISONS = ("vos", "mot", "sot", "mot corrected", "sot corrected")


def main(
    data: str = "data",
    encoder: str = "resnet18_seed0.pth",
    out: str | None = None,
    comparisons: Sequence[str] = COMPARISONS,
) -> None:
    """Run every tracker on the sequences in unitrack.json.

    Args:
        data: folder with OTB100 and davis16-subset.
        encoder: the encoder of the original run.
        out: folder for the tracks, which a later call reuses; null: a temporary folder.
        comparisons: comparisons to run; results are written if all are run.
    """
    original = json.loads(ORIGINAL.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out or temporary)
        results: dict[str, Any] = {}
        for comparison in comparisons:
            task, _, corrected = comparison.partition(" ")
            tracks_folder = folder / comparison.replace(" ", "-")
            options = {"out": tracks_folder, "resume": (tracks_folder / SETTINGS_FILE).exists()}
            if task == "vos":
                names = list(original["vos"]["sequences"])
                evaluate.vos(Path(data) / "davis16-subset", encoder, sequences=names, **options)
                results[comparison] = _masks(
                    Path(data) / "davis16-subset" / "DAVIS", tracks_folder, original["vos"]["sequences"]
                )
            elif task == "mot":
                videos = as_mot(Path(data) / "OTB100" / "Jogging", Path(temporary) / comparison)
                result = evaluate.mot(videos, encoder, detections="gt", corrected=bool(corrected), **options)
                columns = ("HOTA", "AssA", "IDF1", "MOTA", "ID switches")
                tracked = json.loads((tracks_folder / METRICS).read_text())["metrics"]["Jogging"]
                reference = original["mot"]["sequences"]["Jogging"] | {"ID switches": 0}
                results[comparison] = {
                    "mec": {c: tracked[c] for c in columns},
                    "overlap alone": result.values("overlap alone"),
                }
                if not corrected:
                    results[comparison]["original"] = {c: reference[c] for c in columns}
            else:
                names = list(original["sot"][TRACKERS["dcf"]]["sequences"])
                names = [name for name in names if not corrected or name in CORRECTED_TARGETS]
                evaluate.sot(
                    Path(data) / "OTB100",
                    encoder,
                    tracker="both",
                    corrected=bool(corrected),
                    sequences=names,
                    **options,
                )
                results[comparison] = _boxes(tracks_folder, original["sot"], names, bool(corrected))
            print(json.dumps(results[comparison], indent=2), flush=True)
        if list(comparisons) == list(COMPARISONS):
            write("unitrack_parity", "trackers compared with the original code, with the same encoder", **results)


def _masks(davis: Path, tracks_folder: Path, original: dict[str, Any]) -> dict[str, Any]:
    """Compare J of every frame except the first and the last: the IoU of the foreground, computed from the files."""
    rows = {}
    for name, reference in original.items():
        overlaps = []
        for annotation in sorted((davis / "Annotations" / "480p" / name).glob("*.png"))[1:-1]:
            truth = np.asarray(Image.open(annotation)) > 0
            predicted = np.asarray(Image.open(tracks_folder / "tracks" / name / annotation.name)) > 0
            overlaps.append((truth & predicted).sum() / max(1, (truth | predicted).sum()))
        differences = np.abs(np.array(overlaps) - reference["J_per_frame"])
        rows[name] = {
            "J mean": round(float(np.mean(overlaps)), 4),
            "original J mean": reference["J_mean"],
            "max difference per frame": round(float(differences.max()), 4),
        }
    return rows


def _boxes(tracks_folder: Path, original: dict[str, Any], names: list[str], corrected: bool) -> dict[str, Any]:
    metrics = json.loads((tracks_folder / METRICS).read_text())["metrics"]
    rows = {}
    for tracker, original_tracker in TRACKERS.items():
        for name in names:
            tracked, reference = metrics[f"{tracker} {name}"], original[original_tracker]["sequences"][name]
            rows[f"{tracker} {name}"] = {
                "AUC": round(tracked["AUC"], 4), "original AUC": reference["success_auc"],
                "precision": round(tracked["precision"], 4), "original precision": reference["precision_20px"],
            }  # fmt: skip
        mean = {
            column: round(float(np.mean([rows[f"{tracker} {n}"][column] for n in names])), 4)
            for column in rows[f"{tracker} {names[0]}"]
        }
        rows[f"{tracker} mean"] = mean
    return rows


def as_mot(sequence: Path, folder: Path) -> Path:
    """Write an OTB sequence of several targets in MOTChallenge's format to ``folder``, and return it."""
    video = folder / sequence.name
    (video / "img1").mkdir(parents=True)
    (video / "gt").mkdir()
    for number, image in enumerate(sorted((sequence / "img").glob("*.jpg")), 1):
        shutil.copyfile(image, video / "img1" / f"{number:06}.jpg")
    rows = []
    for target, file in enumerate(sorted(sequence.glob("groundtruth_rect.[0-9].txt")), 1):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            rows.append((number, target, *re.split(r"[\s,]+", line.strip()), 1, 1, 1))
    lines = [",".join(map(str, row)) for row in sorted(rows, key=lambda row: row[:2])]
    (video / "gt" / "gt.txt").write_text("\n".join(lines) + "\n")
    return folder


if __name__ == "__main__":
    auto_cli(main)
