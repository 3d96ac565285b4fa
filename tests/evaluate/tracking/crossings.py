"""Small videos in which a narrow, untrained encoder must track all objects, in the layout of every task."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from mec.models.encoder import Encoder, create_encoder
from tests.evaluate.tracking.scene_files import write_davis, write_mot, write_mots, write_otb, write_posetrack
from tests.evaluate.tracking.scenes import SIZE, Scene, blob, make_scene

TASKS = ("sot", "vos", "mot", "mots", "pose")
NARROW = {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 64], "stem_type": "deep", "stem_width": 8}
HEIGHT, WIDTH = SIZE
FRONT_OBJECT = 1
"""Index of the object in both videos that is never occluded."""


def narrow_encoder(seed: int = 0) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_encoder("resnet18", 64, small_stem=False, options=NARROW)


def crossing(length: int = 12) -> Scene:
    """Two objects cross in steps of half their width, one occluding the other; a third leaves and reappears elsewhere.

    The previous positions do not suffice to track them.
    """
    pagoda, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    cutouts = (blob(pagoda, (425, 215), (34, 76), 2), blob(flower, (300, 200), (34, 76), 3),
              blob(pagoda, (120, 330), (34, 76), 4))  # fmt: skip
    steps = np.linspace(0, 1, length)
    x = np.stack([
        0.1 + 0.8 * steps,
        0.9 - 0.8 * steps,
        np.select([steps < 0.35, steps > 0.65], [0.32, 0.72], 2.0),
    ])  # fmt: skip
    y = np.repeat([[0.42], [0.5], [0.76]], length, axis=1)
    objects = [cutout.resized(height) for cutout, height in zip(cutouts, (104, 110, 96), strict=True)]
    return make_scene(objects, _large(pagoda[:200, :300]), np.stack([x * WIDTH, y * HEIGHT], 2))


def walk(length: int = 10, step: float = 10.0) -> Scene:
    """Two objects cross slowly in front of plain sky; nine tenths of the far one are occluded at the crossing."""
    pagoda, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    objects = [blob(pagoda, (600, 230), (30, 70), 2).resized(104), blob(flower, (300, 200), (34, 76), 3).resized(110)]
    offset = step * (np.arange(length) - length / 2)
    x = np.stack([160 + offset, 160 - offset])
    y = np.repeat([[90.0], [125.0]], length, axis=1)
    return make_scene(objects, _large(pagoda[:100, :150]), np.stack([x, y], 2))


def _large(photograph: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photograph).resize((WIDTH, HEIGHT)))


def write_scene(task: str, scene: Scene, root: Path, name: str) -> Path:
    """Add a sequence of ``task`` to root/task, and return that folder."""
    folder = root / task
    if task == "sot":
        write_otb(scene, folder, name, FRONT_OBJECT)
    else:
        {"vos": write_davis, "mot": write_mot, "mots": write_mots, "pose": write_posetrack}[task](scene, folder, name)
    return folder
