"""The five tasks on videos with exact ground truth; metrics are recomputed from the written files."""

import json
from collections.abc import Iterator
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from mec import evaluate
from mec.evaluate import Result
from mec.models.encoder import Encoder
from tests.evaluate.tracking.crossings import FRONT_OBJECT, TASKS, crossing, narrow_encoder, walk, write_scene
from tests.evaluate.tracking.scenes import Scene

NAME = "000001_video"
Objects = dict[int, NDArray[Any]]
"""Boxes, masks or poses of one frame, by id."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return narrow_encoder()


@pytest.fixture(scope="module")
def crossing_scene() -> Scene:
    return crossing()


@pytest.fixture(scope="module")
def walk_scene() -> Scene:
    return walk()


@pytest.fixture(scope="module")
def data(crossing_scene: Scene, walk_scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        write_scene(task, walk_scene if task in ("sot", "vos") else crossing_scene, root, NAME)
    return root


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the IoU of two boxes (4,) or masks (h, w), or the fraction of equal visible joints of poses (n, 3)."""
    if a.dtype == bool:
        return float((a & b).sum() / (a | b).sum())
    if a.ndim == 2:
        return float((a[a[:, 2] > 0] == b[a[:, 2] > 0]).all(axis=1).mean())
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    intersection = sides.clip(0).prod()
    return float(intersection / (a[2:].prod() + b[2:].prod() - intersection))


def identity_metrics(truth: list[Objects], tracks: list[Objects]) -> tuple[float, int]:
    """Compute IDF1 and ID switches from their definitions. Pairs of a frame overlap by at least 0.5."""
    pairs = [
        {i: j for i in true_objects for j in tracked if overlap(true_objects[i], tracked[j]) >= 0.5}
        for true_objects, tracked in zip(truth, tracks, strict=True)
    ]
    true_ids = sorted({i for frame in truth for i in frame})
    track_ids = sorted({j for frame in tracks for j in frame}) + [-1] * len(true_ids)
    true_positives = max(
        sum(frame.get(i, -2) == j for frame in pairs for i, j in zip(true_ids, assigned, strict=True))
        for assigned in set(permutations(track_ids, len(true_ids)))
    )
    switches = 0
    for i in true_ids:
        matched = [frame[i] for frame in pairs if i in frame]
        switches += sum(a != b for a, b in pairwise(matched))
    return 2 * true_positives / (sum(map(len, truth)) + sum(map(len, tracks))), switches


def read_boxes(file: Path, length: int) -> list[Objects]:
    frames: list[Objects] = [{} for _ in range(length)]
    for line in file.read_text().splitlines():
        frame, id_, *box = line.split(",")[:6]
        frames[int(frame) - 1][int(id_)] = np.array(box, float)
    return frames


def read_masks(file: Path, length: int) -> list[Objects]:
    frames: list[Objects] = [{} for _ in range(length)]
    for line in file.read_text().splitlines():
        frame, id_, category, height, width, counts = line.split(" ")
        assert category == "2"
        mask = coco_mask.decode({"size": [int(height), int(width)], "counts": counts.encode()}).astype(bool)
        frames[int(frame) - 1][int(id_)] = mask
    return frames


def read_poses(file: Path) -> list[Objects]:
    raw = json.loads(file.read_text())
    frames: dict[int, Objects] = {image["id"]: {} for image in raw["images"]}
    for person in raw["annotations"]:
        frames[person["image_id"]][person["track_id"]] = np.array(person["keypoints"]).reshape(-1, 3)
    return list(frames.values())


