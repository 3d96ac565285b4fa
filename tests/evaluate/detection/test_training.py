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
from mec.engine import checkpoints
from mec.errors import InputError
from mec.evaluate.detection import detect as detect_module
from mec.evaluate.detection import training as training_module
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset, Detections
from mec.evaluate.detection.detect import detect
from mec.evaluate.detection.detectors import Detector
from mec.evaluate.detection.loaders import AspectRatioBatchSampler, make_train_loader
from mec.evaluate.detection.schedules import Schedule
from mec.evaluate.detection.training import DetectionModule, detection_trainer, run_detector, to_original_size, train
from tests.evaluate.detection.scenes import QUICK, coco_dataset, tiny_encoder, use_quick_schedule


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_dataset(tmp_path_factory.mktemp("discs"), train=24, test=12)


@pytest.fixture(scope="module")
def splits(data: Path) -> tuple[AnnotatedDataset, AnnotatedDataset]:
    return open_annotated(data)


def new_detector(schedule: Schedule = QUICK) -> Detector:
    torch.manual_seed(0)
    return Detector(tiny_encoder(), 1, True, "c4", schedule)


def detect_encoder(data: Path, out: Path, **settings: Any) -> dict[str, float]:
    """Return the metrics of one detector, without a baseline."""
    settings = {"baselines": False, "workers": 0, "precision": "32-true"} | settings
    return detect(data, tiny_encoder(), out, **settings).values()


def test_a_short_training_finds_discs_and_their_masks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_schedule(monkeypatch, max_steps=100, milestones=(80,), warmup_steps=20, batch_size=4, lr=0.02)
    trained = detect_encoder(data, tmp_path / "trained")
    untrained = detect_encoder(data, tmp_path / "untrained", max_steps=1, lr=1e-9)
    for name in ("AP50", "mask AP50"):
        assert trained[name] > 0.6
        assert untrained[name] < 0.3
    with (tmp_path / "trained" / "encoder-0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 21, 41, 61, 81, 100]
    # the warm-up ends at step 20, the milestone is at step 80
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.00002, 0.02, 0.02, 0.02, 0.002, 0.002])
    for row in rows:
        losses = [float(value) for name, value in row.items() if name.startswith("loss_")]
        assert len(losses) == 5
        assert float(row["loss"]) == pytest.approx(sum(losses), rel=1e-3)
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


