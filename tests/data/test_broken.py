import csv
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
from mec.data import ArrayImages, FileImages, TwoViews, open_images
from mec.data.crops import Batch
from mec.data.loading import EpochSampler, training_loader
from mec.data.pixels import Reading
from mec.data.skipped import Lost, Skipped
from mec.data.survey import RESIDENT_SIDE, settle
from mec.errors import InputError
from mec.training import ProjectorSettings, Recipe
from tests.data.test_decode import claiming

CPU = torch.device("cpu")
LARGE, SMALL = (RESIDENT_SIDE + 14, RESIDENT_SIDE + 34), (32, 32)
BATCH, SIZE = 25, 32
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


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("404 Not Found\n")


def bomb(path: Path) -> None:
    path.write_bytes(claiming("PNG", 60_000, 60_000))


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def vanished(path: Path) -> None:
    path.unlink()


def became_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BEFORE: dict[Callable[[Path], None], str] = {
    cut_off: "truncated",
    emptied: "the file is empty",
    text: "not a picture in a format that is read",
    bomb: "bomb",
    link_to_nowhere: "No such file or directory",
}
LATER: dict[Callable[[Path], None], str] = {
    vanished: "No such file or directory",
    became_a_folder: "Is a directory",
}
WAYS = BEFORE | LATER
PICTURES = 25 * len(WAYS)
"""Of which 4 % are broken, one in each way."""
BROKEN = dict(zip(WAYS, np.linspace(0, PICTURES - 1, len(WAYS)).astype(int).tolist(), strict=True))


def photographs(folder: Path, count: int = PICTURES, size: tuple[int, int] = LARGE) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg")
    return folder


def break_in(folder: Path, ways: dict[Callable[[Path], None], str]) -> None:
    for way in ways:
        way(folder / f"{BROKEN[way]:03}.jpg")


def opened_and_broken(folder: Path) -> FileImages:
    """Pictures of which some are broken already, others break once they are listed."""
    break_in(folder, BEFORE)
    images = open_images(folder)
    assert isinstance(images, FileImages)
    assert len(images) == PICTURES
    break_in(folder, LATER)
    return images


def expected_reasons(folder: Path) -> dict[str, str]:
    return {str(folder / f"{number:03}.jpg"): WAYS[way] for way, number in BROKEN.items()}


def batches(images: FileImages, workers: int, epochs: int = 2, reading: Reading | None = None) -> list[Batch]:
    sampler = EpochSampler(len(images), BATCH, seed=1)
    loader = training_loader(images, TwoViews(SIZE, seed=3), sampler, reading or Reading(), CPU, workers)
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found += list(loader)
    return found


def views_of(found: list[Batch]) -> dict[tuple[int, int], np.ndarray]:
    return {
        (batch.epoch, number): views.numpy()
        for batch in found
        for number, views in zip(batch.indices.tolist(), batch.pictures, strict=True)
    }


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def quiet() -> Console:
    return Console(file=StringIO())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> FileImages:
    return opened_and_broken(photographs(tmp_path_factory.mktemp("partly") / "data"))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_changes_nothing_for_the_others(whole: Path, partly: FileImages, workers: int) -> None:
    found = batches(partly, workers)
    assert len(found) == 2 * PICTURES // BATCH
    assert all(batch.pictures.shape == (BATCH, 2, 3, SIZE, SIZE) for batch in found)
    good, mixed = views_of(batches(open_images(whole), 0)), views_of(found)
    assert good.keys() == mixed.keys() == {(epoch, i) for epoch in (0, 1) for i in range(PICTURES)}
    for key, views in good.items():
        assert np.array_equal(views, mixed[key]) == (key[1] not in BROKEN.values())


def test_what_takes_their_places_is_the_same_for_any_workers(partly: FileImages) -> None:
    alone, several = batches(partly, 0), batches(partly, 2)
    for a, b in zip(alone, several, strict=True):
        assert np.array_equal(a.indices, b.indices)
        assert torch.equal(a.pictures, b.pictures)
        assert sorted(a.lost) == sorted(b.lost)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_lost_are_named_with_their_reasons(partly: FileImages, workers: int) -> None:
    expected = expected_reasons(partly.root)
    for epoch in (0, 1):
        lost = dict(item for batch in batches(partly, workers) if batch.epoch == epoch for item in batch.lost)
        assert lost.keys() == expected.keys()
        for title, reason in lost.items():
            assert expected[title] in reason
            assert "\n" not in reason


