"""The five tasks on films whose truth is known exactly; figures are computed again from the files that are written."""

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
from tests.evaluate.tracking.crossings import FRONT, TASKS, crossing, narrow_encoder, walk, write
from tests.evaluate.tracking.scenes import Scene

NAME = "000001_film"
Objects = dict[int, NDArray[Any]]
"""Of a frame, by id."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return narrow_encoder()


@pytest.fixture(scope="module")
def leap() -> Scene:
    return crossing()


@pytest.fixture(scope="module")
def stroll() -> Scene:
    return walk()


@pytest.fixture(scope="module")
def data(leap: Scene, stroll: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        write(task, stroll if task in ("sot", "vos") else leap, root, NAME)
    return root


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of two boxes (4,), two masks (h, w), or two poses (n, 3), of which the share of joints that are the same."""
    if a.dtype == bool:
        return float((a & b).sum() / (a | b).sum())
    if a.ndim == 2:
        return float((a[a[:, 2] > 0] == b[a[:, 2] > 0]).all(axis=1).mean())
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    common = sides.clip(0).prod()
    return float(common / (a[2:].prod() + b[2:].prod() - common))


def identities(truth: list[Objects], found: list[Objects]) -> tuple[float, int]:
    """IDF1 and switches, from their definitions; a frame's pairs are those that overlap by more than a half."""
    pairs = [
        {i: j for i in here for j in there if overlap(here[i], there[j]) >= 0.5}
        for here, there in zip(truth, found, strict=True)
    ]
    ids = sorted({i for one in truth for i in one})
    tracks = sorted({j for one in found for j in one}) + [-1] * len(ids)
    right = max(
        sum(one.get(i, -2) == j for one in pairs for i, j in zip(ids, chosen, strict=True))
        for chosen in set(permutations(tracks, len(ids)))
    )
    switches = 0
    for i in ids:
        seen = [one[i] for one in pairs if i in one]
        switches += sum(a != b for a, b in pairwise(seen))
    return 2 * right / (sum(map(len, truth)) + sum(map(len, found))), switches


def boxes_of(file: Path, length: int) -> list[Objects]:
    frames: list[Objects] = [{} for _ in range(length)]
    for line in file.read_text().splitlines():
        frame, number, *box = line.split(",")[:6]
        frames[int(frame) - 1][int(number)] = np.array(box, float)
    return frames


def masks_of(file: Path, length: int) -> list[Objects]:
    frames: list[Objects] = [{} for _ in range(length)]
    for line in file.read_text().splitlines():
        frame, number, kind, height, width, counts = line.split(" ")
        assert kind == "2"
        mask = coco_mask.decode({"size": [int(height), int(width)], "counts": counts.encode()}).astype(bool)
        frames[int(frame) - 1][int(number)] = mask
    return frames


def poses_of(file: Path) -> list[Objects]:
    raw = json.loads(file.read_text())
    frames: dict[int, Objects] = {one["id"]: {} for one in raw["images"]}
    for one in raw["annotations"]:
        frames[one["image_id"]][one["track_id"]] = np.array(one["keypoints"]).reshape(-1, 3)
    return list(frames.values())


def both(task: str, data: Path, out: Path, length: int) -> Iterator[list[Objects]]:
    """The truth, and what was found."""
    if task == "mot":
        yield boxes_of(data / NAME / "gt" / "gt.txt", length)
        yield boxes_of(out / "tracks" / f"{NAME}.txt", length)
    elif task == "mots":
        yield masks_of(data / NAME / "gt" / "gt.txt", length)
        yield masks_of(out / "tracks" / f"{NAME}.txt", length)
    else:
        yield poses_of(data / "annotations" / "val" / f"{NAME}.json")
        yield poses_of(out / "tracks" / f"{NAME}.json")


