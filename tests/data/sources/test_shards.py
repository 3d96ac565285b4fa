import http.server
import io
import json
import os
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from mec.data import Reading, TwoViews, open_images
from mec.data.crops import Batch
from mec.data.images import FileImages
from mec.data.loading import EpochSampler, evaluation_loader, training_loader, training_sampler
from mec.data.sources.shards import ShardImages
from mec.errors import InputError

CPU = torch.device("cpu")
SIZES = (7, 1, 13, 5)
TOTAL = sum(SIZES)
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path_factory.mktemp("home")))


def picture(number: int, kind: str = "jpeg", side: int = 20) -> bytes:
    """An encoded picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (side + number % 5, side + 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = [picture(i) for i in range(TOTAL)]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def species(number: int) -> str:
    return ("bee", "ant", "cat")[number % 3]


def samples(numbers: range, labelled: bool = True) -> Members:
    members = []
    for i in numbers:
        members.append((f"{i:04}.jpg", PICTURES[i]))
        if labelled:
            members.append((f"{i:04}.cls", species(i).encode()))
    return members


def shares() -> list[range]:
    ends = np.cumsum(SIZES).tolist()
    return [range(end - size, end) for end, size in zip(ends, SIZES, strict=True)]


def write_shards(folder: Path, pattern: str = "x-{:04}.tar", labelled: bool = True) -> Path:
    """Four shards of uneven sizes."""
    for shard, numbers in enumerate(shares()):
        write_tar(folder / pattern.format(shard), samples(numbers, labelled))
    return folder


def with_tarfile(folder: Path) -> None:
    write_shards(folder)


def with_gzip(folder: Path) -> None:
    write_shards(folder, "x-{:04}.tar.gz")


def with_shard_writer_and_cls(folder: Path) -> None:
    numbers = iter(range(TOTAL))
    for shard, size in enumerate(SIZES):
        with webdataset.ShardWriter(str(folder / f"x-{shard}-%02d.tar"), verbose=0) as writer:
            for i in (next(numbers) for _ in range(size)):
                writer.write({"__key__": f"{i:04}", "jpg": PICTURES[i], "cls": species(i)})


def with_shard_writer_and_json(folder: Path) -> None:
    with webdataset.ShardWriter(str(folder / "x-%02d.tar"), maxcount=9, verbose=0) as writer:
        for i in range(TOTAL):
            writer.write({"__key__": f"{i:04}", "jpg": PICTURES[i], "json": {"label": species(i), "id": i}})


def with_other_things_in_between(folder: Path) -> None:
    """Samples without a picture, folders, links, notes, hidden files, upper-case names."""
    for shard, numbers in enumerate(shares()):
        with tarfile.open(folder / f"x-{shard}.tar", "w") as tar:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE):
                info = tarfile.TarInfo("deep/" if kind == tarfile.DIRTYPE else "deep/link.jpg")
                info.type, info.linkname = kind, "elsewhere.jpg"
                tar.addfile(info)
            members: Members = [("__meta__", b"{}"), ("notes.txt", b"no picture"), ("._0000.jpg", b"no picture")]
            for i in numbers:
                members += [
                    (f"deep/{i % 2}/{i:04}.cls", species(i).encode()),
                    (f"deep/{i % 2}/{i:04}.JPG", PICTURES[i]),
                ]
                members += [(f"deep/{i % 2}/{i:04}x.txt", b"no picture"), (f"deep/{i % 2}/{i:04}x.cls", b"dog")]
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "write",
    [
        with_tarfile,
        with_gzip,
        with_shard_writer_and_cls,
        with_shard_writer_and_json,
        with_other_things_in_between,
    ],
)
def test_shards_of_any_writer(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    images = open_images(tmp_path)
    assert isinstance(images, ShardImages)
    assert (len(images), images.left_out) == (TOTAL, 0)
    assert images.classes == ["ant", "bee", "cat"]
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(TOTAL)]
    assert [images.load(i) for i in range(TOTAL)] == PICTURES


def test_pictures_load_in_any_order(tmp_path: Path) -> None:
    images = open_images(write_shards(tmp_path))
    for i in np.random.default_rng(0).integers(0, TOTAL, 60):
        assert images.load(int(i)) == PICTURES[i]
    assert images.title(8) == f"{tmp_path / 'x-0002.tar'}, picture 0"


@pytest.mark.parametrize(
    ("names", "source", "expected"),
    [
        (["a.tar"], "a.tar", {"all": 7}),
        (["a.tgz"], "a.tgz", {"all": 7}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000..0003}.tar", {"all": 26, "pretrain": 26}),
        (["x-0000.tar", "x-0001.tar", "x-0002.tar", "x-0003.tar"], "x-{0000,0002}.tar", {"all": 20}),
        (["a.tar", "b.tar", "c.tar.gz", ".hidden.tar"], "", {"all": 21}),
        (["train/a.tar", "train/b.tar", "val/c.tar"], "", {"train": 8, "test": 13, "all": 8, "pretrain": 8}),
        (["train-0.tar", "train-1.tar", "val-0.tar"], "", {"train": 8, "test": 13, "all": 8, "pretrain": 8}),
        (["train.tar.gz", "validation.tar.gz"], "", {"train": 7, "test": 1}),
        (["val-0.tar", "val-1.tar"], "", {"all": 8}),
    ],
)
def test_where_shards_may_lie(tmp_path: Path, names: list[str], source: str, expected: dict[str, int]) -> None:
    for name, numbers in zip(names, shares(), strict=False):
        write_tar(tmp_path / name, samples(numbers))
    for split, count in expected.items():
        images = open_images(os.path.join(tmp_path, source), split)
        assert len(images) == count
        assert {images.load(i) for i in range(count)} <= set(PICTURES)


def test_a_relative_and_a_home_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(open_images("x-{0000..0001}.tar")) == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_images("~/x-0001.tar").load(0) == PICTURES[7]


def test_tars_beside_unpacked_pictures_are_left_alone(tmp_path: Path) -> None:
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", samples(range(3)))
    for part in ("train", "val"):
        (tmp_path / part / "ant").mkdir(parents=True)
        (tmp_path / part / "ant" / "0.jpg").write_bytes(PICTURES[0])
    assert isinstance(open_images(tmp_path, "train"), FileImages)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "x-0002.tar").unlink()
    with pytest.raises(InputError, match=r"x-0002\.tar does not exist \(1 of 4 shards\)"):
        open_images(tmp_path / "x-{0000..0003}.tar")


@pytest.mark.parametrize("content", [b"", b"this is not a tar file" * 100, bytes(10240)])
def test_what_is_no_shard_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"no picture in the shards of .*a\.tar \(.+\)$"):
        open_images(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", samples(range(3)))
    images = open_images(tmp_path)
    assert (len(images), images.load(0)) == (3, PICTURES[0])


def test_labels_are_those_of_all_pictures_or_none(tmp_path: Path) -> None:
    assert open_images(write_shards(tmp_path / "a", labelled=False)).labels is None
    write_tar(tmp_path / "b.tar", [*samples(range(3)), ("0003.jpg", PICTURES[3])])
    assert open_images(tmp_path / "b.tar").labels is None
    write_tar(tmp_path / "c.tar", [("0.json", b'{"label": null}'), ("0.jpg", PICTURES[0])])
    assert open_images(tmp_path / "c.tar").labels is None
    numbers = [(f"{i}.{kind}", text) for i in (10, 9) for kind, text in (("cls", b"%d\n" % i), ("jpg", PICTURES[i]))]
    write_tar(tmp_path / "d.tar", numbers)
    images = open_images(tmp_path / "d.tar")
    assert (images.classes, images.labels.tolist()) == (["9", "10"], [1, 0])


def test_test_labels_are_numbered_as_the_training_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(range(3)))
    write_tar(tmp_path / "val.tar", samples(range(1, 2)))
    test = open_images(tmp_path, "test")
    assert (test.classes, test.labels.tolist()) == (["ant", "bee", "cat"], [0])
    write_tar(tmp_path / "train.tar", samples(range(1)))
    with pytest.raises(InputError, match="classes that the training ones lack: ant"):
        open_images(tmp_path, "test")


def test_contents_are_kept_until_the_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", samples(range(6)))
    expected = open_images(path).labels.tolist()
    assert [json.loads(f.read_text()) for f in Path(os.environ["MEC_DATA"]).rglob("*.json")] == [
        [species(i) for i in range(6)]
    ]
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.sources.shards.read_samples", unexpected)
        assert open_images(path).labels.tolist() == expected
        os.utime(path, ns=(10**18, 10**18))
        with pytest.raises(AssertionError, match="read again"):
            open_images(path)
    write_tar(path, samples(range(2, 6)))
    assert [open_images(path).classes[i] for i in open_images(path).labels] == [species(i) for i in range(2, 6)]


def unexpected(*_: object, **__: object) -> None:
    raise AssertionError("read again")


def test_nowhere_to_keep_the_contents_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("MEC_DATA", str(tmp_path / "home"))
    assert len(open_images(write_tar(tmp_path / "a.tar", samples(range(6))))) == 6


def test_stated_counts_are_enough_for_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    (tmp_path / "sizes.json").write_text(json.dumps(counts))
    with monkeypatch.context() as patch:
        patch.setattr("mec.data.sources.shards._contents", unexpected)
        images = open_images(tmp_path / "x-{0000..0003}.tar", "pretrain")
        assert len(open_images(tmp_path, "pretrain")) == TOTAL
    assert images.labels is None
    assert [images.load(i) for i in range(TOTAL)] == PICTURES
    assert open_images(tmp_path).labels is not None
    for wrong in ('{"x-0000.tar": 7}', "[]", "{"):
        (tmp_path / "sizes.json").write_text(wrong)
        assert len(open_images(tmp_path, "pretrain")) == TOTAL


def test_a_part_of_the_pictures(tmp_path: Path) -> None:
    images = open_images(write_shards(tmp_path), every=3)
    numbers = list(range(0, TOTAL, 3))
    assert [images.load(i) for i in range(len(images))] == [PICTURES[i] for i in numbers]
    assert [images.classes[i] for i in images.labels] == [species(i) for i in numbers]
    again = images.subset(np.array([1, 4, 5]))
    assert [again.load(i) for i in (2, 0, 1)] == [PICTURES[i] for i in (15, 3, 12)]
    train, test = open_images(tmp_path, "train"), open_images(tmp_path, "test")
    parts = [{part.load(i) for i in range(len(part))} for part in (train, test)]
    assert parts[0] | parts[1] == set(PICTURES)
    assert not parts[0] & parts[1]
    assert np.bincount(test.labels).tolist() == [2, 2, 2]


# Training


def an_epoch(
    images: ShardImages, ranks: int = 1, workers: int = 0, batch: int = 4, epoch: int = 0, seed: int = 0
) -> list[list[Batch]]:
    """The batches of each rank."""
    found = []
    for rank in range(ranks):
        sampler = training_sampler(images, batch, seed, rank, ranks)
        sampler.set_epoch(epoch)
        loader = training_loader(images, TwoViews(16, seed=3), sampler, Reading(), CPU, workers)
        found.append(list(loader))
    return found


def numbers_of(batches: list[Batch]) -> list[int]:
    return [int(i) for b in batches for i in b.indices]


def views_of(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): views for b in batches for i, views in zip(b.indices, b.pictures, strict=True)}


def lost_of(batches: list[Batch]) -> set[str]:
    return {lost.title for b in batches for lost in b.lost}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures as files, in the same order."""
    folder = tmp_path_factory.mktemp("folder")
    for i, content in enumerate(PICTURES):
        (folder / f"{i:04}.jpg").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, torch.Tensor]:
    """The views of each picture in epoch 2, cropped from files."""
    sampler = EpochSampler(TOTAL, TOTAL, seed=0)
    sampler.set_epoch(2)
    return views_of(list(training_loader(open_images(folder), TwoViews(16, seed=3), sampler, Reading(), CPU, 0)))


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 1), (1, 2), (2, 2), (3, 2)])
def test_an_epoch_shows_each_picture_once_with_the_views_of_files(
    shards: Path, expected: dict[int, torch.Tensor], ranks: int, workers: int, batch: int
) -> None:
    images = open_images(shards)
    found = an_epoch(images, ranks, workers, batch, epoch=2)
    assert [len(batches) for batches in found] == [TOTAL // (batch * ranks)] * ranks
    assert all(len(b.indices) == batch and b.epoch == 2 and not b.lost for batches in found for b in batches)
    shown = [i for batches in found for i in numbers_of(batches)]
    assert len(shown) == len(set(shown))
    for batches in found:
        for i, views in views_of(batches).items():
            assert torch.equal(views, expected[i])


def test_numbers_of_shards_and_of_files_are_the_same(shards: Path, folder: Path) -> None:
    a, b = open_images(shards), open_images(folder)
    assert [a.load(i) for i in range(TOTAL)] == [b.load(i) for i in range(TOTAL)]


def test_epochs_and_seeds_differ_in_order(shards: Path) -> None:
    images = open_images(shards)
    orders = [numbers_of(an_epoch(images, epoch=e, seed=s, batch=1)[0]) for e, s in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(TOTAL)) for order in orders)
    assert all(order != list(range(TOTAL)) for order in orders)