def truth_and_tracks(task: str, data: Path, out: Path, length: int) -> Iterator[list[Objects]]:
    """Read the ground truth, then the tracks."""
    if task == "mot":
        yield read_boxes(data / NAME / "gt" / "gt.txt", length)
        yield read_boxes(out / "tracks" / f"{NAME}.txt", length)
    elif task == "mots":
        yield read_masks(data / NAME / "gt" / "gt.txt", length)
        yield read_masks(out / "tracks" / f"{NAME}.txt", length)
    else:
        yield read_poses(data / "annotations" / "val" / f"{NAME}.json")
        yield read_poses(out / "tracks" / f"{NAME}.json")


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("mot", {"corrected": True}), ("mot", {"patience": 1}), ("mots", {}), ("mots", {"corrected": True}),
        ("pose", {"patience": 1}),
    ],
)  # fmt: skip
def test_appearance_keeps_identities_where_overlap_alone_fails(
    task: str, options: dict[str, Any], data: Path, crossing_scene: Scene, encoder: Encoder, tmp_path: Path
) -> None:
    result: Result = getattr(evaluate, task)(data / task, encoder, out=tmp_path, **options)
    column = "person IDF1" if task == "pose" else "IDF1"
    values = result.values()
    truth, tracks = truth_and_tracks(task, data / task, tmp_path, len(crossing_scene.frames))
    idf1, switches = identity_metrics(truth, tracks)
    assert values[column] == pytest.approx(idf1, abs=1e-9)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert metrics[NAME]["person ID switches" if task == "pose" else "ID switches"] == switches
    assert metrics["all"][column] == values[column]
    if "patience" in options:  # the object that was away for four frames has a new id; its box is output a frame later
        assert switches == 1
        assert idf1 == pytest.approx({"mot": 2 * 28 / (32 + 31)}.get(task, 28 / 32))
    else:
        assert (idf1, switches) == (1.0, 0)
        assert values["ID switches"] == 0
    baseline = result.values("overlap alone")
    assert baseline[column] < 0.3
    assert baseline["ID switches"] >= 10


def test_motion_cost_refuses_large_steps(data: Path, encoder: Encoder) -> None:
    """Objects move by half their width per frame, more than motion predicts. Appearance alone is tested above."""
    assert evaluate.mot(data / "mot", encoder, motion=True).values()["IDF1"] < 1


def test_masks_follow_their_objects(data: Path, walk_scene: Scene, encoder: Encoder, tmp_path: Path) -> None:
    result = evaluate.vos(data / "vos", encoder, out=tmp_path)
    files = sorted((tmp_path / "tracks" / NAME).iterdir())
    assert [file.name for file in files] == [f"{t:05}.png" for t in range(10)]
    labels = [np.asarray(Image.open(file)) for file in files]
    truth = [walk_scene.visible[0, t] + 2 * walk_scene.visible[1, t] for t in range(10)]
    np.testing.assert_array_equal(labels[0], truth[0])
    for row, predictions in (("encoder", labels), ("first mask", truth[:1] * 10)):
        overlaps = [overlap(truth[t] == i, predictions[t] == i) for i in (1, 2) for t in range(1, 9)]
        assert result.values(row)["J mean"] == pytest.approx(np.mean(overlaps), abs=1e-9)
    assert result.values()["J mean"] > 0.5
    assert result.values()["F mean"] > 0.5
    assert result.values("first mask")["J mean"] < 0.2


@pytest.mark.parametrize("corrected", [False, True])
def test_box_follows_its_object(
    corrected: bool, data: Path, walk_scene: Scene, encoder: Encoder, tmp_path: Path
) -> None:
    result = evaluate.sot(data / "sot", encoder, "both", corrected=corrected, out=tmp_path)
    truth = walk_scene.boxes[FRONT_OBJECT]
    boxes = {t: np.loadtxt(tmp_path / "tracks" / t / f"{NAME}.txt", delimiter=",") for t in ("dcf", "xcorr")}
    for tracked in boxes.values():
        np.testing.assert_array_equal(tracked[0], truth[0] + (1, 1, 0, 0))  # OTB counts pixels from 1
    boxes["first box"] = np.repeat(boxes["dcf"][:1], 10, axis=0)
    for row, tracked in boxes.items():
        overlaps = [overlap(a, b) for a, b in zip(truth, tracked - (1, 1, 0, 0), strict=True)]
        auc = np.mean([np.greater(overlaps, n / 20).mean() for n in range(21)])
        center_errors = (truth - tracked)[:, :2] + (truth - tracked)[:, 2:] / 2 + 1
        assert result.values(row) == pytest.approx(
            {"AUC": auc, "precision": (np.hypot(*center_errors.T) <= 20).mean()}, abs=1e-9
        )
    assert list(result.rows) == ["dcf", "xcorr", "first box"]
    assert result.values("dcf")["AUC"] > 0.85
    assert result.values("xcorr")["AUC"] > (0.85 if corrected else 0.6)
    assert result.values("first box")["AUC"] < 0.3