@pytest.mark.parametrize("options", [{}, {"corrected": True}, {"patience": 1}], ids=str)
@pytest.mark.parametrize("task", ["mot", "mots", "pose"])
def test_nobody_is_mistaken_where_overlap_alone_fails(
    task: str, options: dict[str, Any], data: Path, leap: Scene, encoder: Encoder, tmp_path: Path
) -> None:
    result: Result = getattr(evaluate, task)(data / task, encoder, out=tmp_path, **options)
    column = "person IDF1" if task == "pose" else "IDF1"
    told = result.figures["encoder"]
    truth, found = both(task, data / task, tmp_path, len(leap.frames))
    score, switches = identities(truth, found)
    assert told[column] == pytest.approx(score, abs=1e-9)
    everything = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert everything[NAME]["person switches" if task == "pose" else "switches"] == switches
    assert everything["all"][column] == told[column]
    if "patience" in options:  # who was away for four frames is somebody else, whom boxes show from the second frame on
        assert switches == 1
        assert score == pytest.approx({"mot": 2 * 28 / (32 + 31)}.get(task, 28 / 32))
    else:
        assert (score, switches) == (1.0, 0)
        assert told["switches"] == 0
    assert result.figures["overlap alone"][column] < 0.3
    assert result.figures["overlap alone"]["switches"] >= 10


def test_motion_in_the_cost_refuses_leaps(data: Path, encoder: Encoder) -> None:
    """By half their width each frame nobody is where motion expects them; looks alone lose nobody, as tested above."""
    assert evaluate.mot(data / "mot", encoder, motion=True).figures["encoder"]["IDF1"] < 1


def test_masks_go_with_their_objects(data: Path, stroll: Scene, encoder: Encoder, tmp_path: Path) -> None:
    result = evaluate.vos(data / "vos", encoder, out=tmp_path)
    files = sorted((tmp_path / "tracks" / NAME).iterdir())
    assert [file.name for file in files] == [f"{t:05}.png" for t in range(10)]
    labels = [np.asarray(Image.open(file)) for file in files]
    truth = [stroll.visible[0, t] + 2 * stroll.visible[1, t] for t in range(10)]
    np.testing.assert_array_equal(labels[0], truth[0])
    for row, ours in (("encoder", labels), ("first mask", truth[:1] * 10)):
        shares = [overlap(truth[t] == i, ours[t] == i) for i in (1, 2) for t in range(1, 9)]
        assert result.figures[row]["J"] == pytest.approx(np.mean(shares), abs=1e-9)
    assert result.figures["encoder"]["J"] > 0.5
    assert result.figures["encoder"]["F"] > 0.5
    assert result.figures["first mask"]["J"] < 0.2


@pytest.mark.parametrize("corrected", [False, True])
def test_a_box_goes_with_its_object(
    corrected: bool, data: Path, stroll: Scene, encoder: Encoder, tmp_path: Path
) -> None:
    result = evaluate.sot(data / "sot", encoder, "both", corrected=corrected, out=tmp_path)
    truth = stroll.boxes[FRONT]
    boxes = {t: np.loadtxt(tmp_path / "tracks" / t / f"{NAME}.txt", delimiter=",") for t in ("dcf", "xcorr")}
    for found in boxes.values():
        np.testing.assert_array_equal(found[0], truth[0] + (1, 1, 0, 0))  # counted from 1
    boxes["first box"] = np.repeat(boxes["dcf"][:1], 10, axis=0)
    for row, found in boxes.items():
        shares = [overlap(a, b) for a, b in zip(truth, found - (1, 1, 0, 0), strict=True)]
        auc = np.mean([np.greater(shares, n / 20).mean() for n in range(21)])
        middles = (truth - found)[:, :2] + (truth - found)[:, 2:] / 2 + 1
        assert result.figures[row] == pytest.approx(
            {"AUC": auc, "precision": (np.hypot(*middles.T) <= 20).mean()}, abs=1e-9
        )
    assert list(result.figures) == ["dcf", "xcorr", "first box"]
    assert result.figures["dcf"]["AUC"] > 0.85
    assert result.figures["xcorr"]["AUC"] > (0.85 if corrected else 0.6)
    assert result.figures["first box"]["AUC"] < 0.3