def test_batch_norm_statistics_are_of_the_final_weights(
    splits: tuple[AnnotatedDataset, AnnotatedDataset], tmp_path: Path
) -> None:
    schedule, dataset = replace(QUICK, max_steps=3, lr=0.5, precise_bn_batches=4), splits[0]
    detector = new_detector(schedule)
    trainer = detection_trainer(tmp_path, "", 1, 1, "32-true")
    momenta = [m.momentum for m in detector.modules() if isinstance(m, nn.BatchNorm2d)]
    train(detector, dataset, trainer, 5, 0, None)
    assert [m.momentum for m in detector.modules() if isinstance(m, nn.BatchNorm2d)] == momenta
    sampler = AspectRatioBatchSampler(dataset.sizes[:, 1] > dataset.sizes[:, 0], 2, 4, seed=5)
    weight = detector.backbone.conv1.weight.detach().double()
    means, variances = [], []
    for batch in make_train_loader(dataset, sampler, PixelFormat(), schedule, False, 0):
        height, width = (-(-max(image.shape[i] for image in batch.images) // 32) * 32 for i in (1, 2))
        padded = torch.zeros(2, 3, height, width, dtype=torch.float64)
        for row, image in zip(padded, batch.images, strict=True):
            normalized = (image.double() / 255 - detector.mean[0].double()) / detector.std[0].double()
            row[:, : image.shape[1], : image.shape[2]] = normalized
        features = F.conv2d(padded, weight, stride=2, padding=3)
        means.append(features.mean((0, 2, 3)))
        variances.append(features.var((0, 2, 3), correction=1))
    bn1 = detector.backbone.bn1
    for statistic, expected in ((bn1.running_mean, means), (bn1.running_var, variances)):
        np.testing.assert_allclose(statistic, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_in_one_group_and_norms_have_no_weight_decay() -> None:
    for architecture in ("c4", "fpn"):
        detector = Detector(tiny_encoder(), 3, True, architecture, QUICK)
        module = DetectionModule(detector, 0, 10)
        with_decay, without_decay = module.configure_optimizers()["optimizer"].param_groups
        assert (with_decay["weight_decay"], without_decay["weight_decay"]) == (1e-4, 0)
        assert (with_decay["momentum"], with_decay["initial_lr"]) == (0.9, 0.005)
        names = {id(p): name for name, p in detector.named_parameters()}
        optimized = [names[id(p)] for group in (with_decay, without_decay) for p in group["params"]]
        assert sorted(optimized) == sorted(names.values())
        norm_parameters = {names[id(p)] for p in without_decay["params"]}
        vectors = {name for name, p in detector.named_parameters() if p.ndim == 1}
        assert {n for n in vectors if ".bn" in n or ".norm." in n or "downsample.1" in n} == norm_parameters
        assert len(norm_parameters) >= 20


class PowerCutError(Exception):
    pass


def test_resume_is_bit_identical(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_schedule(monkeypatch, max_steps=11, milestones=(6, 9), precise_bn_batches=3)
    monkeypatch.setattr(training_module, "LOG_EVERY_N_STEPS", 1)
    monkeypatch.setattr(checkpoints, "SAVE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "SAVE_INTERVAL_FACTOR", 0)
    expected = detect_encoder(data, tmp_path / "uninterrupted")
    training_step = DetectionModule.training_step

    def stop(self: DetectionModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 7:  # after the first milestone
            raise PowerCutError
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", stop)
        with pytest.raises(PowerCutError):
            detect_encoder(data, tmp_path / "resumed")
    folder = tmp_path / "resumed" / "encoder-0"
    files = sorted(p.name.partition("-")[0] for p in folder.rglob("*") if p.is_file())
    # the last three steps, with a checksum in the name
    assert files == ["metrics.csv", *(f"step={s:09d}" for s in (5, 6, 7))]
    assert detect_encoder(data, tmp_path / "resumed", resume=True) == expected
    uninterrupted = tmp_path / "uninterrupted" / "encoder-0"
    for name in ("detector.safetensors", "detections.json", "metrics.json"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    expected_rows = [line.split(",") for line in (uninterrupted / "metrics.csv").read_text().splitlines()]
    assert [row[:-3] for row in rows] == [row[:-3] for row in expected_rows]  # all but the speed
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(1, 12)]


@pytest.mark.parametrize(
    ("module", "function"), [(training_module, "update_bn_stats"), (detect_module, "run_detector")]
)
def test_resume_after_the_last_step_does_not_train(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    use_quick_schedule(monkeypatch)
    expected = detect_encoder(data, tmp_path / "uninterrupted")

    def stop(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stop)
        with pytest.raises(PowerCutError):
            detect_encoder(data, tmp_path / "resumed")
    monkeypatch.setattr(DetectionModule, "training_step", stop)
    assert detect_encoder(data, tmp_path / "resumed", resume=True) == expected


def test_divergence_is_an_input_error_and_leaves_no_detector(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_schedule(monkeypatch)
    with pytest.raises(InputError) as error:
        detect_encoder(data, tmp_path / "out", lr=1e6)
    assert str(error.value) == "lr: training diverged before step 4; lower it"
    files = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".ckpt"}
    assert files == {".lock", "settings.json", "metrics.csv"}


def test_detections_are_in_pixels_of_the_original_image() -> None:
    """An image of 100 x 300 pixels, resized to 50 x 100."""
    output = {
        "boxes": torch.tensor([[10.0, 5.0, 20.0, 25.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    detections = to_original_size(output, (100, 300), (50, 100))
    assert detections.boxes.tolist() == [[30, 10, 60, 50]]
    assert (detections.labels.tolist(), detections.scores.tolist()) == ([1], [0.75])
    assert detections.masks is not None
    (mask,) = detections.masks
    expected = np.zeros((100, 300), np.uint8)
    expected[10:50, 30:60] = 1
    assert np.array_equal(coco_mask.decode(mask), expected)


def test_bfloat16_computes_boxes_in_float32(splits: tuple[AnnotatedDataset, AnnotatedDataset], tmp_path: Path) -> None:
    detector = new_detector()
    trainer = detection_trainer(tmp_path, "", 1, 1, "bf16-mixed")
    train(detector, splits[0], trainer, 0, 0, None)
    assert {p.dtype for p in detector.parameters()} == {torch.float32}
    detections = run_detector(detector, splits[1].images, trainer, 0)
    assert sorted(detections) == list(range(12))
    for index, image_detections in detections.items():
        assert isinstance(image_detections, Detections)
        assert image_detections.boxes.dtype == image_detections.scores.dtype == np.float32
        height, width = splits[1].sizes[index]
        assert (image_detections.boxes >= 0).all()
        assert (image_detections.boxes <= np.array([width, height] * 2) + 1e-3).all()
    boxes = torch.from_numpy(np.concatenate([d.boxes for d in detections.values()]))
    assert (boxes.bfloat16().float() != boxes).float().mean() > 0.5, "computed in float32, not only converted to it"


def test_two_processes_train_and_detect(data: Path, tmp_path: Path) -> None:
    mec.save_encoder(tiny_encoder(), tmp_path / "encoder")
    command = [sys.executable, "-m", "mec", "evaluate", "detect", str(data), "--encoder", str(tmp_path / "encoder")]
    command += ["--out", str(tmp_path / "out"), "--devices", "2", "--max-steps", "3", "--batch-size", "2"]
    command += ["--short-side", "64", "--workers", "0", "--baselines", "false"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("added to") == 1
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
    results = json.loads((tmp_path / "out" / "encoder-0" / "detections.json").read_text())
    detections = [(r["image_id"], *r["bbox"], r["score"]) for r in results]
    assert {image_id for image_id, *_ in detections} == set(range(1005, 1017))
    assert len(set(detections)) == len(detections), "an image processed twice would have duplicates"
