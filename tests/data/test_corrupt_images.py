import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    CORRUPT_INDICES,
    CORRUPT_LATER,
    CORRUPT_WHEN_OPENED,
    LARGE,
    NUM_IMAGES,
    REASONS,
    SMALL,
    corrupt_images_in,
    empty,
    expected_reasons,
    open_and_corrupt,
    read_csv,
    truncate,
    write_photographs,
    write_text,
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


def load_batches(
    dataset: FileDataset, workers: int, epochs: int = 2, pixel_format: PixelFormat | None = None
) -> list[Batch]:
    sampler = EpochSampler(len(dataset), BATCH, seed=1)
    loader = training_loader(dataset, TwoViews(SIZE, seed=3), sampler, pixel_format or PixelFormat(), CPU, workers)
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def views_of(batches: list[Batch]) -> dict[tuple[int, int], np.ndarray]:
    return {
        (batch.epoch, index): views.numpy()
        for batch in batches
        for index, views in zip(batch.indices.tolist(), batch.images, strict=True)
    }


def test_corrupt_images_do_not_change_the_views_of_others(tmp_path: Path) -> None:
    clean_folder = write_photographs(tmp_path / "clean")
    corrupt_dataset = open_and_corrupt(write_photographs(tmp_path / "corrupt"))
    batches = load_batches(corrupt_dataset, 0)
    assert len(batches) == 2 * NUM_IMAGES // BATCH
    assert all(batch.images.shape == (BATCH, 2 * 3 * SIZE**2) for batch in batches)
    clean, with_corrupt = views_of(load_batches(open_dataset(clean_folder), 2)), views_of(batches)
    assert clean.keys() == with_corrupt.keys() == {(epoch, i) for epoch in (0, 1) for i in range(NUM_IMAGES)}
    for key, views in clean.items():
        assert np.array_equal(views, with_corrupt[key]) == (key[1] not in CORRUPT_INDICES.values())
    expected = expected_reasons(corrupt_dataset.root)
    for epoch in (0, 1):
        corrupt = dict(item for batch in batches if batch.epoch == epoch for item in batch.corrupt)
        assert corrupt.keys() == expected.keys()
        for title, reason in corrupt.items():
            assert expected[title] in reason
            assert "\n" not in reason


def test_substitutes_are_readable_images_that_vary(tmp_path: Path) -> None:
    """Each image has one gray value, which identifies it in a view."""
    for i in range(100):
        Image.new("L", (120, 100), 2 * i).save(tmp_path / f"{i:03}.png")
    corrupt_indices = [3, 40, 41, 97]
    for i in corrupt_indices:
        empty(tmp_path / f"{i:03}.png")
    gray_values = {
        key: np.unique(views)
        for key, views in views_of(load_batches(open_dataset(tmp_path), 0, 8, PixelFormat(1))).items()
    }
    assert all(len(values) == 1 for values in gray_values.values())
    sources = {key: int(values[0]) // 2 for key, values in gray_values.items()}
    assert all(source == index for (_, index), source in sources.items() if index not in corrupt_indices)
    substitutes = [source for (_, index), source in sources.items() if index in corrupt_indices]
    assert not set(substitutes) & set(corrupt_indices)
    assert len(set(substitutes)) > len(substitutes) // 2


def test_batches_stay_full_if_nearly_all_images_are_corrupt(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "data", 50)
    for path in sorted(folder.iterdir())[5:]:
        empty(path)
    batches = load_batches(open_dataset(folder), 0)
    assert all(batch.images.shape == (BATCH, 2 * 3 * SIZE**2) for batch in batches)
    assert len({item.title for batch in batches for item in batch.corrupt}) == 45
    for path in folder.iterdir():
        empty(path)
    with pytest.raises(InputError, match=r"no readable image found to replace image \d+; .*the file is empty"):
        load_batches(open_dataset(tmp_path), 0)


def test_load_into_memory_leaves_out_corrupt_images(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "data", size=SMALL)
    names = np.array(sorted(p.name for p in folder.iterdir()))
    dataset = open_and_corrupt(folder)
    dataset.labels, dataset.classes = np.arange(NUM_IMAGES), list(names)
    in_memory, corrupt = load_into_memory(dataset, PixelFormat())
    assert isinstance(in_memory, ArrayDataset)
    readable = np.setdiff1d(np.arange(NUM_IMAGES), list(CORRUPT_INDICES.values()))
    assert in_memory.labels is not None
    assert in_memory.labels.tolist() == readable.tolist()
    assert sum(map(len, in_memory.skipped.values())) == len(CORRUPT_INDICES)
    expected = [np.asarray(Image.open(folder / name)) for name in names[readable]]
    assert np.abs(in_memory.images.astype(int) - np.stack(expected)).max() <= 2
    reasons = expected_reasons(folder)
    assert [item.title for item in corrupt] == sorted(reasons)
    assert all(reasons[item.title] in item.reason for item in corrupt)


def corrupt_after_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_then_corrupt(*args: object, **options: object) -> object:
        dataset = open_dataset(*args, **options)  # type: ignore[arg-type]
        corrupt_images_in(folder, CORRUPT_LATER)
        return dataset

    monkeypatch.setattr("mec.pretraining.run.open_dataset", open_then_corrupt)


@pytest.mark.parametrize("size", [LARGE, SMALL], ids=["in workers", "in memory"])
def test_training_continues_with_four_percent_corrupt_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    folder = write_photographs(tmp_path / "data", size=size)
    corrupt_images_in(folder, CORRUPT_WHEN_OPENED)
    corrupt_after_opening(folder, monkeypatch)
    run = mec.pretrain(folder, tmp_path / "run", TINY)
    assert run.encoder().num_features == 16
    listed = read_csv(tmp_path / "run" / "corrupt.csv")
    expected = expected_reasons(folder)
    assert listed[0] == ["image", "reason"]
    assert sorted(row[0] for row in listed[1:]) == sorted(expected)
    assert all(expected[title] in reason for title, reason in listed[1:])
    assert f"skipped corrupt images: {len(REASONS)} " in capsys.readouterr().err


@pytest.mark.parametrize(("size", "make_corrupt"), [(LARGE, truncate), (SMALL, write_text)])
def test_training_stops_early_if_half_of_the_images_are_corrupt(
    tmp_path: Path, size: tuple[int, int], make_corrupt: Callable[[Path], None]
) -> None:
    folder = write_photographs(tmp_path / "data", 100, size)
    for path in sorted(folder.iterdir())[::2]:
        make_corrupt(path)
    start = time.perf_counter()
    with pytest.raises(
        InputError, match=r"^max_corrupt: \d+ of .* cannot be read, expected at most 0\.05 of all"
    ) as caught:
        mec.pretrain(folder, tmp_path / "run", replace(TINY, epochs=50))
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 30
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_max_corrupt_allows_half_of_the_images_to_be_corrupt(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "data", 2 * BATCH)
    for path in sorted(folder.iterdir())[::2]:
        empty(path)
    mec.pretrain(folder, tmp_path / "run", replace(TINY, max_corrupt=0.5))
    assert len(read_csv(tmp_path / "run" / "corrupt.csv")) == 1 + BATCH
