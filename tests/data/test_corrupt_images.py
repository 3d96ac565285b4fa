import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mec
from mec.data import ArrayDataset, FileDataset, TwoViews, open_dataset
from mec.data.analysis import load_into_memory
from mec.data.loaders import EpochSampler, training_loader
from mec.data.pixels import PixelFormat
from mec.data.transforms.crop import Batch
from mec.errors import InputError
from mec.pretraining import ProjectorSettings, Recipe
from tests.data.corrupt_files import (
    BATCH,
    BEFORE,
    BROKEN,
    IMAGES,
    LARGE,
    LATER,
    SMALL,
    WAYS,
    break_in,
    cut_off,
    emptied,
    expected_reasons,
    opened_and_broken,
    photographs,
    rows,
    text,
)

CPU = torch.device("cpu")
SIZE = 32
TINY = Recipe(
    backbone="resnet18",
    backbone_options={"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]},
    image_size=16,
    epochs=2,
    batch_size=BATCH,
    workers=2,
    projector=ProjectorSettings(16, 8),
    precision="32-true",
    accelerator="cpu",
)


def batches(images: FileDataset, workers: int, epochs: int = 2, reading: PixelFormat | None = None) -> list[Batch]:
    sampler = EpochSampler(len(images), BATCH, seed=1)
    loader = training_loader(images, TwoViews(SIZE, seed=3), sampler, reading or PixelFormat(), CPU, workers)
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found += list(loader)
    return found


def views_of(found: list[Batch]) -> dict[tuple[int, int], np.ndarray]:
    return {
        (batch.epoch, number): views.numpy()
        for batch in found
        for number, views in zip(batch.indices.tolist(), batch.images, strict=True)
    }


def quiet() -> Console:
    return Console(file=StringIO())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> FileDataset:
    return opened_and_broken(photographs(tmp_path_factory.mktemp("partly") / "data"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_changes_nothing_for_the_others(whole: Path, partly: FileDataset, workers: int) -> None:
    found = batches(partly, workers)
    assert len(found) == 2 * IMAGES // BATCH
    assert all(batch.images.shape == (BATCH, 2, 3, SIZE, SIZE) for batch in found)
    good, mixed = views_of(batches(open_dataset(whole), 0)), views_of(found)
    assert good.keys() == mixed.keys() == {(epoch, i) for epoch in (0, 1) for i in range(IMAGES)}
    for key, views in good.items():
        assert np.array_equal(views, mixed[key]) == (key[1] not in BROKEN.values())


def test_what_takes_their_places_is_the_same_for_any_workers(partly: FileDataset) -> None:
    alone, several = batches(partly, 0), batches(partly, 2)
    for a, b in zip(alone, several, strict=True):
        assert np.array_equal(a.indices, b.indices)
        assert torch.equal(a.images, b.images)
        assert sorted(a.lost) == sorted(b.lost)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_lost_are_named_with_their_reasons(partly: FileDataset, workers: int) -> None:
    expected = expected_reasons(partly.root)
    for epoch in (0, 1):
        lost = dict(item for batch in batches(partly, workers) if batch.epoch == epoch for item in batch.lost)
        assert lost.keys() == expected.keys()
        for title, reason in lost.items():
            assert expected[title] in reason
            assert "\n" not in reason


def test_places_are_taken_by_whole_images_each_time_others(tmp_path: Path) -> None:
    """Every image of one tone: a view tells which image it was cut from."""
    for i in range(100):
        Image.new("L", (120, 100), 2 * i).save(tmp_path / f"{i:03}.png")
    broken = [3, 40, 41, 97]
    for i in broken:
        emptied(tmp_path / f"{i:03}.png")
    tones = {
        key: np.unique(views) for key, views in views_of(batches(open_dataset(tmp_path), 0, 8, PixelFormat(1))).items()
    }
    assert all(len(found) == 1 for found in tones.values())
    sources = {key: int(found[0]) // 2 for key, found in tones.items()}
    assert all(source == number for (_, number), source in sources.items() if number not in broken)
    places = [source for (_, number), source in sources.items() if number in broken]
    assert not set(places) & set(broken)
    assert len(set(places)) > len(places) // 2


def test_where_nearly_all_are_broken_batches_are_whole_still(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", 50)
    for path in sorted(folder.iterdir())[5:]:
        emptied(path)
    found = batches(open_dataset(folder), 2)
    assert all(batch.images.shape == (BATCH, 2, 3, SIZE, SIZE) for batch in found)
    assert len({item.title for batch in found for item in batch.lost}) == 45


def test_where_none_is_left_it_is_said(tmp_path: Path) -> None:
    for path in photographs(tmp_path / "data", 25).iterdir():
        emptied(path)
    with pytest.raises(InputError, match=r"no image could be read in place of image \d+; .*the file is empty"):
        batches(open_dataset(tmp_path), 0)


def test_small_images_are_sorted_out_as_they_are_decoded(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", size=SMALL)
    names = np.array(sorted(p.name for p in folder.iterdir()))
    images = opened_and_broken(folder)
    images.labels, images.classes = np.arange(IMAGES), list(names)
    settled, lost = load_into_memory(images, PixelFormat())
    assert isinstance(settled, ArrayDataset)
    kept = np.setdiff1d(np.arange(IMAGES), list(BROKEN.values()))
    assert settled.labels is not None
    assert settled.labels.tolist() == kept.tolist()
    assert settled.ignored_files == len(BROKEN)
    expected = [np.asarray(Image.open(folder / name)) for name in names[kept]]
    assert np.abs(settled.images.astype(int) - np.stack(expected)).max() <= 2
    reasons = expected_reasons(folder)
    assert [item.title for item in lost] == sorted(reasons)
    assert all(reasons[item.title] in item.reason for item in lost)


def break_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_break(*args: object, **options: object) -> object:
        images = open_dataset(*args, **options)  # type: ignore[arg-type]
        break_in(folder, LATER)
        return images

    monkeypatch.setattr("mec.pretraining.run.open_dataset", open_and_break)


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["by workers", "in memory"])
def test_training_passes_over_four_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    folder = photographs(tmp_path / "data", size=size)
    break_in(folder, BEFORE)
    break_later(folder, monkeypatch)
    console = quiet()
    run = mec.pretrain(folder, tmp_path / "run", TINY, console=console)
    assert run.encoder().num_features == 16
    listed = rows(tmp_path / "run" / "skipped.csv")
    expected = expected_reasons(folder)
    assert listed[0] == ["image", "reason"]
    assert sorted(row[0] for row in listed[1:]) == sorted(expected)
    assert all(expected[title] in reason for title, reason in listed[1:])
    assert f"skipped {len(WAYS)} that could not be read" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["by workers", "in memory"])
@pytest.mark.parametrize("way", [cut_off, emptied, text])
def test_training_ends_at_once_where_half_is_broken(
    tmp_path: Path, size: tuple[int, int], way: Callable[[Path], None]
) -> None:
    folder = photographs(tmp_path / "data", 100, size)
    for path in sorted(folder.iterdir())[::2]:
        way(path)
    before = time.perf_counter()
    with pytest.raises(InputError, match=r"^max_corrupt: \d+ of .* cannot be read, at most 0\.05 of all") as caught:
        mec.pretrain(folder, tmp_path / "run", replace(TINY, epochs=50), console=quiet())
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - before < 30
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_half_may_be_broken_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", 2 * BATCH)
    for path in sorted(folder.iterdir())[::2]:
        emptied(path)
    mec.pretrain(folder, tmp_path / "run", replace(TINY, max_corrupt=0.5), console=quiet())
    assert len(rows(tmp_path / "run" / "skipped.csv")) == 1 + BATCH
