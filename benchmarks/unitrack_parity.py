"""Do our trackers find what the original code (UniTrack) finds, frame by frame, and what do the corrections gain?

python benchmarks/unitrack_parity.py --data FOLDER --golden FOLDER [--out FOLDER]

FOLDER of data has OTB100 and davis16-subset, that of golden unitrack.json, the original's figures, and
resnet18_seed0.pth, the encoder they were computed with. What is in --out is not computed again.
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
from mec.evaluate.tracking.runner import METRICS, SETTINGS

TRACKERS = {"xcorr": "siamfc_cross_correlation", "dcf": "cfnet_dcf"}
SHORT = ("Couple", "Crossing", "Football1")
"""Targets on which the corrections are measured."""
PARTS = ("vos", "mot", "sot", "mot corrected", "sot corrected")


def main(data: str = "data", golden: str = "golden", out: str | None = None, parts: Sequence[str] = PARTS) -> None:
    """Run every tracker on the sequences that the original was run on.

    Args:
        data: folder with OTB100 and davis16-subset.
        golden: folder with unitrack.json and resnet18_seed0.pth.
        out: where tracks are kept, and found when this is called again.
        parts: of the comparison; the last call must have all.
    """
    known = json.loads((Path(golden) / "unitrack.json").read_text())
    encoder = Path(golden) / "resnet18_seed0.pth"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(out or temporary)
        found: dict[str, Any] = {}
        for part in parts:
            task, _, how = part.partition(" ")
            kept = folder / part.replace(" ", "-")
            options = {"out": kept, "resume": (kept / SETTINGS).exists()}
            if task == "vos":
                names = list(known["vos"]["sequences"])
                evaluate.vos(Path(data) / "davis16-subset", encoder, sequences=names, **options)
                found[part] = _masks(Path(data) / "davis16-subset" / "DAVIS", kept, known["vos"]["sequences"])
            elif task == "mot":
                videos = as_mot(Path(data) / "OTB100" / "Jogging", Path(temporary) / part)
                result = evaluate.mot(videos, encoder, detections="gt", corrected=bool(how), **options)
                columns = ("HOTA", "AssA", "IDF1", "MOTA", "ID switches")
                ours = json.loads((kept / METRICS).read_text())["metrics"]["Jogging"]
                theirs = known["mot"]["sequences"]["Jogging"] | {"ID switches": 0}
                found[part] = {"ours": {c: ours[c] for c in columns}, "overlap alone": result.values("overlap alone")}
                if not how:
                    found[part]["original"] = {c: theirs[c] for c in columns}
            else:
                names = list(known["sot"][TRACKERS["dcf"]]["sequences"])
                names = [name for name in names if not how or name in SHORT]
                evaluate.sot(
                    Path(data) / "OTB100", encoder, tracker="both", corrected=bool(how), sequences=names, **options
                )
                found[part] = _boxes(kept, known["sot"], names, bool(how))
            print(json.dumps(found[part], indent=2), flush=True)
        if list(parts) == list(PARTS):
            write("unitrack_parity", "our trackers against the original code, with the same encoder", **found)


def _masks(davis: Path, kept: Path, known: dict[str, Any]) -> dict[str, Any]:
    """J of every frame, computed here from the files: overlap of what is no background, first and last left out."""
    rows = {}
    for name, theirs in known.items():
        overlaps = []
        for truth in sorted((davis / "Annotations" / "480p" / name).glob("*.png"))[1:-1]:
            is_there = np.asarray(Image.open(truth)) > 0
            is_found = np.asarray(Image.open(kept / "tracks" / name / truth.name)) > 0
            overlaps.append((is_there & is_found).sum() / max(1, (is_there | is_found).sum()))
        away = np.abs(np.array(overlaps) - theirs["J_per_frame"])
        rows[name] = {
            "J mean": round(float(np.mean(overlaps)), 4),
            "original J mean": theirs["J_mean"],
            "largest difference of a frame": round(float(away.max()), 4),
        }
    return rows


def _boxes(kept: Path, known: dict[str, Any], names: list[str], corrected: bool) -> dict[str, Any]:
    metrics = json.loads((kept / METRICS).read_text())["metrics"]
    rows = {}
    for tracker, theirs in TRACKERS.items():
        for name in names:
            ours, original = metrics[f"{tracker} {name}"], known[theirs]["sequences"][name]
            rows[f"{tracker} {name}"] = {
                "AUC": round(ours["AUC"], 4), "original AUC": original["success_auc"],
                "precision": round(ours["precision"], 4), "original precision": original["precision_20px"],
            }  # fmt: skip
        mean = {
            column: round(float(np.mean([rows[f"{tracker} {n}"][column] for n in names])), 4)
            for column in rows[f"{tracker} {names[0]}"]
        }
        rows[f"{tracker} mean"] = mean
    return rows


def as_mot(sequence: Path, folder: Path) -> Path:
    """An OTB sequence with several targets in MOTChallenge's form, below ``folder``."""
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
