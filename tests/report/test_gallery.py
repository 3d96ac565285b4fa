import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec import evaluate
from mec.report.gallery import gallery
from tests.evaluate.tracking.crossings import crossing, narrow_encoder, write
from tests.report.runs import decoded, noisy


def drawn(path: Path, seed: int, age: int = 0, size: tuple[int, int] = (300, 600)) -> np.ndarray:
    image = noisy(seed, *size)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "JPEG", quality=95)
    for place in (path, path.parent):
        os.utime(place, (2e9 - age, 2e9 - age))
    return image


def tracked(folder: Path, task: str, names: list[str], age: int = 0) -> None:
    for seed, name in enumerate(names):
        drawn(folder / "drawn" / f"{name}.jpg", seed, age)
    (folder / "settings.json").write_text(json.dumps({"task": task, "encoder": "encoder of runs/a, s3"}))


def test_some_of_each_folder_newest_first(tmp_path: Path) -> None:
    tracked(tmp_path / "mot-s3-MOT17", "mot", ["a", "b", "c", "d"], age=50)
    tracked(tmp_path / "sot-s3-OTB", "sot", ["<script>"], age=10)
    for i in range(5):
        image = drawn(tmp_path / "detect-short" / "predicted" / "birds" / f"{i}.jpg", i, age=i)
        if i == 0:
            newest = image
    found = gallery(tmp_path)
    assert [one.alt for one in found] == [
        "sot: <script>, followed with the encoder of runs/a, s3",
        "mot: a, followed with the encoder of runs/a, s3",
        "mot: b, followed with the encoder of runs/a, s3",
        "mot: c, followed with the encoder of runs/a, s3",
        "detect: birds/0.jpg, found by the detector in detect-short",
        "detect: birds/1.jpg, found by the detector in detect-short",
        "detect: birds/2.jpg, found by the detector in detect-short",
    ]
    assert {(one.width, one.height) for one in found} == {(480, 240)}
    expected = np.asarray(Image.fromarray(newest).resize((480, 240)))
    assert np.abs(decoded(found[4]) - expected).mean() < 6


def test_what_is_damaged_or_of_others_is_passed_over(tmp_path: Path) -> None:
    assert gallery(tmp_path) == []
    tracked(tmp_path / "vos-s3-DAVIS", "vos", ["dog"])
    tracked(tmp_path / "vos-s4-DAVIS", "vos", ["cat"])
    (tmp_path / "vos-s4-DAVIS" / "settings.json").write_text("{")
    (tmp_path / "vos-s3-DAVIS" / "drawn" / "broken.jpg").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "vos-s3-DAVIS" / "drawn" / "b-png-in-fact.jpg", "PNG")
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    assert [one.alt.split(":")[1].split(",")[0] for one in gallery(tmp_path)] == [" dog"]


def test_a_small_image_stays_small(tmp_path: Path) -> None:
    drawn(tmp_path / "detect-short" / "predicted" / "a.jpg", 0, size=(20, 30))
    (found,) = gallery(tmp_path)
    assert (found.width, found.height) == (30, 20)


def test_a_frame_of_each_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from mec.evaluate.drawing.tracks import VideoWriter

    with VideoWriter(tmp_path / "davis.mp4", 10) as film:
        for i in range(5):
            film.add(noisy(i, 48, 64))
    (found,) = gallery(tmp_path)
    assert found.alt == "film: a frame of davis.mp4"
    assert np.abs(decoded(found) - noisy(2, 48, 64)).mean() < 12
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gallery(tmp_path) == []


def test_tracking_leaves_images_in_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("trackeval")
    scene = crossing(5)
    for name in ("one", "two", "three", "vier"):
        write("mots", scene, tmp_path, name)
    evaluate.mots(tmp_path / "mots", narrow_encoder(), out=tmp_path / "run" / "mots-s3-scenes")
    found = gallery(tmp_path / "run")
    assert len(found) == 3
    assert all(one.alt.startswith("mots: ") and "resnet18" in one.alt for one in found)
    shown = decoded(found[0])
    errors = [np.abs(shown - frame).mean() for frame in scene.frames]
    assert np.argmin(errors) == 2
    masked = scene.visible[:, 2].any(axis=0)
    difference = np.abs(shown - scene.frames[2]).mean(axis=2)
    assert difference[masked].mean() > 3 * difference[~masked].mean()
