"""Do trackers keep identities through crossings and occlusions? Scenes with exact ground truth.

python benchmarks/tracking_scenes.py [--data FOLDER] [--run RUN] [--image docs/images/tracking.jpg]

Cutouts of photographs move over a background, occlude each other fully, pass behind a pole, leave and come back: 40
frames, 4 objects. "garden" is made of scikit-learn's two photographs; "street" and "clock" need coco128 in FOLDER.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.evaluate.tracking.scene_files import write_mot, write_mots, write_posetrack
from tests.evaluate.tracking.scenes import Scene, garden, street

from image_grid import image_grid
from machine import write
from mec import evaluate
from mec.evaluate.drawing import draw_objects
from mec.evaluate.tracking.datasets.mots import read_mots_tracks
from mec.models.encoder import Encoder
from tracking import encoder_of

DRAWN_FRAMES = (4, 12, 18, 22, 27, 34)


def main(data: str | None = None, run: str | None = None, image: str | None = None) -> None:
    """Track all objects by boxes, masks and poses.

    Args:
        data: folder with coco128; null: only the scene "garden".
        run: a run folder, as in tracking.py; null: without the encoder "mec".
        image: file for a drawing of six frames of "garden"; null: no drawing.
    """
    scenes = {"garden": garden()}
    if data is not None:
        scenes |= {"street": street(Path(data), 0), "clock": street(Path(data), 1)}
    rows: dict[str, Any] = {name: {} for name in scenes}
    for number, (name, scene) in enumerate(scenes.items(), 1):
        sequence = f"{number:06}_{name}"  # the form of PoseTrack's names
        for encoder in ("resnet18", *(["mec"] if run else []), "efficientnet_lite0"):
            with tempfile.TemporaryDirectory() as folder:
                metrics = _track(scene, sequence, Path(folder), encoder_of(encoder, str(run)))
                if image is not None and (name, encoder) == ("garden", "resnet18"):
                    _draw(scene, sequence, Path(folder), Path(image))
            for task, by_row in metrics.items():
                task_rows = rows[name].setdefault(task, {"overlap alone": by_row["overlap alone"]})
                task_rows[encoder] = by_row["encoder"]
        print(name, rows[name], flush=True)
    write("tracking_scenes", "tracking in scenes with exact ground truth", rows=rows)


def _track(scene: Scene, name: str, folder: Path, encoder: Encoder) -> dict[str, Any]:
    write_mot(scene, folder / "mot", name)
    write_mots(scene, folder / "mots", name)
    write_posetrack(scene, folder / "pose", name)
    calls = {
        "mot": partial(evaluate.mot, folder / "mot"),
        "mots": partial(evaluate.mots, folder / "mots"),
        "pose": partial(evaluate.pose, folder / "pose"),
    }
    results = {task: call(encoder, out=folder / f"tracks-{task}") for task, call in calls.items()}
    return {task: {row: result.values(row) for row in result.rows} for task, result in results.items()}


def _draw(scene: Scene, name: str, folder: Path, file: Path) -> None:
    masks = read_mots_tracks(folder / "tracks-mots" / "tracks", name, len(scene.frames))
    images = [Image.fromarray(draw_objects(scene.frames[t], masks[t])) for t in DRAWN_FRAMES]
    image_grid(images, len(DRAWN_FRAMES) // 2, 1000).save(file, quality=85)


if __name__ == "__main__":
    auto_cli(main)
