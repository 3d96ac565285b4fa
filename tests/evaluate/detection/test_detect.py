import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mec
from mec.errors import InputError
from mec.evaluate.detection import detect as module
from mec.evaluate.detection.detect import detect
from mec.evaluate.detection.detectors import DetectorSpec, load_detector, save_detector
from mec.models.encoder import Encoder, create_encoder
from mec.results import Result
from tests.evaluate.detection.scenes import QUICK, coco_set, make_quick, tiny_encoder, voc_set

BOXES, MASKS = ["AP", "AP50", "AP75"], ["mask AP", "mask AP50", "mask AP75"]
FILES = ["detections.json", "detector.json", "detector.safetensors", "figures.json", "metrics.csv"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_set(tmp_path_factory.mktemp("discs"), masks=False)


def alone(data: Path, out: Path, encoder: Encoder | None = None, **settings: Any) -> Result:
    return detect(data, encoder or tiny_encoder(), out, **({"baselines": False, "workers": 0} | settings))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_is_written_and_found_with_masks(tmp_path: Path) -> None:
    data = coco_set(tmp_path / "data")
    result = alone(data, tmp_path / "out")
    assert result.task == "detect"
    assert result.protocol == (
        "Mask R-CNN C4, short: 4 iterations of 2, learning rate 0.005, short side 64 to 72 px, 64 in testing; "
        "COCO's figures; seed 0"
    )
    assert result.data == f"{data} (6 train, 4 test, 1 classes)"
    assert list(result.figures) == ["encoder"]
    assert list(result.figures["encoder"]) == BOXES + MASKS
    assert files(tmp_path / "out") == ["detect.json", *(f"encoder-0/{name}" for name in FILES)]
    assert not (tmp_path / "out" / "encoder-0" / "checkpoints").exists()
    figures = json.loads((tmp_path / "out" / "encoder-0" / "figures.json").read_text())
    assert {k: v for k, v in figures["overall"].items() if k in BOXES + MASKS} == result.figures["encoder"]
    assert list(figures["by_class"]) == ["disc"]


def test_other_tools_find_the_same_figures_in_the_detections(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    data = coco_set(tmp_path / "data", train=12, test=8)
    found = alone(data, tmp_path / "out", iterations=30, rate=0.02, batch_size=4).figures["encoder"]
    truth = coco.COCO(str(data / "annotations" / "instances_val2017.json"))
    results = truth.loadRes(str(tmp_path / "out" / "encoder-0" / "detections.json"))
    for kind, columns in (("bbox", BOXES), ("segm", MASKS)):
        judge = evaluation.COCOeval(truth, results, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        assert [found[c] for c in columns] == pytest.approx(judge.stats[:3].tolist(), abs=1e-6)
    assert found["AP50"] > 0


@pytest.mark.parametrize(
    ("baselines", "untrained", "rows"),
    [
        (None, False, ["encoder", "untrained"]),
        (True, False, ["encoder", "untrained"]),
        (False, False, ["encoder"]),
        (None, True, ["untrained"]),
    ],
)
def test_rows(data: Path, tmp_path: Path, baselines: bool | None, untrained: bool, rows: list[str]) -> None:
    encoder = tiny_encoder()
    encoder.untrained = untrained
    result = alone(data, tmp_path / "out", encoder, baselines=baselines)
    assert list(result.figures) == rows
    assert all(list(row) == BOXES for row in result.figures.values())
    assert "Faster R-CNN C4" in result.protocol


def test_no_baseline_by_itself_with_a_published_schedule(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.SCHEDULES, "coco-1x", QUICK)
    assert list(alone(data, tmp_path / "out", schedule="coco-1x", baselines=None).figures) == ["encoder"]


def test_several_seeds_have_a_mean_and_a_spread(data: Path, tmp_path: Path) -> None:
    result = alone(data, tmp_path / "out", seeds=2, seed=3, iterations=10, rate=0.02)
    each = [
        json.loads((tmp_path / "out" / f"encoder-{n}" / "figures.json").read_text())["overall"]["AP50"] for n in (3, 4)
    ]
    assert each[0] != each[1]
    row = result.figures["encoder"]
    assert row["AP50"] == pytest.approx(sum(each) / 2)
    assert row["AP50 std"] == pytest.approx(np.std(each, ddof=1))
    assert "mean ± std of 2 seeds" in result.protocol
    one, two = (load_file(tmp_path / "out" / f"encoder-{n}" / "detector.safetensors") for n in (3, 4))
    assert not torch.equal(one["rpn.head.conv.0.0.weight"], two["rpn.head.conv.0.0.weight"])


def test_it_leaves_the_callers_random_numbers_and_encoder_alone(data: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    alone(data, tmp_path / "out", encoder, iterations=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_what_is_finished_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = alone(data, tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    def refuses(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(module, "train", refuses)
    monkeypatch.setattr(module, "look", refuses)
    assert alone(data, tmp_path / "out", resume=True).figures == before.figures
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == times


def test_resume_with_other_settings_names_them(data: Path, tmp_path: Path) -> None:
    alone(data, tmp_path / "out", iterations=1)
    other = coco_set(tmp_path / "other", masks=False)
    for settings, difference in (
        ({"rate": 0.01}, "schedule.rate was 0.005, is 0.01"),
        ({"side": 80}, "schedule.side_at_test was 64, is 80"),
        ({"architecture": "fpn"}, "architecture was c4, is fpn"),
        ({"data": other}, f"data was {data}, is {other}"),
        ({"encoder": moved(tmp_path)}, "weights was resnet18, is encoder of"),
    ):
        with pytest.raises(InputError) as refusal:
            alone(**({"data": data, "out": tmp_path / "out", "resume": True, "iterations": 1} | settings))
        assert str(refusal.value).startswith(f"resume: {tmp_path / 'out'} was made with other settings: ")
        assert difference in str(refusal.value)
        assert len(str(refusal.value).splitlines()) == 1
    (tmp_path / "out" / "detect.json").write_text('{"data": ')
    with pytest.raises(InputError, match=r"resume: .*detect\.json cannot be read"):
        alone(data, tmp_path / "out", resume=True)


def moved(folder: Path) -> Encoder:
    """Another encoder of the same architecture."""
    mec.save_encoder(tiny_encoder(), folder / "encoder")
    return mec.load_encoder(folder / "encoder")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "long"}, "schedule: expected one of short, voc07, voc07+12, coco-1x, coco-2x, got 'long'"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"rate": 0.0}, "rate: expected a number above 0, got 0.0"),
        ({"batch_size": 3, "devices": 2}, "batch_size: 3 cannot be divided among 2 processes"),
        ({"devices": 0}, "devices: "),
        ({"devices": "many"}, "devices: "),
        ({"architecture": "c5"}, "architecture: expected c4 or fpn, got 'c5'"),
        ({"architecture": "c4", "encoder": "test_vit"}, "architecture: c4 is made of a ResNet's stages, test_vit has"),
        ({"encoder": "nowhere"}, "encoder: 'nowhere'"),
        ({"encoder": 5}, "encoder: resnet18 takes 5 channels, the images of"),
        ({"schedule": "voc07"}, "is in COCO's format, expected a VOCdevkit for VOC2007"),
        ({"data": "/nonexistent"}, "data: /nonexistent does not exist"),
        ({"resume": True}, "holds no detectors"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    encoder = settings.get("encoder")
    if encoder == 5:
        settings = settings | {"encoder": tiny_encoder(5)}
    elif encoder == "test_vit":
        settings = settings | {"encoder": create_encoder("test_vit", 64)}
    with pytest.raises(InputError) as refusal:
        alone(**({"data": data, "out": tmp_path / "out"} | settings))
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_and_a_file_are_refused(data: Path, tmp_path: Path) -> None:
    alone(data, tmp_path / "out", iterations=1)
    before = files(tmp_path / "out")
    with pytest.raises(InputError, match=r"out: .*out already holds detectors; take another folder, or --resume"):
        alone(data, tmp_path / "out", iterations=1)
    assert files(tmp_path / "out") == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out: .*file is a file, expected a folder"):
        alone(data, tmp_path / "file")


def test_an_encoder_of_gray_images_reads_color_ones_gray(data: Path, tmp_path: Path) -> None:
    assert alone(data, tmp_path / "out", tiny_encoder(1), iterations=1).figures["encoder"].keys() == set(BOXES)


def test_vocs_rules_for_voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.SCHEDULES, "voc07", QUICK)
    result = alone(voc_set(tmp_path), tmp_path / "out", schedule="voc07", iterations=2)
    assert "Faster R-CNN C4, voc07: 2 iterations of 2" in result.protocol
    assert "VOC2007's figures (11 points)" in result.protocol
    assert result.data.endswith("(4 train, 3 test, 20 classes)")
    assert list(result.figures["encoder"]) == BOXES
    spec = load_detector(tmp_path / "out" / "encoder-0")[1]
    assert (len(spec.categories), spec.category_ids, spec.masks) == (20, list(range(1, 21)), False)


def test_a_broken_test_image_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco_set(tmp_path / "data", test=21, masks=False)
    (data / "val2017" / "1004.png").write_bytes(b"no image")
    result = alone(data, tmp_path / "out", iterations=1)
    assert "AP50" in result.figures["encoder"]
    assert f"skipped 1 that could not be read; the first: {data}/val2017/1004.png" in capsys.readouterr().err
    records = json.loads((tmp_path / "out" / "encoder-0" / "detections.json").read_text())
    assert {r["image_id"] for r in records} == {i + 5 for i in range(1000, 1021) if i != 1004}


def test_more_than_a_twentieth_broken_is_refused(tmp_path: Path) -> None:
    data = coco_set(tmp_path / "data", test=10, masks=False)
    (data / "val2017" / "1004.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 10 images cannot be read, .*1004\.png"):
        alone(data, tmp_path / "out", iterations=1)
    assert not (tmp_path / "out" / "encoder-0" / "figures.json").exists()


SPEC = DetectorSpec(tiny_encoder().spec, "c4", ["nut", "bolt"], [3, 9], False, QUICK)


def test_a_detector_is_read_as_it_was_written(tmp_path: Path) -> None:
    detector = SPEC.build(tiny_encoder())
    save_detector(detector, SPEC, tmp_path)
    again, spec = load_detector(tmp_path)
    assert asdict(spec) == asdict(SPEC)
    assert spec.schedule == QUICK
    assert not again.training
    for name, tensor in detector.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("detector.safetensors", None, r"has no detector\.safetensors, which is written when"),
        ("detector.safetensors", b"", r"detector\.safetensors cannot be read as safetensors"),
        ("detector.safetensors", b"x" * 99, r"detector\.safetensors cannot be read as safetensors"),
        ("detector.json", None, r"detector\.json does not describe a detector"),
        ("detector.json", b"{", r"detector\.json does not describe a detector"),
        ("detector.json", b"[]", r"detector\.json does not describe a detector"),
        ("detector.json", b'{"encoder": 1, "schedule": {}}', r"detector\.json does not describe a detector"),
        ("detector.json", b'{"encoder": {}, "schedule": {}}', r"detector\.json does not describe a detector"),
        ("detector.json", b"\xff\xfe", r"detector\.json does not describe a detector"),
        ("weights", None, r"does not fit its detector\.json \(Missing key"),
        ("classes", None, r"does not fit its detector\.json \(size mismatch for roi_heads"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    save_detector(SPEC.build(), SPEC, tmp_path)
    if name == "weights":
        save_file({"x": torch.zeros(1)}, tmp_path / "detector.safetensors")
    elif name == "classes":
        other = replace(SPEC, categories=["nut"], category_ids=[3])
        (tmp_path / "detector.json").write_text(json.dumps(asdict(other)))
    elif content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refusal:
        load_detector(tmp_path)
    assert str(refusal.value).startswith("out: ")
    assert len(str(refusal.value).splitlines()) == 1
