import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import evaluation_loader, training_loader, training_sampler
from tests.data.datasets.shard_files import (
    CPU,
    IMAGES,
    TOTAL,
    an_epoch,
    image,
    lost_of,
    numbers_of,
    samples,
    species,
    views_of,
    write_tar,
)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 1), (1, 2), (2, 2), (3, 2)])
def test_an_epoch_shows_each_image_once_with_the_views_of_files(
    shards: Path, expected: dict[int, torch.Tensor], ranks: int, workers: int, batch: int
) -> None:
    images = open_dataset(shards)
    found = an_epoch(images, ranks, workers, batch, epoch=2)
    assert [len(batches) for batches in found] == [TOTAL // (batch * ranks)] * ranks
    assert all(len(b.indices) == batch and b.epoch == 2 and not b.lost for batches in found for b in batches)
    shown = [i for batches in found for i in numbers_of(batches)]
    assert len(shown) == len(set(shown))
    for batches in found:
        for i, views in views_of(batches).items():
            assert torch.equal(views, expected[i])


def test_numbers_of_shards_and_of_files_are_the_same(shards: Path, folder: Path) -> None:
    a, b = open_dataset(shards), open_dataset(folder)
    assert [a.load(i) for i in range(TOTAL)] == [b.load(i) for i in range(TOTAL)]


def test_epochs_and_seeds_differ_in_order(shards: Path) -> None:
    images = open_dataset(shards)
    orders = [numbers_of(an_epoch(images, epoch=e, seed=s, batch=1)[0]) for e, s in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(TOTAL)) for order in orders)
    assert all(order != list(range(TOTAL)) for order in orders)


def test_what_is_left_out_changes_even_in_a_single_shard(tmp_path: Path) -> None:
    images = open_dataset(write_tar(tmp_path / "a.tar", samples(range(10))))
    epochs = [set(numbers_of(an_epoch(images, batch=4, epoch=e)[0])) for e in range(40)]
    assert all(len(epoch) == 8 for epoch in epochs)
    times_shown = [sum(i in epoch for epoch in epochs) for i in range(10)]
    # 32 are expected; fewer than 21 has a chance below 1e-4
    assert min(times_shown) > 20


def test_a_part_of_shards_is_trained_on(shards: Path, expected: dict[int, torch.Tensor]) -> None:
    images = open_dataset(shards, every=2)
    batches = [b for rank in an_epoch(images, ranks=2, workers=2, batch=3, epoch=2) for b in rank]
    assert len(set(numbers_of(batches))) == len(numbers_of(batches)) == 12
    first = views_of(an_epoch(images.subset(np.arange(1)), batch=1, epoch=2)[0])
    assert torch.equal(first[0], expected[0])


def test_one_loader_serves_all_epochs(shards: Path) -> None:
    images = open_dataset(shards)
    sampler = training_sampler(images, 4, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers=2)
    for epoch in (0, 1, 1, 3):
        sampler.set_epoch(epoch)
        (expected,) = an_epoch(images, workers=2, epoch=epoch)
        assert numbers_of(list(loader)) == numbers_of(expected)


def test_what_is_open_here_is_opened_anew_by_each_worker(tmp_path: Path) -> None:
    contents = [image(i, "png", side=120) for i in range(24)]
    images = open_dataset(write_tar(tmp_path / "a.tar", [(f"{i:02}.png", c) for i, c in enumerate(contents)]))
    (whole,) = an_epoch(images, batch=4)
    assert images.load(2) == contents[2]
    (found,) = an_epoch(images, workers=2, batch=4)
    assert not lost_of(found)
    for i, views in views_of(found).items():
        assert torch.equal(views, views_of(whole)[i])
    assert images.load(3) == contents[3]


def cut_short(path: Path, number: int) -> None:
    """Within the image of sample ``number``."""
    with tarfile.open(path) as tar:
        (at,) = [m.offset_data + m.size // 2 for m in tar if m.name == f"{number:04}.jpg"]
    with path.open("r+b") as file:
        file.truncate(at)


def cut_label_off(path: Path, number: int) -> None:
    with tarfile.open(path) as tar:
        (at,) = [m.offset + 100 for m in tar if m.name == f"{number - 1:04}.cls"]
    with path.open("r+b") as file:
        file.truncate(at)


def fill_with_garbage(path: Path, number: int) -> None:
    """From the header of sample ``number`` on, for a while."""
    with tarfile.open(path) as tar:
        (at,) = [m.offset for m in tar if m.name == f"{number:04}.jpg"]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(np.random.default_rng(0).bytes(700))


DAMAGES = [cut_short, fill_with_garbage]
Damage = Callable[[Path, int], None]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("labeled", [True, False])
def test_a_damaged_shard_gives_what_comes_before(tmp_path: Path, damage: Damage, labeled: bool) -> None:
    damage(write_tar(tmp_path / "a.tar", samples(range(12), labeled)), 8)
    write_tar(tmp_path / "b.tar", samples(range(12, 15), labeled))
    images = open_dataset(tmp_path)
    assert (len(images), images.ignored_files) == (11, 1)
    assert [images.load(i) for i in range(11)] == IMAGES[:8] + IMAGES[12:15]
    if labeled:
        assert [images.classes[i] for i in images.labels] == [species(i) for i in (*range(8), 12, 13, 14)]
    (batches,) = an_epoch(images, workers=2, batch=1)
    assert (sorted(numbers_of(batches)), lost_of(batches)) == (list(range(11)), set())


def test_a_image_whose_label_is_lost_is_left_out(tmp_path: Path) -> None:
    cut_label_off(write_tar(tmp_path / "a.tar", samples(range(6))), 4)
    images = open_dataset(tmp_path)
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(3)]


def test_a_cut_gzip_gives_what_comes_before(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", samples(range(12)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = open_dataset(path)
    assert 3 <= len(images) <= 8
    assert [images.load(i) for i in range(len(images))] == IMAGES[: len(images)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_over_a_damaged_shard(tmp_path: Path, damage: Damage, workers: int) -> None:
    """A single shard of 12, 4 of them readable: one of two workers may have nothing but what is lost."""
    damage(write_tar(tmp_path / "a.tar", samples(range(12))), 4)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    images = open_dataset(tmp_path, "pretrain")
    sampler = training_sampler(images, 2, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(numbers_of(batches)) == list(range(12))
        assert all(b.images.shape == (2, 2, 3, 16, 16) for b in batches)
        assert lost_of(batches) == {f"{tmp_path / 'a.tar'}, image {i}" for i in range(4, 12)}
        assert all(re.match(r"the shard broke off \(.+\)$", lost.reason) for b in batches for lost in b.lost)


def test_measuring_passes_over_what_is_lost(tmp_path: Path) -> None:
    cut_short(write_tar(tmp_path / "a.tar", samples(range(12))), 8)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    images = open_dataset(tmp_path, "pretrain")
    batches = list(evaluation_loader(images, PixelFormat(), 16, batch=5, workers=2))
    assert sorted(numbers_of(batches)) == list(range(8))
    assert len(lost_of(batches)) == 4
