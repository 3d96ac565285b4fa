import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from mec.errors import InputError
from mec.evaluate.detection.detect import predict
from mec.evaluate.detection.detectors import DetectorSpec, save_detector
from tests.evaluate.detection.scenes import QUICK, disc, noise, tiny_encoder

SPEC = DetectorSpec(tiny_encoder().spec, "c4", ["nut", "bolt"], [3, 9], True, QUICK)


def save_bolt_detector(folder: Path, spec: DetectorSpec = SPEC) -> Path:
    """Save a detector that predicts bolts everywhere, with a score of about e^2 / (e^2 + 2)."""
    torch.manual_seed(0)
    detector = spec.build(tiny_encoder(spec.encoder.channels))
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[2] = 2
    save_detector(detector, spec, folder)
    return folder


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bolt_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture
def out(detector_folder: Path, tmp_path: Path) -> Path:
    """Create an output folder of ``detect``."""
    for name in ("encoder-0", "untrained-0"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for path in detector_folder.iterdir():
        (tmp_path / "out" / "encoder-0" / path.name).symlink_to(path)
    return tmp_path / "out"


def save_image(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_predictions(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "predicted" / "detections.json").read_text())
    return content


def test_images_are_drawn_under_their_own_names(out: Path, tmp_path: Path) -> None:
    images, names = tmp_path / "images", ("a.png", "a.jpg", "b/a.jpg", "b/c/d.e.bmp", "a-2.jpg", "é ü.png")
    for i, name in enumerate(names):
        save_image(images / name, disc(60 + i, 80, i)[0])
    before = [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert predict(images, out, workers=0) == out / "predicted"
    drawn = [name for name in files_in(out / "predicted") if name != "detections.json"]
    assert len(drawn) == 6
    assert {"a.jpg", "b/a.jpg", "b/c/d.e.jpg", "é ü.jpg"} < set(drawn)
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in read_predictions(out)["images"]}
    assert sorted(sizes) == sorted(names)
    heights = sorted(Image.open(out / "predicted" / name).height for name in drawn)
    assert heights == [60, 61, 62, 63, 64, 65], "no image overwrites another"
    after = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and "predicted" not in p.parts]
    assert [(p, p.stat().st_mtime_ns) for p in after] == before


def test_predictions_are_a_dataset_in_cocos_format(out: Path, tmp_path: Path) -> None:
    for i in range(3):
        save_image(tmp_path / "images" / f"{i}.png", disc(60, 80, i)[0])
    predict(tmp_path / "images", out, workers=0)
    content = read_predictions(out)
    assert content["categories"] == [{"id": 3, "name": "nut"}, {"id": 9, "name": "bolt"}]
    annotations = content["annotations"]
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    coco = COCO(str(out / "predicted" / "detections.json"))
    assert set(coco.getImgIds()) == {0, 1, 2}
    for annotation in annotations:
        assert annotation["category_id"] == 9
        assert annotation["score"] == pytest.approx(np.e**2 / (np.e**2 + 2), abs=0.02)
        assert annotation["iscrowd"] == 0
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0
        assert x + width <= 80.001
        assert y + height <= 60.001
        assert annotation["segmentation"]["size"] == [60, 80]
        assert annotation["area"] == coco_mask.decode(annotation["segmentation"]).sum()
    assert {annotation["image_id"] for annotation in annotations} == {0, 1, 2}


def test_without_masks_the_area_is_that_of_the_box(tmp_path: Path) -> None:
    save_bolt_detector(tmp_path / "out", replace(SPEC, has_masks=False))
    image = save_image(tmp_path / "a.png", disc(60, 80, 0)[0])
    predict(image, tmp_path / "out", workers=0)
    assert files_in(tmp_path / "out" / "predicted") == ["a.jpg", "detections.json"]
    for annotation in read_predictions(tmp_path / "out")["annotations"]:
        assert "segmentation" not in annotation
        assert annotation["area"] == pytest.approx(annotation["bbox"][2] * annotation["bbox"][3])