def test_what_is_left_out_changes_even_in_a_single_shard(tmp_path: Path) -> None:
    images = open_images(write_tar(tmp_path / "a.tar", samples(range(10))))
    epochs = [set(numbers_of(an_epoch(images, batch=4, epoch=e)[0])) for e in range(40)]
    assert all(len(epoch) == 8 for epoch in epochs)
    times_shown = [sum(i in epoch for epoch in epochs) for i in range(10)]
    # 32 are expected; fewer than 21 has a chance below 1e-4
    assert min(times_shown) > 20


def test_a_part_of_shards_is_trained_on(shards: Path, expected: dict[int, torch.Tensor]) -> None:
    images = open_images(shards, every=2)
    batches = [b for rank in an_epoch(images, ranks=2, workers=2, batch=3, epoch=2) for b in rank]
    assert len(set(numbers_of(batches))) == len(numbers_of(batches)) == 12
    first = views_of(an_epoch(images.subset(np.arange(1)), batch=1, epoch=2)[0])
    assert torch.equal(first[0], expected[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [0, 1, 2, 5])
def test_an_epoch_resumes_at_any_step(shards: Path, workers: int, step: int) -> None:
    images = open_images(shards)
    (whole,) = an_epoch(images, workers=workers, batch=3, epoch=1)
    sampler = training_sampler(images, 3, seed=0)
    dataset = training_loader(images, TwoViews(16, seed=3), sampler, Reading(), CPU, 0).dataset
    keys = [(1, s) for s in range(step, len(sampler))]
    rest = list(DataLoader(dataset, batch_size=None, sampler=keys, num_workers=workers, collate_fn=lambda b: b))
    assert len(rest) == len(whole) - step
    for a, b in zip(whole[step:], rest, strict=True):
        assert a.indices.tolist() == b.indices.tolist()
        assert torch.equal(a.pictures, b.pictures)


def test_one_loader_serves_all_epochs(shards: Path) -> None:
    images = open_images(shards)
    sampler = training_sampler(images, 4, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, Reading(), CPU, workers=2)
    for epoch in (0, 1, 1, 3):
        sampler.set_epoch(epoch)
        (expected,) = an_epoch(images, workers=2, epoch=epoch)
        assert numbers_of(list(loader)) == numbers_of(expected)


def test_what_is_open_here_is_opened_anew_by_each_worker(tmp_path: Path) -> None:
    contents = [picture(i, "png", side=120) for i in range(24)]
    images = open_images(write_tar(tmp_path / "a.tar", [(f"{i:02}.png", c) for i, c in enumerate(contents)]))
    (whole,) = an_epoch(images, batch=4)
    assert images.load(2) == contents[2]
    (found,) = an_epoch(images, workers=2, batch=4)
    assert not lost_of(found)
    for i, views in views_of(found).items():
        assert torch.equal(views, views_of(whole)[i])
    assert images.load(3) == contents[3]


# Damage


def cut_short(path: Path, number: int) -> None:
    """Within the picture of sample ``number``."""
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
@pytest.mark.parametrize("labelled", [True, False])
def test_a_damaged_shard_gives_what_comes_before(tmp_path: Path, damage: Damage, labelled: bool) -> None:
    damage(write_tar(tmp_path / "a.tar", samples(range(12), labelled)), 8)
    write_tar(tmp_path / "b.tar", samples(range(12, 15), labelled))
    images = open_images(tmp_path)
    assert (len(images), images.left_out) == (11, 1)
    assert [images.load(i) for i in range(11)] == PICTURES[:8] + PICTURES[12:15]
    if labelled:
        assert [images.classes[i] for i in images.labels] == [species(i) for i in (*range(8), 12, 13, 14)]
    (batches,) = an_epoch(images, workers=2, batch=1)
    assert (sorted(numbers_of(batches)), lost_of(batches)) == (list(range(11)), set())


def test_a_picture_whose_label_is_lost_is_left_out(tmp_path: Path) -> None:
    cut_label_off(write_tar(tmp_path / "a.tar", samples(range(6))), 4)
    images = open_images(tmp_path)
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(3)]


