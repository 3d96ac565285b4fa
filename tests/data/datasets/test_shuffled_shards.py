import os
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
    class_name,
    corrupt_titles,
    encode_image,
    indices_of,
    load_epoch,
    sample_members,
    views_of,
    write_tar,
)


@pytest.mark.parametrize(("world_size", "workers", "batch_size"), [(1, 0, 4), (1, 2, 1), (2, 1, 3), (3, 2, 4)])
def test_epoch_has_each_image_once_with_the_views_of_files(
    shards: Path, expected: dict[int, torch.Tensor], world_size: int, workers: int, batch_size: int
) -> None:
    dataset = open_dataset(shards)
    ranks = load_epoch(dataset, world_size, workers, batch_size, epoch=2)
    assert [len(batches) for batches in ranks] == [TOTAL // (batch_size * world_size)] * world_size
    assert all(len(b.indices) == batch_size and b.epoch == 2 and not b.corrupt for batches in ranks for b in batches)
    indices = [i for batches in ranks for i in indices_of(batches)]
    assert len(indices) == len(set(indices))
    for batches in ranks:
        for i, views in views_of(batches).items():
            assert torch.equal(views, expected[i])


def test_order_depends_on_epoch_and_seed(shards: Path) -> None:
    dataset = open_dataset(shards)
    epochs_and_seeds = ((0, 0), (1, 0), (0, 1), (0, 0))
    orders = [indices_of(load_epoch(dataset, epoch=e, seed=s, batch_size=1)[0]) for e, s in epochs_and_seeds]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(TOTAL)) for order in orders)
    assert all(order != list(range(TOTAL)) for order in orders)


def test_images_left_out_change_even_in_a_single_shard(tmp_path: Path) -> None:
    dataset = open_dataset(write_tar(tmp_path / "a.tar", sample_members(range(10))))
    epochs = [set(indices_of(load_epoch(dataset, batch_size=4, epoch=e)[0])) for e in range(40)]
    assert all(len(epoch) == 8 for epoch in epochs)
    counts = [sum(i in epoch for epoch in epochs) for i in range(10)]
    # 32 are expected; the probability of fewer than 21 is below 1e-4
    assert min(counts) > 20


def test_training_on_a_subset_of_shards(shards: Path, expected: dict[int, torch.Tensor]) -> None:
    dataset = open_dataset(shards, subsample=2)
    batches = [b for rank in load_epoch(dataset, world_size=2, workers=2, batch_size=3, epoch=2) for b in rank]
    assert len(set(indices_of(batches))) == len(indices_of(batches)) == 12
    first = views_of(load_epoch(dataset.subset(np.arange(1)), batch_size=1, epoch=2)[0])
    assert torch.equal(first[0], expected[0])


def test_each_worker_opens_its_own_shards(tmp_path: Path) -> None:
    contents = [encode_image(i, "png", side=120) for i in range(24)]
    dataset = open_dataset(write_tar(tmp_path / "a.tar", [(f"{i:02}.png", c) for i, c in enumerate(contents)]))
    (expected,) = load_epoch(dataset, batch_size=4)
    assert dataset.load(2) == contents[2]
    (batches,) = load_epoch(dataset, workers=2, batch_size=4)
    assert not corrupt_titles(batches)
    for i, views in views_of(batches).items():
        assert torch.equal(views, views_of(expected)[i])
    assert dataset.load(3) == contents[3]


def header_position(path: Path, name: str) -> int:
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def truncate_in_image(path: Path, number: int) -> None:
    """Truncate a shard inside the image of sample ``number``, after its header of 512 bytes."""
    os.truncate(path, header_position(path, f"{number:04}.jpg") + 512 + 300)


def truncate_before_label(path: Path, number: int) -> None:
    """Truncate a shard inside the header of the label of sample ``number``."""
    os.truncate(path, header_position(path, f"{number:04}.cls") + 100)


def overwrite_header(path: Path, number: int) -> None:
    """Write random bytes over the header of sample ``number`` and the start of its image."""
    with path.open("r+b") as file:
        file.seek(header_position(path, f"{number:04}.jpg"))
        file.write(np.random.default_rng(0).bytes(700))


Damage = Callable[[Path, int], None]


@pytest.mark.parametrize(
    ("damage", "labeled"), [(truncate_in_image, True), (overwrite_header, True), (overwrite_header, False)]
)
def test_damaged_shard_gives_the_images_before_the_damage(tmp_path: Path, damage: Damage, labeled: bool) -> None:
    damage(write_tar(tmp_path / "a.tar", sample_members(range(12), labeled)), 8)
    write_tar(tmp_path / "b.tar", sample_members(range(12, 15), labeled))
    dataset = open_dataset(tmp_path)
    assert (len(dataset), sum(map(len, dataset.skipped.values()))) == (11, 1)
    assert [dataset.load(i) for i in range(11)] == IMAGES[:8] + IMAGES[12:15]
    if labeled:
        assert [dataset.classes[i] for i in dataset.labels] == [class_name(i) for i in (*range(8), 12, 13, 14)]
    (batches,) = load_epoch(dataset, workers=2, batch_size=1)
    assert (sorted(indices_of(batches)), corrupt_titles(batches)) == (list(range(11)), set())


def test_image_without_its_truncated_label_is_left_out(tmp_path: Path) -> None:
    truncate_before_label(write_tar(tmp_path / "a.tar", sample_members(range(6))), 3)
    dataset = open_dataset(tmp_path)
    assert [dataset.classes[i] for i in dataset.labels] == [class_name(i) for i in range(3)]


def test_truncated_gzip_gives_the_images_before_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", sample_members(range(12)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    dataset = open_dataset(path)
    assert 3 <= len(dataset) <= 8
    assert [dataset.load(i) for i in range(len(dataset))] == IMAGES[: len(dataset)]


@pytest.mark.parametrize(("damage", "workers"), [(truncate_in_image, 2), (overwrite_header, 0)])
def test_training_continues_over_a_damaged_shard(tmp_path: Path, damage: Damage, workers: int) -> None:
    """Only 4 of 12 images are readable, so one of two workers may have no readable image."""
    damage(write_tar(tmp_path / "a.tar", sample_members(range(12))), 4)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    dataset = open_dataset(tmp_path, "pretrain")
    sampler = training_sampler(dataset, 2, seed=0)
    loader = training_loader(dataset, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(indices_of(batches)) == list(range(12))
        assert all(b.images.shape == (2, 2 * 3 * 16**2) for b in batches)
        assert corrupt_titles(batches) == {f"{tmp_path / 'a.tar'}, image {i}" for i in range(4, 12)}
        reasons = [image.reason for b in batches for image in b.corrupt]
        assert all(re.match(r"reading the shard failed \(.+\)$", reason) for reason in reasons)


def test_evaluation_skips_unreadable_images(tmp_path: Path) -> None:
    truncate_in_image(write_tar(tmp_path / "a.tar", sample_members(range(12))), 8)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    dataset = open_dataset(tmp_path, "pretrain")
    batches = list(evaluation_loader(dataset, PixelFormat(), 16, batch_size=5, workers=2))
    assert sorted(indices_of(batches)) == list(range(8))
    assert len(corrupt_titles(batches)) == 4
