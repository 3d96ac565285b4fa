"""Images of the page: embedded images, training views, detections and tracks."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec import evaluate
from mec.data.pixels import pad_to_square, resize_longer_side, to_pil
from mec.errors import InputError
from mec.pretraining import Recipe
from mec.pretraining.contact_sheet import training_views
from mec.report.images import embed_image, embed_sprites, embed_views, load_gallery, printable
from mec.report.record import Missing
from tests.evaluate.tracking.crossings import crossing, write_scene
from tests.report.runs import decode, make_run, narrow_encoder, smooth_noise, thumbnail


def test_sprites_are_in_row_major_order() -> None:
    squares = [smooth_noise(i, 16, 16) for i in range(7)]
    sheet = embed_sprites([Image.fromarray(square) for square in squares], 16)
    assert (sheet.columns, sheet.cell_size) == (3, 16)
    assert decode(sheet).shape == (48, 48, 3)
    for index in range(7):
        errors = [np.abs(thumbnail(sheet, index) - square).mean() for square in squares]
        assert np.argmin(errors) == index
        assert errors[index] < 12
    assert embed_sprites([Image.fromarray(squares[0])], 16).columns == 1


def test_an_embedded_image_has_size_and_alt_text() -> None:
    embedded = embed_image(Image.fromarray(smooth_noise(3, 20, 50)), '<script>"&')
    assert (embedded.width, embedded.height, embedded.alt) == (50, 20, '<script>"&')
    assert np.abs(decode(embedded) - smooth_noise(3, 20, 50)).mean() < 12


def test_any_number_of_channels_converts_to_rgb_and_the_longer_side_is_resized() -> None:
    for channels in (1, 2, 3, 5):
        values = smooth_noise(1, 4, 6, channels)
        expected = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=2)
        assert np.array_equal(np.asarray(to_pil(values)), expected)
        assert np.array_equal(np.asarray(to_pil(values.astype(np.float32) / 255)), expected)
    assert resize_longer_side(smooth_noise(0, 10, 40), 20).size == (20, 5)
    assert resize_longer_side(smooth_noise(0, 1, 400), 20).size == (20, 1)
    square = np.asarray(pad_to_square(np.zeros((10, 40, 3), np.uint8), 20))
    assert square[7:12].max() == 0  # rows 7 to 11, centered
    assert np.array_equal(np.unique(np.concatenate([square[:7], square[12:]])), [255])
    assert printable("köder \udcff.jpg") == "köder ?.jpg"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "images & <b>names"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(smooth_noise(i, 60, 80)).save(folder / f"<i>{i}.png")
    (folder / "corrupt.png").write_bytes(b"no image")
    return folder


def test_views_are_those_of_the_first_epochs(data: Path, tmp_path: Path) -> None:
    rows = embed_views(make_run(tmp_path / "run", data, seed=3), None)
    assert isinstance(rows, list)
    assert [len(row.pairs) for row in rows] == [3] * 4
    samples = training_views(data, Recipe(image_size=32, seed=3), 4, 3)
    for row, sample in zip(rows, samples, strict=True):
        assert row.image.alt == Path(sample.title).name
        assert (row.image.width, row.image.height) == (96, 72)
        photograph = np.asarray(Image.open(sample.title).resize((96, 72)))
        assert np.abs(decode(row.image) - photograph).mean() < 8
        for epoch, (pair, tensors) in enumerate(zip(row.pairs, sample.pairs, strict=True), 1):
            for index, (view, x) in enumerate(zip(pair, tensors, strict=True), 1):
                assert view.alt == f"view {index} of {row.image.alt}, epoch {epoch}"
                values = np.rint(x.permute(1, 2, 0).numpy() * 255).clip(0, 255).astype(np.uint8)
                assert np.abs(decode(view) - np.asarray(Image.fromarray(values).resize((96, 96)))).mean() < 12


def test_views_of_16_bit_grayscale_images_are_gray(tmp_path: Path) -> None:
    images = np.stack([smooth_noise(i, channels=1).astype(np.uint16) * 256 for i in range(4)])
    np.savez(tmp_path / "a.npz", images=images)
    run = make_run(tmp_path / "run", tmp_path / "a.npz", narrow_encoder(channels=1))
    rows = embed_views(run, None)
    assert isinstance(rows, list)
    gray = decode(rows[0].image)
    assert np.abs(gray - gray.mean(axis=2, keepdims=True)).max() < 3
    assert gray.std() > 5


def test_missing_images_and_recipes_are_reported(data: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tmp_path / "gone")
    missing = embed_views(run, None)
    assert isinstance(missing, Missing)
    assert "gone does not exist" in missing.reason
    assert "--data" in missing.reason
    assert isinstance(embed_views(run, data), list)
    with pytest.raises(InputError, match="nowhere does not exist"):
        embed_views(run, "nowhere")
    (run / "recipe.yaml").write_text("no: recipe")
    missing = embed_views(run, data)
    assert isinstance(missing, Missing)
    assert "recipe" in missing.reason


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
    images, unreadable = load_gallery(tmp_path)
    assert unreadable == []
    names = ("sot: <script>", "mot: a", "mot: b", "mot: c")
    tracked = [f"{name}, tracked with the encoder of runs/a, s3" for name in names]
    predicted = [f"detect: birds/{i}.jpg, predicted by the detector in detect-short" for i in range(3)]
    assert [image.alt for image in images] == tracked + predicted
    assert {(image.width, image.height) for image in images} == {(480, 240)}
    expected = np.asarray(Image.fromarray(newest).resize((480, 240)))
    assert np.abs(decode(images[4]) - expected).mean() < 6
    write_image(tmp_path / "small" / "predicted" / "a.jpg", 0, size=(20, 30))
    ((small,), _) = load_gallery(tmp_path / "small")
    assert (small.width, small.height) == (30, 20)  # not enlarged


def test_damaged_and_foreign_files_are_counted_and_named(tmp_path: Path) -> None:
    assert load_gallery(tmp_path) == ([], [])
    write_previews(tmp_path / "vos-s3-DAVIS", "vos", ["dog"])
    write_previews(tmp_path / "vos-s4-DAVIS", "vos", ["cat"])
    (tmp_path / "vos-s4-DAVIS" / "settings.json").write_text("{")
    (tmp_path / "vos-s3-DAVIS" / "previews" / "corrupt.jpg").write_bytes(b"no image")
    Image.new("RGB", (4, 4)).save(tmp_path / "vos-s3-DAVIS" / "previews" / "png-with-wrong-suffix.jpg", "PNG")
    (tmp_path / "corrupt.mp4").write_bytes(b"no video")
    images, (note,) = load_gallery(tmp_path)
    assert [image.alt.split(":")[1].split(",")[0] for image in images] == [" dog"]
    assert note.startswith("Detections and tracks: 4 cannot be read and are not shown (")
    for name in ("vos-s4-DAVIS/settings.json", "previews/corrupt.jpg", "png-with-wrong-suffix.jpg", "corrupt.mp4 ("):
        assert name in note


def test_a_frame_of_each_video_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    from mec.evaluate.tracking.datasets.video import VideoWriter

    with VideoWriter(tmp_path / "davis.mp4", 10) as video:
        for i in range(5):
            video.add(smooth_noise(i, 48, 64))
    ((image,), _) = load_gallery(tmp_path)
    assert image.alt == "video: a frame of davis.mp4"
    assert np.abs(decode(image) - smooth_noise(2, 48, 64)).mean() < 12
    monkeypatch.setitem(sys.modules, "av", None)
    images, (note,) = load_gallery(tmp_path)
    assert images == []
    assert "1 cannot be read and are not shown (davis.mp4 (" in note


def test_previews_of_a_tracking_run_are_shown(tmp_path: Path) -> None:
    pytest.importorskip("trackeval")
    scene = crossing(5)
    for name in ("first", "second", "third", "fourth"):
        write_scene("mots", scene, tmp_path, name)
    evaluate.mots(tmp_path / "mots", narrow_encoder(), out=tmp_path / "run" / "mots-s3-scenes")
    images, _ = load_gallery(tmp_path / "run")
    assert len(images) == 3
    assert all(image.alt.startswith("mots: ") and "resnet18" in image.alt for image in images)
    preview = decode(images[0])
    errors = [np.abs(preview - frame).mean() for frame in scene.frames]
    assert np.argmin(errors) == 2
    masked = scene.visible[:, 2].any(axis=0)
    difference = np.abs(preview - scene.frames[2]).mean(axis=2)
    assert difference[masked].mean() > 3 * difference[~masked].mean()