def test_a_cut_gzip_gives_what_comes_before(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", samples(range(12)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    images = open_images(path)
    assert 3 <= len(images) <= 8
    assert [images.load(i) for i in range(len(images))] == PICTURES[: len(images)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_over_a_damaged_shard(tmp_path: Path, damage: Damage, workers: int) -> None:
    """A single shard of 12, 4 of them readable: one of two workers may have nothing but what is lost."""
    damage(write_tar(tmp_path / "a.tar", samples(range(12))), 4)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    images = open_images(tmp_path, "pretrain")
    sampler = training_sampler(images, 2, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, Reading(), CPU, workers)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(numbers_of(batches)) == list(range(12))
        assert all(b.pictures.shape == (2, 2, 3, 16, 16) for b in batches)
        assert lost_of(batches) == {f"{tmp_path / 'a.tar'}, picture {i}" for i in range(4, 12)}
        assert all(re.match(r"the shard broke off \(.+\)$", lost.reason) for b in batches for lost in b.lost)


def test_measuring_passes_over_what_is_lost(tmp_path: Path) -> None:
    cut_short(write_tar(tmp_path / "a.tar", samples(range(12))), 8)
    (tmp_path / "sizes.json").write_text('{"a.tar": 12}')
    images = open_images(tmp_path, "pretrain")
    batches = list(evaluation_loader(images, Reading(), 16, batch=5, workers=2))
    assert sorted(numbers_of(batches)) == list(range(8))
    assert len(lost_of(batches)) == 4


# Servers


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``.

    cuts: at which byte of a file the connection is closed, and how many times. silent: at which byte it stalls.
    busy: how many times a file is refused for now. key: what a client must send. hold: lets the stalled ones go.
    """

    daemon_threads = True

    def __init__(self, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = ranges
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, tuple[int, int]] = {}
        self.silent: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.key: str | None = None
        self.hold = threading.Event()
        self.date = 10**9
        self.asked: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, *_: object) -> None:
        """The client went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, name = self.server, self.path.lstrip("/")
        server.asked.append(name)
        if server.silent.get(name) == 0:
            server.hold.wait(30)
            return
        if name not in server.files or (server.key and self.headers.get("X-Key") != server.key):
            self.send_error(404 if name not in server.files else 403)
            return
        if server.busy.get(name, 0) > 0:
            server.busy[name] -= 1
            self.send_error(503)
            return
        content = server.files[name]
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        if asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Last-Modified", self.date_time_string(server.date))
        self.end_headers()
        if not body:
            return
        at, times = server.cuts.get(name, (0, 0))
        if times and start <= at < end:
            server.cuts[name] = (at, times - 1)
            end = at
        if name in server.silent and start <= server.silent[name] < end:
            self.wfile.write(content[start : server.silent[name]])
            server.hold.wait(30)
            return
        self.wfile.write(content[start:end])


@pytest.fixture(params=[True, False], ids=["ranges", "whole"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("mec.data.sources.shards.PAUSE", 0.01)
    server = Server(ranges=request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


def serve(server: Server, folder: Path) -> str:
    """The pattern of the four shards on the server."""
    server.files = {f.name: f.read_bytes() for f in write_shards(folder).iterdir()}
    return server.url("x-{0000..0003}.tar")


def middle_of(content: bytes, number: int) -> int:
    """A byte within the picture of sample ``number``."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        (at,) = [m.offset_data + m.size // 2 for m in tar if m.name == f"{number:04}.jpg"]
    return at


def serve_large(server: Server, tmp_path: Path, breaks_in: int) -> Members:
    """A shard of 20 pictures of 200 kB, whose connection breaks within one of them, and a whole shard.

    aiohttp keeps to itself what it has received last before a break: some 400 kB.
    """
    members = [(f"{i:04}.jpg", PICTURES[i] + bytes(200_000)) for i in range(20)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    server.files["b.tar"] = write_tar(tmp_path / "b.tar", samples(range(20, 24), labelled=False)).read_bytes()
    server.files["sizes.json"] = b'{"a.tar": 20, "b.tar": 4}'
    server.cuts["a.tar"] = (middle_of(server.files["a.tar"], breaks_in), 1000)
    return members


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards(server: Server, tmp_path: Path, expected: dict[int, torch.Tensor], workers: int) -> None:
    images = open_images(serve(server, tmp_path))
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(TOTAL)]
    assert [images.load(i) for i in range(TOTAL)] == PICTURES
    (batches,) = an_epoch(images, workers=workers, epoch=2, batch=2)
    assert sorted(numbers_of(batches)) == list(range(TOTAL))
    for i, views in views_of(batches).items():
        assert torch.equal(views, expected[i])


def test_remote_contents_are_kept_until_the_shard_changes(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    open_images(source)
    before = len(server.asked)
    assert len(open_images(source)) == TOTAL
    # what the size and date are asked with, HEAD, for each
    assert len(server.asked) - before == len(SIZES)
    size = len(server.files["x-0001.tar"])
    server.files["x-0001.tar"] = write_tar(tmp_path / "x-0001.tar", samples(range(2))).read_bytes()
    assert len(server.files["x-0001.tar"]) == size
    server.date += 60
    assert len(open_images(source)) == TOTAL + 1


def test_stated_counts_of_remote_shards(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    server.files["sizes.json"] = json.dumps(counts).encode()
    assert len(open_images(source, "pretrain")) == TOTAL
    assert set(server.asked) == {"sizes.json"}


def test_a_shard_larger_than_a_block(server: Server, tmp_path: Path) -> None:
    """fsspec asks for 5 MB at a time, which a server without ranges does not give."""
    arrays = [np.random.default_rng(i).integers(0, 256, (1000, 1000), dtype=np.uint8) for i in range(7)]
    members = []
    for i, array in enumerate(arrays):
        file = io.BytesIO()
        np.save(file, array)
        members.append((f"{i}.npy", file.getvalue()))
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    images = open_images(server.url("a.tar"))
    assert [images.load(i) for i in range(7)] == [content for _, content in members]
    assert images.left_out == 0


def test_a_slow_reader_is_no_silent_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.sources.tars.SILENCE", 1.0)
    members = [(f"{i}.jpg", PICTURES[i] + bytes(2**21)) for i in range(7)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    images = open_images(server.url("a.tar"))
    before = len(server.asked)
    for i in range(7):
        assert images.load(i) == members[i][1]
        time.sleep(1.3 if i == 1 else 0)
    # none is opened again
    assert len(server.asked) - before <= (6 if server.ranges else 4)


def test_a_connection_that_breaks_once_is_made_again(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    at = middle_of(server.files["x-0002.tar"], 15)
    server.cuts["x-0002.tar"] = (at, 1)
    images = open_images(source)
    assert (len(images), images.left_out, server.cuts["x-0002.tar"]) == (TOTAL, 0, (at, 0))
    server.cuts["x-0002.tar"] = (at, 2)
    assert [images.load(i) for i in range(TOTAL)] == PICTURES
    assert server.cuts["x-0002.tar"] == (at, 0)


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    server.busy = {"x-0001.tar": 4}
    assert len(open_images(source)) == TOTAL


def test_a_connection_that_always_breaks_gives_what_comes_before(server: Server, tmp_path: Path) -> None:
    members = serve_large(server, tmp_path, breaks_in=14)
    images = open_images(server.url("{a,b}.tar"))
    assert images.left_out == 1
    before = len(images) - 4
    assert 9 <= before <= 14
    assert [images.load(i) for i in range(9)] == [content for _, content in members[:9]]
    assert [images.load(before + i) for i in range(4)] == PICTURES[20:24]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_over_a_connection_that_always_breaks(server: Server, tmp_path: Path, workers: int) -> None:
    serve_large(server, tmp_path, breaks_in=14)
    images = open_images(server.url("{a,b}.tar"), "pretrain")
    sampler = training_sampler(images, 2, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, Reading(), CPU, workers)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(numbers_of(batches)) == list(range(24))
        assert all(len(b.pictures) == 2 for b in batches)
        lost = {title.rpartition(" ")[2] for title in lost_of(batches)}
        assert {str(i) for i in range(14, 20)} <= lost <= {str(i) for i in range(9, 20)}


def test_what_a_server_lacks_is_said_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.sources.shards.PAUSE", 60)
    source = serve(server, tmp_path)
    del server.files["x-0003.tar"]
    with pytest.raises(InputError, match=r"x-0003\.tar cannot be read \(404, message='Not Found'") as raised:
        open_images(source)
    assert "\n" not in str(raised.value)
    server.key = "secret"
    with pytest.raises(InputError, match=r"x-0000\.tar cannot be read \(403"):
        open_images(source)


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.sources.shards.PAUSE", 0.01)
    with pytest.raises(InputError, match=r"a\.tar cannot be read \(.*[Cc]onnect"):
        open_images("http://127.0.0.1:9/a.tar")


@pytest.mark.parametrize("at", [0, 4000])
def test_a_server_that_falls_silent_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("mec.data.sources.tars.SILENCE", 0.1)
    source = serve(server, tmp_path)
    server.silent = {"x-0000.tar": at}
    begun = time.monotonic()
    if at == 0:
        with pytest.raises(InputError, match=r"x-0000\.tar cannot be read \(.*[Tt]ime"):
            open_images(source)
    else:
        images = open_images(source)
        assert images.left_out == 1
        assert images.load(0) == PICTURES[0]
    assert time.monotonic() - begun < 60


def test_settings_for_fsspec_are_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    source = serve(server, tmp_path)
    server.key = "secret"
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": {"X-Key": "secret"}}})
    assert len(open_images(source)) == TOTAL