def test_only_detections_above_the_threshold_are_drawn_and_written(out: Path, tmp_path: Path) -> None:
    pixels = noise(60, 80, 0)
    image = save_image(tmp_path / "a.png", pixels)
    counts = {}
    for threshold in (0, 0.5, 0.99, 1):
        predict(image, out, threshold, workers=0)
        counts[threshold] = len(read_predictions(out)["annotations"])
        drawing = np.asarray(Image.open(out / "predicted" / "a.jpg")).astype(int)
        is_changed = np.abs(drawing - pixels).mean() > 15  # more than JPEG changes noise
        assert is_changed == (counts[threshold] > 0)
    assert counts[0] > counts[0.5] > counts[0.99] == counts[1] == 0, "nuts have scores of about a tenth"


def test_thresholds_outside_0_to_1_are_rejected(out: Path, tmp_path: Path) -> None:
    for threshold in (-0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match=r"^threshold: "):
            predict(save_image(tmp_path / "a.png", noise(60, 80, 0)), out, threshold)
    assert not (out / "predicted").exists()


def test_the_encoders_detector_of_the_lowest_seed_is_used(tmp_path: Path) -> None:
    for name in ("untrained-0", "encoder-10", "encoder-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "detector.safetensors").touch()
    with pytest.raises(InputError, match=r"encoder-9/detector\.json"):
        predict(tmp_path, tmp_path)


def test_missing_detectors_and_images_are_rejected(out: Path, tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png", noise(60, 80, 0))
    (tmp_path / "empty").mkdir()
    for images, folder, message in (
        (image, tmp_path / "nowhere", r"^out: .*nowhere"),
        (image, out / "untrained-0", r"^out: .*untrained-0"),
        (tmp_path / "empty", out, "empty"),
        (tmp_path / "no", out, "^data: .*no"),
    ):
        with pytest.raises(InputError, match=message):
            predict(images, folder)
    assert not (out / "predicted").exists()


def test_corrupt_images_are_skipped_up_to_a_twentieth(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        save_image(tmp_path / "images" / f"{i:02}.png", noise(40, 60, i))
    (tmp_path / "images" / "07.png").write_bytes(b"no image")
    predict(tmp_path / "images", out, workers=0)
    assert files_in(out / "predicted") == [*(f"{i:02}.jpg" for i in range(20) if i != 7), "detections.json"]
    assert "07.png" in capsys.readouterr().err
    (tmp_path / "images" / "08.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"^data: 2 of 20 images"):
        predict(tmp_path / "images", out, workers=0)


def test_images_of_other_modes_are_drawn_in_color(tmp_path: Path) -> None:
    """A grayscale detector accepts every mode."""
    pixels = noise(60, 80, 0)
    gray = pixels[:, :, 0]
    modes = {"L": gray, "I;16": gray.astype(np.uint16) * 257, "RGBA": np.dstack([pixels, gray * 0 + 255])}
    for mode, values in modes.items():
        save_image(tmp_path / "images" / f"{mode}.png", values)
    save_image(tmp_path / "images" / "color.png", disc(60, 80, 0)[0])
    out = save_bolt_detector(tmp_path / "out", replace(SPEC, encoder=tiny_encoder(1).spec))
    predict(tmp_path / "images", out, threshold=0.99, workers=0)
    for mode in modes:
        drawing = np.asarray(Image.open(out / "predicted" / f"{mode}.jpg").convert("L")).astype(int)
        assert np.abs(drawing - np.asarray(Image.fromarray(pixels).convert("L"))).mean() < 25
    assert np.ptp(np.asarray(Image.open(out / "predicted" / "color.jpg")), axis=2).max() > 50


def test_images_of_a_list_and_of_an_array(out: Path, tmp_path: Path) -> None:
    """Images outside the folder of a list are drawn within ``predicted`` all the same."""
    images = [save_image(tmp_path / folder / "x.png", noise(60, 80, i)) for i, folder in enumerate(("p", "q"))]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(f"{images[0]}\n../q/x.png\n")
    before = set(files_in(tmp_path))
    predict(tmp_path / "lists" / "l.txt", out, workers=0)
    assert all(name.startswith("out/predicted/") for name in set(files_in(tmp_path)) - before)
    assert files_in(out / "predicted") == ["detections.json", "x-1.jpg", "x.jpg"]
    np.savez(tmp_path / "few.npz", images=np.stack([noise(40, 40, i) for i in range(3)]))
    save_bolt_detector(tmp_path / "other")
    predict(tmp_path / "few.npz", tmp_path / "other", workers=0)
    assert len(files_in(tmp_path / "other" / "predicted")) == 4
