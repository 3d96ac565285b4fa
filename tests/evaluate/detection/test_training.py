import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from faster_coco_eval import mask as coco_mask
from torch import nn

import mec
from mec.data.pixels import PixelFormat
from mec.errors import InputError
from mec.evaluate.detection import detect as detecting
from mec.evaluate.detection import training
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.detect import detect
from mec.evaluate.detection.loaders import Order, training_batches
from mec.evaluate.detection.network import Detector
from mec.evaluate.detection.schedules import Schedule
from mec.evaluate.detection.trainer import detection_trainer
from mec.evaluate.detection.training import Detection, in_file, look, train
from tests.evaluate.detection.scenes import QUICK, coco_set, make_quick, tiny_encoder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_set(tmp_path_factory.mktemp("discs"), train=24, test=12)


@pytest.fixture(scope="module")
def parts(data: Path) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    return open_annotated(data)


def new_detector(schedule: Schedule = QUICK) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_encoder(), 1, True, "c4", schedule)


def alone(data: Path, out: Path, **settings: Any) -> dict[str, float]:
    """The figures of one detector."""
    settings = {"baselines": False, "workers": 0, "precision": "32-true"} | settings
    return detect(data, tiny_encoder(), out, **settings).figures["encoder"]


def test_a_short_training_finds_discs_and_their_masks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch, iterations=100, milestones=(80,), warmup=20, batch_size=4, rate=0.02)
    learned = alone(data, tmp_path / "learned")
    untrained = alone(data, tmp_path / "untrained", iterations=1, rate=1e-9)
    for column in ("AP50", "mask AP50"):
        assert learned[column] > 0.6
        assert untrained[column] < 0.3
    with (tmp_path / "learned" / "encoder-0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [20, 40, 60, 80, 100]
    # the twentieth step is the last of the warm-up, the eightieth the last before the milestone
    assert [float(row["rate"]) for row in rows] == pytest.approx([0.019001, 0.02, 0.02, 0.02, 0.002])
    for row in rows:
        parts_of_it = [float(value) for name, value in row.items() if name.startswith("loss_")]
        assert len(parts_of_it) == 5
        assert float(row["loss"]) == pytest.approx(sum(parts_of_it), rel=1e-3)
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_statistics_of_batch_norm_are_those_of_the_final_weights(
    parts: tuple[AnnotatedDataset, AnnotatedDataset], tmp_path: Path
) -> None:
    schedule, annotated = replace(QUICK, iterations=3, rate=0.5, precise=4), parts[0]
    detector = new_detector(schedule)
    trainer = detection_trainer(schedule, tmp_path, "", 1, 1, "32-true")
    momenta = [m.momentum for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    train(detector, annotated, PixelFormat(), schedule, trainer, 5, 0, None)
    assert [m.momentum for m in detector.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    order = Order(annotated.sizes[:, 1] > annotated.sizes[:, 0], 2, 4, seed=5)
    weight = detector.backbone.conv1.weight.detach().double()
    means, variances = [], []
    for batch in training_batches(annotated, order, PixelFormat(), schedule, False, 0):
        height, width = (-(-max(p.shape[i] for p in batch.images) // 32) * 32 for i in (1, 2))
        joined = torch.zeros(2, 3, height, width, dtype=torch.float64)
        for row, image in zip(joined, batch.images, strict=True):
            normalized = (image.double() / 255 - detector.mean[0].double()) / detector.std[0].double()
            row[:, : image.shape[1], : image.shape[2]] = normalized
        seen = F.conv2d(joined, weight, stride=2, padding=3)
        means.append(seen.mean((0, 2, 3)))
        variances.append(seen.var((0, 2, 3), correction=1))
    for measured, expected in (
        (detector.backbone.bn1.running_mean, means), (detector.backbone.bn1.running_var, variances),
    ):  # fmt: skip
        np.testing.assert_allclose(measured, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_norms_are_not_decayed_and_every_parameter_is_trained_once() -> None:
    for architecture in ("c4", "fpn"):
        detector = Detector(tiny_encoder(), 3, True, architecture, QUICK)
        module = Detection(detector, QUICK, 0, 10)
        decayed, spared = module.configure_optimizers()["optimizer"].param_groups
        assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0)
        assert (decayed["momentum"], decayed["initial_lr"]) == (0.9, 0.005)
        names = {id(p): name for name, p in detector.named_parameters()}
        found = [names[id(p)] for group in (decayed, spared) for p in group["params"]]
        assert sorted(found) == sorted(names.values())
        of_norms = {names[id(p)] for p in spared["params"]}
        vectors = {name for name, p in detector.named_parameters() if p.ndim == 1}
        assert {n for n in vectors if ".bn" in n or ".norm." in n or "downsample.1" in n} == of_norms
        assert len(of_norms) >= 20


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize(("at", "error"), [(4, PowerCutError), (7, KeyboardInterrupt)])
def test_resumed_is_as_if_never_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException]
) -> None:
    make_quick(monkeypatch, iterations=11, milestones=(6, 9), precise=3)
    monkeypatch.setattr("mec.evaluate.detection.trainer.RECORD_EVERY", 1)
    expected = alone(data, tmp_path / "unbroken")
    step = Detection.training_step

    def stops(self: Detection, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == at:
            raise error
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Detection, "training_step", stops)
        with pytest.raises(error):
            alone(data, tmp_path / "broken")
    folder = tmp_path / "broken" / "encoder-0"
    left = sorted(p.name.partition("-")[0] for p in folder.rglob("*") if p.is_file())
    # every second step of 11, the last three of them, each with its checksum
    assert left == ["metrics.csv", *(f"step={s:09d}" for s in range(2, at + 1, 2))]
    assert alone(data, tmp_path / "broken", resume=True) == expected
    for name in ("detector.safetensors", "metrics.csv", "detections.json", "figures.json"):
        assert (folder / name).read_bytes() == (tmp_path / "unbroken" / "encoder-0" / name).read_bytes()
    steps = [line.split(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == [str(i) for i in range(1, 12)]


@pytest.mark.parametrize("late", ["measure_norms", "look"])
def test_stopped_after_the_last_step_it_needs_no_more_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    make_quick(monkeypatch)
    expected = alone(data, tmp_path / "unbroken")

    def stops(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(training if late == "measure_norms" else detecting, late, stops)
        with pytest.raises(PowerCutError):
            alone(data, tmp_path / "broken")
    monkeypatch.setattr(Detection, "training_step", stops)
    assert alone(data, tmp_path / "broken", resume=True) == expected


def test_divergence_is_one_line_and_leaves_no_detector(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    with pytest.raises(InputError) as refusal:
        alone(data, tmp_path / "out", rate=1e6)
    assert str(refusal.value) == "rate: training diverged before step 4; lower it"
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".ckpt"}
    assert left == {"detect.json", "metrics.csv"}


def test_detections_are_in_pixels_of_the_file() -> None:
    """An image of 100 x 300 pixels in its file, seen with 50 x 100."""
    found = {
        "boxes": torch.tensor([[10.0, 5.0, 20.0, 25.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    there = in_file(found, (100, 300), (50, 100))
    assert there.boxes.tolist() == [[30, 10, 60, 50]]
    assert (there.labels.tolist(), there.scores.tolist()) == ([1], [0.75])
    assert there.masks is not None
    (mask,) = there.masks
    expected = np.zeros((100, 300), np.uint8)
    expected[10:50, 30:60] = 1
    assert np.array_equal(coco_mask.decode(mask), expected)


def test_bfloat16_trains_and_finds_boxes_in_float32(
    parts: tuple[AnnotatedDataset, AnnotatedDataset], tmp_path: Path
) -> None:
    detector = new_detector()
    trainer = detection_trainer(QUICK, tmp_path, "", 1, 1, "bf16-mixed")
    train(detector, parts[0], PixelFormat(), QUICK, trainer, 0, 0, None)
    assert {p.dtype for p in detector.parameters()} == {torch.float32}
    found = look(detector, parts[1].images, PixelFormat(), QUICK, trainer, 0)
    assert sorted(found) == list(range(12))
    for number, one in found.items():
        assert isinstance(one, Detections)
        assert one.boxes.dtype == one.scores.dtype == np.float32
        height, width = parts[1].sizes[number]
        assert (one.boxes >= 0).all()
        assert (one.boxes <= np.array([width, height] * 2) + 1e-3).all()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (one,) = detector.eval()([torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)])
    boxes = one["boxes"]
    assert len(boxes)
    assert (boxes.bfloat16().float() != boxes).float().mean() > 0.5, "computed in float32, not only kept in it"


def test_two_processes_train_and_look_together(data: Path, tmp_path: Path) -> None:
    mec.save_encoder(tiny_encoder(), tmp_path / "encoder")
    command = [sys.executable, "-m", "mec", "evaluate", "detect", str(data), "--encoder", str(tmp_path / "encoder")]
    command += ["--out", str(tmp_path / "out"), "--devices", "2", "--iterations", "3", "--batch-size", "2"]
    command += ["--side", "64", "--workers", "0", "--baselines", "false"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("added to") == 1
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
    records = json.loads((tmp_path / "out" / "encoder-0" / "detections.json").read_text())
    seen = [(r["image_id"], *r["bbox"], r["score"]) for r in records]
    assert {image for image, *_ in seen} == set(range(1005, 1017))
    assert len(set(seen)) == len(seen), "an image that was looked at twice has everything twice"
