"""mec inspect: what is unusual about a dataset, found without training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.cli.main import main
from mec.errors import InputError
from mec.inspection import inspect


def encode(seed: int, size: tuple[int, int] = (9, 7), mode: str = "RGB", **options: object) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Splits with a duplicate within, one across, one in two classes, a corrupt, a gray and a damaged image."""
    damaged = encode(6, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x00\x00")
    images = {
        "train/cat/0.jpg": encode(0), "train/cat/1.jpg": encode(0), "train/cat/2.jpg": encode(2, (20, 30)),
        "train/dog/3.jpg": encode(3, mode="L"), "train/dog/4.jpg": b"no image", "train/dog/5.jpg": encode(2, (20, 30)),
        "train/notes.txt": b"", "test/cat/6.jpg": encode(0), "test/cat/7.jpg": damaged, "test/dog/8.jpg": encode(8),
        "extra/9.jpg": encode(9),
    }  # fmt: skip
    for name, content in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_every_split_is_described(photos: Path) -> None:
    found = inspect(photos)
    train, test = found.splits["train"], found.splits["test"]
    assert train.class_counts == {"cat": 3, "dog": 3}
    assert dict(train.pixels) == {"3 channels uint8": 4, "1 channel uint8": 1}
    assert sorted(set(train.sizes)) == [(9, 7), (20, 30)]
    assert list(train.corrupt) == [str(photos / "train/dog/4.jpg")]
    groups = [[Path(title).name for title in group] for group in train.duplicates]
    assert groups == [["0.jpg", "1.jpg"], ["2.jpg", "5.jpg"]]
    assert (test.inspected, test.duplicates) == (3, [])
    text = str(found)
    for expected in (
        "files that are no images: 1 (notes.txt)",
        "other splits: 1 (extra)",
        "a class per sub-folder of tr",
    ):
        assert expected in text
    assert "train: 1 of 6 images cannot be decoded" in found.warnings
    assert any("1 equal images are in several classes" in line and "2.jpg = " in line for line in found.warnings)
    assert any(line.startswith("1 test images are also in train") for line in found.warnings)


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (["images/0.jpg", "masks/0.jpg"], "classes look like parts of a dataset: images, masks"),
        (["cat/0.jpg", "cat/1.jpg"], "there is one class, cat"),
        (["0.jpg"], "the images have no labels"),
        (["train/cat/0.jpg", "train/dog/1.jpg", "test/cat/0.jpg"], "test: 1 classes have no image (dog)"),
        (["train/cat/0.jpg", "test/bird/0.jpg"], "labels not used: the training split lacks 1 of its classes (bird)"),
    ],
)
def test_doubtful_readings_are_warnings(tmp_path: Path, names: list[str], warning: str) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(number))
    assert any(warning in line for line in inspect(tmp_path).warnings)


def test_gray_images_of_three_channels(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8).repeat(3, axis=3)
    np.savez(tmp_path / "a.npz", images=gray)
    assert "train: all images are gray although they have 3 channels" in inspect(tmp_path / "a.npz").warnings


def test_the_command_prints_the_inspection(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(photos), "--max-images", "2"]) == 0
    output = capsys.readouterr().out
    assert "inspected   2 of 6 images, evenly spaced" in output
    assert "warning: " in output


def test_a_test_split_that_cannot_be_opened_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / "0.jpg").write_bytes(encode(0))
    found = inspect(tmp_path)
    assert list(found.splits) == ["train"]
    assert found.warnings[0].startswith("test: no image in")
    with pytest.raises(InputError, match="max_images"):
        inspect(tmp_path, max_images=0)


def photograph(seed: int, side: int = 96) -> Image.Image:
    """Return a smooth random image."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def test_near_duplicates_are_copies_of_another_size_quality_or_brightness(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (tmp_path / split / kind).mkdir(parents=True)
    for seed in range(20):
        photograph(seed).save(tmp_path / "train" / ("cat" if seed % 2 else "dog") / f"{seed}.png")
    photograph(1).resize((48, 48)).save(tmp_path / "train" / "cat" / "half.jpg", quality=90)
    photograph(2).point(lambda value: 0.8 * value + 20).save(tmp_path / "train" / "dog" / "darker.png")
    photograph(3).save(tmp_path / "test" / "cat" / "recompressed.jpg", quality=40)
    photograph(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "test" / "dog" / "flipped.png")
    (tmp_path / "test" / "cat" / "same.png").write_bytes((tmp_path / "train" / "cat" / "5.png").read_bytes())
    found = inspect(tmp_path)
    titles = {
        frozenset(Path(found.splits[split].dataset.title(index)).name for split, index in pair)
        for pair in found.near_duplicates
    }
    assert titles == {frozenset(("1.png", "half.jpg")), frozenset(("2.png", "darker.png")),
                      frozenset(("3.png", "recompressed.jpg"))}  # fmt: skip
    text = str(found)
    assert "2 pairs of near-duplicates (" in text
    assert any(line.startswith("1 test images are near-duplicates of train images (") for line in found.warnings)
    assert any(line.startswith("1 test images are also in train") for line in found.warnings)


def test_near_duplicates_are_not_searched_among_tiny_or_too_many_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect("digits").near_duplicates == []
    for seed in range(3):
        photograph(0, 64 + seed).save(tmp_path / f"{seed}.png")
    assert len(inspect(tmp_path).near_duplicates) == 3
    monkeypatch.setattr("mec.inspection.MAX_COMPARED", 2)
    found = inspect(tmp_path)
    assert found.near_duplicates == []
    assert any("near-duplicates were not searched among 3 images" in line for line in found.warnings)
