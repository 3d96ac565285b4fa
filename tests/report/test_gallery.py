"""Images of detection and tracking in the report."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec import evaluate
from mec.report.gallery import load_gallery
from tests.evaluate.tracking.crossings import crossing, narrow_encoder, write_scene
from tests.report.runs import decode, smooth_noise


def write_image(path: Path, seed: int, age: int = 0, size: tuple[int, int] = (300, 600)) -> np.ndarray:
    image = smooth_noise(seed, *size)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "JPEG", quality=95)
    for modified in (path, path.parent):
        os.utime(modified, (2e9 - age, 2e9 - age))
    return image


def write_previews(folder: Path, task: str, names: list[str], age: int = 0) -> None:
    for seed, name in enumerate(names):
        write_image(folder / "previews" / f"{name}.jpg", seed, age)
    (folder / "settings.json").write_text(json.dumps({"task": task, "encoder": "encoder of runs/a, s3"}))


def test_the_first_images_of_each_folder_newest_folders_first(tmp_path: Path) -> None:
    write_previews(tmp_path / "mot-s3-MOT17", "mot", ["a", "b", "c", "d"], age=50)
    write_previews(tmp_path / "sot-s3-OTB", "sot", ["<script>"], age=10)
    for i in range(5):
        image = write_image(tmp_path / "detect-short" / "predicted" / "birds" / f"{i}.jpg", i, age=i)
        if i == 0:
            newest = image
    images = load_gallery(tmp_path)
    assert [image.alt for image in images] == [
        "sot: <script>, tracked with the encoder of runs/a, s3",
        "mot: a, tracked with the encoder of runs/a, s3",
        "mot: b, tracked with the encoder of runs/a, s3",
        "mot: c, tracked with the encoder of runs/a, s3",
        "detect: birds/0.jpg, predicted by the detector in detect-short",
        "detect: birds/1.jpg, predicted by the detector in detect-short",
        "detect: birds/2.jpg, predicted by the detector in detect-short",
    ]
    assert {(image.width, image.height) for image in images} == {(480, 240)}
    expected = np.asarray(Image.fromarray(newest).resize((480, 240)))
    assert np.abs(decode(images[4]) - expected).mean() < 6


def test_damaged_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    assert load_gallery(tmp_path) == []
    write_previews(tmp_path / "vos-s3-DAVIS", "vos", ["dog"])
    write_previews(tmp_path / "vos-s4-DAVIS", "vos", ["cat"])
    (tmp_path / "vos-s4-DAVIS" / "settings.json").write_text("{")
    (tmp_path / "vos-s3-DAVIS" / "previews" / "corrupt.jpg").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "vos-s3-DAVIS" / "previews" / "png-with-wrong-suffix.jpg", "PNG")
    (tmp_path / "corrupt.mp4").write_bytes(b"no video")
    assert [image.alt.split(":")[1].split(",")[0] for image in load_gallery(tmp_path)] == [" dog"]


def test_a_small_image_is_not_enlarged(tmp_path: Path) -> None:
    write_image(tmp_path / "detect-short" / "predicted" / "a.jpg", 0, size=(20, 30))
    (image,) = load_gallery(tmp_path)
    assert (image.width, image.height) == (30, 20)


def test_a_frame_of_each_video_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from mec.evaluate.drawing.video import VideoWriter

    with VideoWriter(tmp_path / "davis.mp4", 10) as video:
        for i in range(5):
            video.add(smooth_noise(i, 48, 64))
    (image,) = load_gallery(tmp_path)
    assert image.alt == "video: a frame of davis.mp4"
    assert np.abs(decode(image) - smooth_noise(2, 48, 64)).mean() < 12
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert load_gallery(tmp_path) == []


def test_previews_of_a_tracking_run_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("trackeval")
    scene = crossing(5)
    for name in ("first", "second", "third", "fourth"):
        write_scene("mots", scene, tmp_path, name)
    evaluate.mots(tmp_path / "mots", narrow_encoder(), out=tmp_path / "run" / "mots-s3-scenes")
    images = load_gallery(tmp_path / "run")
    assert len(images) == 3
    assert all(image.alt.startswith("mots: ") and "resnet18" in image.alt for image in images)
    preview = decode(images[0])
    errors = [np.abs(preview - frame).mean() for frame in scene.frames]
    assert np.argmin(errors) == 2
    masked = scene.visible[:, 2].any(axis=0)
    difference = np.abs(preview - scene.frames[2]).mean(axis=2)
    assert difference[masked].mean() > 3 * difference[~masked].mean()
