"""Images that are given as an object train, evaluate and resume like those of a name."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData
from torchvision.transforms import v2

import mec
from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.datasets import open_splits
from mec.data.loaders import evaluation_loader, training_loader, training_sampler
from mec.errors import InputError
from mec.inspection import inspect
from mec.pretraining import OnlineProbe, Run, pretrain
from mec.pretraining.recipe_files import default_recipe
from mec.report.record import find_data
from tests.pretraining.test_run import TINY

RECIPE = replace(TINY, epochs=2)
CPU = torch.device("cpu")


class Digits:
    """The train or the test images of scikit-learn's digits, as a user would load them."""

    def __init__(self, split: Any) -> None:
        dataset = open_dataset("digits", split)
        self.images, self.numbers = dataset.images, dataset.labels

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index, :, :, 0]), int(self.numbers[index])  # type: ignore[index]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(Digits("train"), tmp_path_factory.mktemp("runs") / "run", RECIPE)


def weights(run: Run) -> bytes:
    return (run.folder / "encoder.safetensors").read_bytes()


def test_weights_are_those_of_the_same_images_by_name(run: Run, tmp_path: Path) -> None:
    assert weights(pretrain("digits", tmp_path / "run", RECIPE)) == weights(run)


def test_evaluations_are_those_of_the_same_images_by_name(run: Run) -> None:
    results = [mec.evaluate.knn(data, run, workers=0).rows for data in ("digits", (Digits("train"), Digits("test")))]
    assert results[0] == results[1]


class Stop(lightning.Callback):
    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_resume_is_bit_identical_and_refuses_another_object(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        pretrain(Digits("train"), tmp_path / "run", RECIPE, callbacks=[Stop()])
    arrays = open_dataset("digits", "train").images
    for other in (arrays, Digits("test"), "digits"):
        with pytest.raises(InputError, match=r"^resume: (data|data_object|images): expected "):
            pretrain(other, tmp_path / "run", RECIPE, resume=True)  # type: ignore[arg-type]
    assert weights(pretrain(Digits("train"), tmp_path / "run", RECIPE, resume=True)) == weights(run)


def test_the_environment_and_the_report_name_the_object(run: Run) -> None:
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["data"] == "tests.pretraining.test_object_data.Digits"
    assert environment["data_object"].endswith("Digits, images PIL L, labels of the items not read")
    reason = "The training images were passed as an object; pass their location with --data."
    assert find_data(run.folder, None).reason == reason  # type: ignore[union-attr]
    assert find_data(run.folder, "digits") == "digits"


def test_other_entry_points_take_objects(run: Run, tmp_path: Path) -> None:
    splits = {"train": Digits("train"), "test": Digits("test")}
    table = mec.embed(splits, run, tmp_path / "digits.npy", workers=0)
    assert len(np.load(table)) == 1797
    assert mec.embed(splits, run, table, workers=0) == table
    assert mec.contact_sheet(Digits("test"), tmp_path / "views.png", RECIPE, images=2, pairs=1).exists()
    assert "Digits" in str(inspect(splits, max_images=20))
    probe = OnlineProbe(splits, workers=0)
    by_name = OnlineProbe("digits", workers=0)
    assert probe.evaluate(run.encoder(), CPU) == by_name.evaluate(run.encoder(), CPU)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (open_splits("digits"), "digits"),
        (open_dataset("digits"), "digits"),
        (type("CIFAR10", (), {})(), "cifar10"),
        (FakeData(), "photographs"),
        ([1], "photographs"),
    ],
)
def test_the_default_recipe_fits_the_object(data: Any, name: str) -> None:
    assert default_recipe(data) == default_recipe(name)


@pytest.fixture
def spawn() -> Iterator[None]:
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(method, force=True)


RANDOM = FakeData(12, (3, 110, 120), transform=v2.Compose([v2.Lambda(lambda x: x), v2.RandomCrop(100)]))


def test_random_items_are_the_same_in_forked_workers() -> None:
    dataset = open_dataset(RANDOM, "pretrain")  # type: ignore[arg-type]

    def batches(workers: int) -> list[torch.Tensor]:
        sampler = training_sampler(dataset, 3, seed=0)
        return [b.images for b in training_loader(dataset, TwoViews(16), sampler, PixelFormat(), CPU, workers)]

    with_workers = batches(2)
    torch.manual_seed(1)
    assert all(map(torch.equal, batches(0), with_workers))


@pytest.mark.usefixtures("spawn")
def test_objects_that_cannot_be_pickled_are_refused_for_spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(RANDOM, "pretrain")  # type: ignore[arg-type]
    sampler = training_sampler(dataset, 3, seed=0)
    with pytest.raises(InputError, match=r"^workers: .*lambda.* or use no workers \(0\)$"):  # before the run folder
        training_loader(dataset, TwoViews(16), sampler, PixelFormat(), CPU, 1)
    with pytest.raises(InputError, match=r"^workers: .*lambda.* or use no workers \(0\)$"):
        next(iter(evaluation_loader(dataset, PixelFormat(), 16, workers=1)))
    notebook = type("Notebook", (Digits,), {"__module__": "__main__"})
    main = type(os)("__main__")
    main.Notebook = notebook  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "__main__", main)
    with pytest.raises(InputError, match=r"^workers: .*notebook"):
        next(iter(evaluation_loader(open_dataset(notebook("test"), "pretrain"), PixelFormat(), 16, workers=1)))