def test_places_are_taken_by_whole_pictures_each_time_others(tmp_path: Path) -> None:
    """Every picture of one tone: a view tells which picture it was cut from."""
    for i in range(100):
        Image.new("L", (120, 100), 2 * i).save(tmp_path / f"{i:03}.png")
    broken = [3, 40, 41, 97]
    for i in broken:
        emptied(tmp_path / f"{i:03}.png")
    tones = {key: np.unique(views) for key, views in views_of(batches(open_images(tmp_path), 0, 8, Reading(1))).items()}
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
    found = batches(open_images(folder), 2)
    assert all(batch.pictures.shape == (BATCH, 2, 3, SIZE, SIZE) for batch in found)
    assert len({item.title for batch in found for item in batch.lost}) == 45


def test_where_none_is_left_it_is_said(tmp_path: Path) -> None:
    for path in photographs(tmp_path / "data", 25).iterdir():
        emptied(path)
    with pytest.raises(InputError, match=r"no picture could be read in place of picture \d+; .*the file is empty"):
        batches(open_images(tmp_path), 0)


def test_small_pictures_are_sorted_out_as_they_are_decoded(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", size=SMALL)
    names = np.array(sorted(p.name for p in folder.iterdir()))
    images = opened_and_broken(folder)
    images.labels, images.classes = np.arange(PICTURES), list(names)
    settled, lost = settle(images, Reading())
    assert isinstance(settled, ArrayImages)
    kept = np.setdiff1d(np.arange(PICTURES), list(BROKEN.values()))
    assert settled.labels is not None
    assert settled.labels.tolist() == kept.tolist()
    assert settled.left_out == len(BROKEN)
    expected = [np.asarray(Image.open(folder / name)) for name in names[kept]]
    assert np.abs(settled.pictures.astype(int) - np.stack(expected)).max() <= 2
    reasons = expected_reasons(folder)
    assert [item.title for item in lost] == sorted(reasons)
    assert all(reasons[item.title] in item.reason for item in lost)


def test_each_is_counted_and_listed_once(tmp_path: Path) -> None:
    skipped = Skipped(0.5, 100)
    skipped.add([Lost("early", "why")], 10)
    skipped.list_in(tmp_path / "run" / "skipped.csv")
    skipped.add([Lost("a", "one"), Lost("b", "two"), Lost("a", "one")], 10)
    skipped.add([Lost("a", "another"), Lost("early", "why"), Lost("c", "three")], 10)
    skipped.add([], 10)
    assert len(skipped) == 4
    expected = [["picture", "reason"], ["early", "why"], ["a", "one"], ["b", "two"], ["c", "three"]]
    assert rows(tmp_path / "run" / "skipped.csv") == expected


def test_nothing_is_written_where_nothing_is_lost(tmp_path: Path) -> None:
    skipped = Skipped(0.5, 100)
    skipped.list_in(tmp_path / "skipped.csv")
    skipped.add([], 100)
    assert not (tmp_path / "skipped.csv").exists()


AWKWARD = [
    "a,b.jpg",
    'say "cheese".jpg',
    "two\nlines.jpg",
    "tail\r.jpg",
    "Übung/鳥🐦.jpg",
    " blank ",
    "'",
    "caf\udce9.jpg",
]


def test_a_resumed_listing_knows_what_it_holds_whatever_the_names(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    before = Skipped(0.5, 100)
    before.list_in(path)
    before.add([Lost(name, f'because of "{name}", I fear') for name in AWKWARD], 50)
    after = Skipped(0.5, 100)
    after.add([Lost(AWKWARD[0], "again"), Lost("new", "found before it was listed")], 10)
    after.list_in(path)
    after.add([Lost(name, "again") for name in AWKWARD] + [Lost("newer", "found since")], 10)
    assert len(after) == len(AWKWARD) + 2
    listed = rows(path)
    assert [row[0] for row in listed] == ["picture", *AWKWARD, "new", "newer"]
    assert listed[3] == [AWKWARD[2], f'because of "{AWKWARD[2]}", I fear']


@pytest.mark.parametrize("content", ["", "picture,reason\n", "picture,reason\na.jpg,trunc", "a.jpg\n\n"])
def test_a_listing_that_broke_off_is_gone_on_with(tmp_path: Path, content: str) -> None:
    path = tmp_path / "skipped.csv"
    path.write_text(content)
    skipped = Skipped(0.5, 100)
    skipped.list_in(path)
    skipped.add([Lost("b.jpg", "why")], 10)
    assert ["b.jpg", "why"] in rows(path) or content.endswith("trunc")
    again = Skipped(0.5, 100)
    again.list_in(path)
    assert "b.jpg" in again.reasons or content.endswith("trunc")


def lose(skipped: Skipped, broken: np.ndarray, batch: int = BATCH) -> int:
    """Batch by batch; how many pictures were seen."""
    seen = 0
    for start in range(0, len(broken), batch):
        numbers = range(start, min(start + batch, len(broken)))
        seen += len(numbers)
        skipped.add([Lost(f"{i}.jpg", "why") for i in numbers if broken[i]], len(numbers))
    return seen


def some(share: float, pictures: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(pictures) < round(share * pictures)


@pytest.mark.parametrize("pictures", [100, 1000, 20_000])
@pytest.mark.parametrize("seed", range(5))
def test_four_percent_pass_where_five_may(pictures: int, seed: int) -> None:
    skipped, broken = Skipped(0.05, pictures), some(0.04, pictures, seed)
    for _ in ("one epoch", "another"):
        assert lose(skipped, broken) == pictures
    assert len(skipped) == broken.sum()


@pytest.mark.parametrize("pictures", [100, 1000, 20_000, 10**6])
def test_half_broken_stops_early(pictures: int) -> None:
    skipped = Skipped(0.05, pictures)
    with pytest.raises(InputError) as caught:
        lose(skipped, some(0.5, pictures))
    assert str(caught.value).startswith("data: ")
    assert "cannot be read, at most 0.05 of all are let pass; the first: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert skipped.seen <= 100


def test_the_message_names_the_listing(tmp_path: Path) -> None:
    skipped = Skipped(0.05, 1000)
    skipped.list_in(tmp_path / "skipped.csv")
    with pytest.raises(InputError, match=r"data: 40 of the first 40 pictures .*0\.jpg: why; all are in .*skipped"):
        lose(skipped, np.ones(1000, bool), 40)
    assert len(rows(tmp_path / "skipped.csv")) == 41


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_few_unlucky_ones_at_the_start_of_a_large_set_do_not_stop(first: int) -> None:
    broken = np.arange(10_000) < first
    assert lose(Skipped(0.01, 10_000), broken) == 10_000


@pytest.mark.parametrize(("most", "pictures"), [(0.05, 100), (0.29, 100), (0.07, 100), (0.1, 30), (0.58, 50), (1.0, 7)])
def test_exactly_as_many_as_may_be_pass(most: float, pictures: int) -> None:
    may = round(most * pictures)
    spread = np.zeros(pictures, bool)
    spread[np.linspace(0, pictures - 1, may).astype(int)] = True
    skipped = Skipped(most, pictures)
    lose(skipped, spread)
    assert len(skipped) == may
    if may < pictures:
        with pytest.raises(InputError, match=f"^data: {may + 1} of {pictures} pictures "):
            skipped.add([Lost("one more", "why")], 0)


def test_none_may_be_broken() -> None:
    skipped = Skipped(0.0, 100, "max_broken")
    skipped.add([], 50)
    with pytest.raises(InputError, match=r"^max_broken: 1 of 100 pictures cannot be read, at most 0 of all"):
        skipped.add([Lost("a", "why")], 25)


def test_what_an_earlier_run_lost_does_not_stop_the_resumed_one(tmp_path: Path) -> None:
    broken = some(0.04, 10_000)
    before = Skipped(0.05, 10_000)
    before.list_in(tmp_path / "skipped.csv")
    lose(before, broken[:6000])
    after = Skipped(0.05, 10_000)
    after.list_in(tmp_path / "skipped.csv")
    for part in np.split(np.arange(10_000)[::-1], 400):
        after.add([Lost(f"{i}.jpg", "why") for i in part if broken[i]], len(part))
    assert len(after) == len(rows(tmp_path / "skipped.csv")) - 1 == broken.sum()
    with pytest.raises(InputError, match=r"data: 501 of 10,000"):
        after.add([Lost(f"new {i}", "why") for i in range(501 - len(after))], 0)


def break_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_break(*args: object, **options: object) -> object:
        images = open_images(*args, **options)  # type: ignore[arg-type]
        break_in(folder, LATER)
        return images

    monkeypatch.setattr("mec.training.run.open_images", open_and_break)


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
    assert listed[0] == ["picture", "reason"]
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
    with pytest.raises(InputError, match=r"^max_broken: \d+ of .* cannot be read, at most 0\.05 of all") as caught:
        mec.pretrain(folder, tmp_path / "run", replace(TINY, epochs=50), console=quiet())
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - before < 30
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_half_may_be_broken_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "data", 2 * BATCH)
    for path in sorted(folder.iterdir())[::2]:
        emptied(path)
    mec.pretrain(folder, tmp_path / "run", replace(TINY, max_broken=0.5), console=quiet())
    assert len(rows(tmp_path / "run" / "skipped.csv")) == 1 + BATCH
