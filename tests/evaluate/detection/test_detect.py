import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mec
from mec.cli.main import main
from mec.errors import InputError
from mec.evaluate.detection import detect as detect_module
from mec.evaluate.detection.detect import detect
from mec.evaluate.detection.detectors import load_detector
from mec.models.encoder import Encoder, create_encoder
from mec.results import Result
from tests.evaluate.detection.scenes import QUICK, coco_dataset, tiny_encoder, use_quick_schedule, voc_dataset

BOX_METRICS, MASK_METRICS = ["AP", "AP50", "AP75"], ["mask AP", "mask AP50", "mask AP75"]
DETECTOR_FILES = ["detections.json", "detector.json", "detector.safetensors", "metrics.csv", "metrics.json"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_schedule(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_dataset(tmp_path_factory.mktemp("discs"), masks=False)


def detect_without_baseline(data: Path, out: Path, encoder: Encoder | None = None, **settings: Any) -> Result:
    return detect(data, encoder or tiny_encoder(), out, **({"baselines": False, "workers": 0} | settings))


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def test_result_and_files_with_masks(tmp_path: Path) -> None:
    data = coco_dataset(tmp_path / "data")
    result = detect_without_baseline(data, tmp_path / "out")
    assert result.task == "detect"
    assert result.protocol.id == "detect-short"
    assert result.protocol.settings == {
        "detector": "Mask R-CNN C4", "max_steps": 4, "batch_size": 2, "lr": 0.005, "train_short_side": [64, 72],
        "test_short_side": 64, "metric": "COCO", "seed": 0, "trials": 1,
    }  # fmt: skip
    assert result.dataset.name == str(data)
    assert result.dataset.counts == {"train": 6, "test": 4, "classes": 1}
    assert list(result.rows) == ["encoder"]
    assert [metric.name for metric in result.rows["encoder"]] == BOX_METRICS + MASK_METRICS
    assert {metric.unit for metric in result.rows["encoder"]} == {"fraction"}
    assert files_in(tmp_path / "out") == [*(f"encoder-0/{name}" for name in DETECTOR_FILES), "settings.json"]
    assert not (tmp_path / "out" / "encoder-0" / "checkpoints").exists()
    metrics = json.loads((tmp_path / "out" / "encoder-0" / "metrics.json").read_text())
    assert {k: v for k, v in metrics["overall"].items() if k in BOX_METRICS + MASK_METRICS} == result.values()
    assert list(metrics["per_class"]) == ["disc"]


def test_pycocotools_computes_the_same_metrics_from_detections_json(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    data = coco_dataset(tmp_path / "data", train=12, test=8)
    metrics = detect_without_baseline(data, tmp_path / "out", max_steps=30, lr=0.02, batch_size=4).values()
    ground_truth = coco.COCO(str(data / "annotations" / "instances_val2017.json"))
    results = ground_truth.loadRes(str(tmp_path / "out" / "encoder-0" / "detections.json"))
    for iou_type, names in (("bbox", BOX_METRICS), ("segm", MASK_METRICS)):
        evaluation = cocoeval.COCOeval(ground_truth, results, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert [metrics[name] for name in names] == pytest.approx(evaluation.stats[:3].tolist(), abs=1e-6)
    assert metrics["AP50"] > 0


def test_rows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detect_module.SCHEDULES, "coco-1x", QUICK)
    encoder = tiny_encoder()
    for schedule, baselines, untrained, rows in (
        ("short", True, False, ["encoder", "untrained"]),
        ("short", None, True, ["untrained"]),
        ("coco-1x", None, False, ["encoder"]),
    ):
        encoder.untrained = untrained
        settings = {"schedule": schedule, "baselines": baselines, "max_steps": 1}
        result = detect_without_baseline(data, tmp_path / "-".join(rows), encoder, **settings)
        assert list(result.rows) == rows
        assert all([metric.name for metric in row] == BOX_METRICS for row in result.rows.values())
        assert result.protocol.settings["detector"] == "Faster R-CNN C4"


def test_several_trials_give_mean_and_standard_deviation(data: Path, tmp_path: Path) -> None:
    result = detect_without_baseline(data, tmp_path / "out", trials=2, seed=3, max_steps=10, lr=0.02)
    folders = [tmp_path / "out" / f"encoder-{seed}" for seed in (3, 4)]
    values = [json.loads((folder / "metrics.json").read_text())["overall"]["AP50"] for folder in folders]
    assert values[0] != values[1]
    metric = result.metric("AP50")
    assert metric.value == pytest.approx(sum(values) / 2)
    assert metric.std == pytest.approx(np.std(values, ddof=1))
    assert metric.n == 2
    assert (result.protocol.settings["seed"], result.protocol.settings["trials"]) == (3, 2)
    first, second = (load_file(folder / "detector.safetensors") for folder in folders)
    assert not torch.equal(first["rpn.head.conv.0.0.weight"], second["rpn.head.conv.0.0.weight"])


def test_the_global_random_state_and_the_encoder_are_unchanged(data: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    detect_without_baseline(data, tmp_path / "out", encoder, max_steps=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_resume_skips_finished_detectors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = detect_without_baseline(data, tmp_path / "out")
    mtimes = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"}

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("called again")

    monkeypatch.setattr(detect_module, "train", fail)
    monkeypatch.setattr(detect_module, "run_detector", fail)
    assert detect_without_baseline(data, tmp_path / "out", resume=True).rows == before.rows
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != ".lock"} == mtimes


def test_resume_with_other_settings_lists_the_changes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    detect_without_baseline(data, out, max_steps=1)
    other_data = coco_dataset(tmp_path / "other", masks=False)
    mec.save_encoder(tiny_encoder(), tmp_path / "encoder")
    for settings, change in (
        ({"lr": 0.01}, "schedule.lr: 0.005 -> 0.01"),
        ({"short_side": 80}, "schedule.test_short_side: 64 -> 80"),
        ({"architecture": "fpn"}, "architecture: c4 -> fpn"),
        ({"data": other_data}, f"data: {data} -> {other_data}"),
        ({"encoder": mec.load_encoder(tmp_path / "encoder")}, "weights: resnet18 -> encoder of"),
    ):
        with pytest.raises(InputError) as error:
            detect_without_baseline(**({"data": data, "out": out, "resume": True, "max_steps": 1} | settings))
        assert str(error.value).startswith("resume: the settings differ from those of the results so far: ")
        assert change in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    (out / "settings.json").write_text('{"data": ')
    with pytest.raises(InputError, match=r"resume: .*settings\.json cannot be read"):
        detect_without_baseline(data, out, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "long"}, "schedule: expected one of short, voc07, voc07+12, coco-1x, coco-2x, got 'long'"),
        ({"trials": 0}, "trials: expected at least 1, got 0"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected a number above 0, got 0.0"),
        ({"batch_size": 3, "devices": 2}, "batch_size: 3 cannot be divided among 2 processes"),
        ({"devices": 0}, "devices: "),
        ({"devices": "many"}, "devices: "),
        ({"architecture": "c5"}, "architecture: expected c4 or fpn, got 'c5'"),
        ({"architecture": "c4", "encoder": "test_vit"}, "architecture: c4 requires a ResNet, got test_vit"),
        ({"encoder": "nowhere"}, "encoder: "),
        ({"encoder": "5 channels"}, "encoder: resnet18 takes 5 channels, "),
        ({"schedule": "voc07"}, "is in COCO's format, expected a VOCdevkit for VOC2007"),
        ({"data": "/nonexistent"}, "data: /nonexistent does not exist"),
    ],
)
def test_mistakes_are_rejected_before_anything_is_written(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if settings.get("encoder") == "5 channels":
        settings = settings | {"encoder": tiny_encoder(5)}
    elif settings.get("encoder") == "test_vit":
        settings = settings | {"encoder": create_encoder("test_vit", 64)}
    with pytest.raises(InputError) as error:
        detect_without_baseline(**({"data": data, "out": tmp_path / "out"} | settings))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_out_in_use_or_a_file_is_rejected(data: Path, tmp_path: Path) -> None:
    detect_without_baseline(data, tmp_path / "out", max_steps=1)
    before = files_in(tmp_path / "out")
    with pytest.raises(InputError, match=r"out: .*out already contains results; .*--resume"):
        detect_without_baseline(data, tmp_path / "out", max_steps=1)
    assert files_in(tmp_path / "out") == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out: .*expected a folder, got the file"):
        detect_without_baseline(data, tmp_path / "file")


def test_a_grayscale_encoder_accepts_color_images(data: Path, tmp_path: Path) -> None:
    result = detect_without_baseline(data, tmp_path / "out", tiny_encoder(1), max_steps=1)
    assert list(result.values()) == BOX_METRICS


def test_voc_is_evaluated_by_its_own_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(detect_module.SCHEDULES, "voc07", QUICK)
    result = detect_without_baseline(voc_dataset(tmp_path), tmp_path / "out", schedule="voc07", max_steps=2)
    assert result.protocol.id == "detect-voc07"
    settings = result.protocol.settings
    assert (settings["detector"], settings["max_steps"], settings["batch_size"]) == ("Faster R-CNN C4", 2, 2)
    assert settings["metric"] == "VOC2007 (11 points)"
    assert result.dataset.counts == {"train": 4, "test": 3, "classes": 20}
    assert list(result.values()) == BOX_METRICS
    spec = load_detector(tmp_path / "out" / "encoder-0")[1]
    assert (len(spec.categories), spec.category_ids, spec.has_masks) == (20, list(range(1, 21)), False)


@pytest.mark.parametrize("fault", ["corrupt", "another size"])
def test_a_test_image_that_cannot_be_used_is_skipped_and_logged(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco_dataset(tmp_path / "data", test=21, masks=False)
    file = data / "val2017" / "1004.png"
    if fault == "corrupt":
        file.write_bytes(b"no image")
    else:
        Image.open(file).resize((48, 40)).save(file)
    result = detect_without_baseline(data, tmp_path / "out", max_steps=1)
    assert "AP50" in result.values()
    (before, after) = [line for line in capsys.readouterr().err.splitlines() if str(file) in line]
    assert "1 of 21 images cannot be used" in before
    assert after.startswith("warning: skipped 1 corrupt image; ")
    results = json.loads((tmp_path / "out" / "encoder-0" / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {i + 5 for i in range(1000, 1021) if i != 1004}


def test_more_than_a_twentieth_of_corrupt_test_images_is_an_input_error(tmp_path: Path) -> None:
    data = coco_dataset(tmp_path / "data", test=10, masks=False)
    file = data / "val2017" / "1004.png"
    content = file.read_bytes()
    file.write_bytes(content[:200])  # found when it is decoded
    with pytest.raises(InputError, match=r"^data: 1 of 10 images .*1004\.png"):
        detect_without_baseline(data, tmp_path / "out", max_steps=1)
    assert not (tmp_path / "out" / "encoder-0" / "metrics.json").exists()
    file.write_bytes(b"no image")  # found before the training
    with pytest.raises(InputError, match=r"^data: .*\(test\): 1 of 10 images .*1004\.png"):
        detect_without_baseline(data, tmp_path / "other", max_steps=1)
    assert not (tmp_path / "other").exists()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the necessary files of a run folder; the working directory is its parent."""
    monkeypatch.chdir(tmp_path)
    coco_dataset(tmp_path / "data", masks=False)
    mec.save_encoder(tiny_encoder(), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").touch()
    return tmp_path / "run"


def test_training_in_the_run_folder_and_prediction(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate detect data --encoder run --batch-size 3 --max-steps=2 --short-side 72 --workers 0"
    arguments = [*command.split(), "--baselines", "null", "--predict", "data/val2017", "--threshold", "0.1"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "encoder: encoder of run" in captured.err
    assert "added to run/results.jsonl; detectors and detections in run/detect-short" in captured.out
    assert captured.out.splitlines()[-1] == "run/detect-short/predicted"
    (line,) = (run / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result["protocol"]["id"] == "detect-short"
    settings = result["protocol"]["settings"]
    assert (settings["max_steps"], settings["batch_size"], settings["lr"]) == (2, 3, 0.0075)
    assert (settings["train_short_side"], settings["test_short_side"]) == ([72, 81], 72)
    assert list(result["rows"]) == ["encoder", "untrained"]
    assert {p.name for p in (run / "detect-short").iterdir()} == {
        ".lock", "settings.json", "encoder-0", "untrained-0", "predicted",
    }  # fmt: skip
    drawn = [f"{i}.jpg" for i in range(1000, 1004)]
    assert sorted(p.name for p in (run / "detect-short" / "predicted").iterdir()) == [*drawn, "detections.json"]


def test_prediction_with_a_trained_detector(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "evaluate detect data --encoder run --out out --max-steps 1 --workers 0 --baselines false".split()
    assert main(train) == 0
    assert (run.parent / "out" / "results.jsonl").exists()
    assert not (run / "results.jsonl").exists()
    capsys.readouterr()
    assert main("evaluate detect --predict data/val2017/1001.png --out out --workers 0".split()) == 0
    assert capsys.readouterr().out == "out/predicted\n"
    assert sorted(p.name for p in (run.parent / "out" / "predicted").iterdir()) == ["1001.jpg", "detections.json"]
    assert main(train) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("mec: out: out already contains results; ")
    assert main([*train, "--resume"]) == 0
