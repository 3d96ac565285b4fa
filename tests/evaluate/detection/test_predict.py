import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from faster_coco_eval import mask as coco_mask
from PIL import Image

from mec.errors import InputError
from mec.evaluate.detection.detectors import DetectorSpec, save_detector
from mec.evaluate.detection.predict import open_images_to_predict, predict
from tests.evaluate.detection.scenes import QUICK, disc, noise, tiny_encoder

SPEC = DetectorSpec(tiny_encoder().spec, "c4", ["nut", "bolt"], [3, 9], True, QUICK)


def detector_in(folder: Path, spec: DetectorSpec = SPEC) -> Path:
    """One that takes everything for a bolt, with a score of about e^2 of e^2 + 2."""
    torch.manual_seed(0)
    detector = spec.build(tiny_encoder(spec.encoder.channels))
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[2] = 2
    save_detector(detector, spec, folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector_in(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """As detect leaves it."""
    for name in ("encoder-0", "untrained-0"):
        (tmp_path / "out" / name).mkdir(parents=True)
    for path in trained.iterdir():
        (tmp_path / "out" / "encoder-0" / path.name).symlink_to(path)
    return tmp_path / "out"


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def drawn(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "predicted" / "detections.json").read_text())
    return content


def test_images_are_drawn_under_their_own_names(out: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    for i, name in enumerate(("a.png", "a.jpg", "b/a.jpg", "b/c/d.e.bmp", "a-2.jpg", "é ü.png")):
        save(images / name, disc(60 + i, 80, i)[0])
    before = [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    assert predict(images, out, workers=0) == out / "predicted"
    names = [name for name in drawn(out / "predicted") if name != "detections.json"]
    assert len(names) == 6
    assert {"a.jpg", "b/a.jpg", "b/c/d.e.jpg", "é ü.jpg"} < set(names)
    content = described(out)
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in content["images"]}
    assert sorted(sizes) == sorted(["a.png", "a.jpg", "b/a.jpg", "b/c/d.e.bmp", "a-2.jpg", "é ü.png"])
    for name in names:
        with Image.open(out / "predicted" / name) as image:
            assert image.size in sizes.values()
    heights = sorted(Image.open(out / "predicted" / name).height for name in names)
    assert heights == [60, 61, 62, 63, 64, 65], "none was written over another"
    after = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and "predicted" not in p.parts]
    assert [(p, p.stat().st_mtime_ns) for p in after] == before


def test_the_detections_are_a_data_set_in_cocos_format(out: Path, tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / "images" / f"{i}.png", disc(60, 80, i)[0])
    predict(tmp_path / "images", out, workers=0)
    content = described(out)
    assert content["categories"] == [{"id": 3, "name": "nut"}, {"id": 9, "name": "bolt"}]
    annotations = content["annotations"]
    assert [one["id"] for one in annotations] == list(range(1, len(annotations) + 1))
    read = COCO(str(out / "predicted" / "detections.json"))
    assert set(read.getImgIds()) == {0, 1, 2}
    for one in annotations:
        assert one["category_id"] == 9
        assert one["score"] == pytest.approx(np.e**2 / (np.e**2 + 2), abs=0.02)
        assert one["iscrowd"] == 0
        x, y, width, height = one["bbox"]
        assert min(x, y) >= 0
        assert x + width <= 80.001
        assert y + height <= 60.001
        assert one["segmentation"]["size"] == [60, 80]
        assert one["area"] == coco_mask.decode(one["segmentation"]).sum()
    assert {one["image_id"] for one in annotations} == {0, 1, 2}


def test_without_masks_the_area_is_the_boxs(tmp_path: Path) -> None:
    detector_in(tmp_path / "out", replace(SPEC, masks=False))
    image = save(tmp_path / "a.png", disc(60, 80, 0)[0])
    predict(image, tmp_path / "out", workers=0)
    assert drawn(tmp_path / "out" / "predicted") == ["a.jpg", "detections.json"]
    for one in described(tmp_path / "out")["annotations"]:
        assert "segmentation" not in one
        assert one["area"] == pytest.approx(one["bbox"][2] * one["bbox"][3])


def test_thresholds(out: Path, tmp_path: Path) -> None:
    pixels = noise(60, 80, 0)
    image = save(tmp_path / "a.png", pixels)
    counts = {}
    for threshold in (0, 0.5, 0.99, 1):
        predict(image, out, threshold, workers=0)
        counts[threshold] = len(described(out)["annotations"])
        again = np.asarray(Image.open(out / "predicted" / "a.jpg")).astype(int)
        changed = np.abs(again - pixels).mean() > 15  # of JPEG on noise
        assert changed == (counts[threshold] > 0)
    assert counts[0] > counts[0.5] > counts[0.99] == counts[1] == 0, "nuts have scores of about a tenth"


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_thresholds_that_are_none(out: Path, tmp_path: Path, threshold: float) -> None:
    with pytest.raises(InputError, match="threshold: expected a number from 0 to 1, got"):
        predict(save(tmp_path / "a.png", noise(60, 80, 0)), out, threshold)
    assert not (out / "predicted").exists()


def test_one_detectors_folder(out: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", noise(60, 80, 0))
    assert predict(str(image), str(out / "encoder-0"), workers=0) == out / "encoder-0" / "predicted"
    assert drawn(out / "encoder-0" / "predicted") == ["a.jpg", "detections.json"]


def test_the_first_seed_of_the_encoder_is_taken(tmp_path: Path) -> None:
    for name in ("untrained-0", "encoder-10", "encoder-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "detector.safetensors").touch()
    with pytest.raises(InputError, match=r"encoder-9/detector\.json"):
        predict(tmp_path, tmp_path)


def test_nothing_to_predict_with_or_on(out: Path, tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", noise(60, 80, 0))
    for folder in (tmp_path / "nowhere", out / "untrained-0"):
        with pytest.raises(InputError, match="holds no trained detector; mec evaluate detect DATA --encoder E"):
            predict(image, folder)
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "empty", "no image in"), (tmp_path / "no", "data: .*no does not exist")):
        with pytest.raises(InputError, match=message):
            predict(source, out)
    assert not (out / "predicted").exists()


def test_broken_images_are_left_out_or_too_many(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        save(tmp_path / "images" / f"{i:02}.png", noise(40, 60, i))
    (tmp_path / "images" / "07.png").write_bytes(b"no image")
    predict(tmp_path / "images", out, workers=0)
    assert drawn(out / "predicted") == [*(f"{i:02}.jpg" for i in range(20) if i != 7), "detections.json"]
    assert "skipped 1 that could not be read; the first:" in capsys.readouterr().err
    (tmp_path / "images" / "08.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="2 of 20 images cannot be read"):
        predict(tmp_path / "images", out, workers=0)


@pytest.mark.parametrize("kind", ["L", "I;16", "RGBA"])
def test_images_of_other_kinds(out: Path, tmp_path: Path, kind: str) -> None:
    pixels = noise(60, 80, 0)
    gray = pixels[:, :, 0]
    pixels = {"L": gray, "I;16": gray.astype(np.uint16) * 257, "RGBA": np.dstack([pixels, gray * 0 + 255])}[kind]
    predict(save(tmp_path / "a.png", pixels), out, threshold=0.99, workers=0)
    again = np.asarray(Image.open(out / "predicted" / "a.jpg").convert("L")).astype(int)
    assert again.shape == (60, 80)
    assert np.abs(again - np.asarray(Image.fromarray(noise(60, 80, 0)).convert("L"))).mean() < 25


def test_a_detector_of_gray_images(tmp_path: Path) -> None:
    detector_in(tmp_path / "out", replace(SPEC, encoder=tiny_encoder(1).spec))
    predict(save(tmp_path / "a.png", disc(60, 80, 0)[0]), tmp_path / "out", threshold=0.99, workers=0)
    assert np.ptp(np.asarray(Image.open(tmp_path / "out" / "predicted" / "a.jpg")), axis=2).max() > 50, "in color"


def test_lists_and_arrays(out: Path, tmp_path: Path) -> None:
    """Names beyond the folder of a list stay within ``predicted``."""
    far = [save(tmp_path / part / "x.png", noise(60, 80, i)) for i, part in enumerate(("p", "q"))]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(f"{far[0]}\n../q/x.png\n")
    before = set(drawn(tmp_path))
    predict(tmp_path / "lists" / "l.txt", out, workers=0)
    assert all(name.startswith("out/predicted/") for name in set(drawn(tmp_path)) - before)
    assert drawn(out / "predicted") == ["detections.json", "x-1.jpg", "x.jpg"]
    np.savez(tmp_path / "few.npz", images=np.stack([noise(40, 40, i) for i in range(3)]))
    detector_in(tmp_path / "other")
    predict(tmp_path / "few.npz", tmp_path / "other", workers=0)
    assert len(drawn(tmp_path / "other" / "predicted")) == 4


def test_a_video(out: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 80, 64, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(disc(64, 80, i)[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = len(open_images_to_predict(tmp_path / "film.mp4"))
    assert frames >= 1
    predict(tmp_path / "film.mp4", out, workers=0)
    assert len(drawn(out / "predicted")) == frames + 1
    assert {(one["width"], one["height"]) for one in described(out)["images"]} == {(80, 64)}
