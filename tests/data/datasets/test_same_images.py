"""The same photographs as a folder, as shards and as parquet give the same images, labels and views."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mec.data import ImageDataset, PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader, training_sampler

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def datasets_on_disk(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two classes of Caltech-101 in each format."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("formats")
    folder = root / "folder"
    for name in ("anchor", "ant"):
        (folder / name).mkdir(parents=True)
        for path in sorted((real_data / "caltech101" / "101_ObjectCategories" / name).glob("*.jpg")):
            (folder / name / path.name).write_bytes(path.read_bytes())
    files = sorted(folder.rglob("*.jpg"))
    (root / "shards").mkdir()
    for n, start in enumerate(range(0, len(files), 37)):
        with tarfile.open(root / "shards" / f"a-{n:04}.tar", "w") as tar:
            for i, path in enumerate(files[start : start + 37], start):
                (root / "label").write_text(path.parent.name)
                tar.add(path, f"{i:06}.jpg")
                tar.add(root / "label", f"{i:06}.cls")
    rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in files], "label": [p.parent.name for p in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (root / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "parquet" / "a.parquet"))
    return {name: root / name for name in ("folder", "shards", "parquet")}


def image_hashes(dataset: ImageDataset) -> list[str]:
    return [hashlib.sha256(dataset.load(i)).hexdigest() for i in range(len(dataset))]


@pytest.fixture(autouse=True)
def _empty_data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path))


def test_formats_have_the_same_images_and_labels(datasets_on_disk: dict[str, Path]) -> None:
    opened = {name: open_dataset(path) for name, path in datasets_on_disk.items()}
    expected = image_hashes(opened["folder"])
    for dataset in opened.values():
        assert image_hashes(dataset) == expected
        assert dataset.classes == ["anchor", "ant"]
        assert np.array_equal(dataset.labels, opened["folder"].labels)
        train, test = (open_dataset(datasets_on_disk["folder"], split) for split in ("train", "test"))
        assert len(train) + len(test) == len(dataset)


def test_formats_train_on_each_image_once_with_the_same_views(datasets_on_disk: dict[str, Path]) -> None:
    views, epochs = TwoViews(32, seed=1), {}
    for name, path in datasets_on_disk.items():
        dataset = open_dataset(path, "pretrain")
        for workers in (0, 2) if name == "folder" else (2,):
            sampler = training_sampler(dataset, 1, seed=0)
            sampler.set_epoch(3)
            loader = training_loader(dataset, views, sampler, PixelFormat(), CPU, workers)
            batches = {int(b.indices[0]): b.images[0] for b in loader}
            assert sorted(batches) == list(range(len(dataset))), name
            epochs[name, workers] = torch.stack([batches[i] for i in range(len(dataset))])
    first = epochs["folder", 0]
    assert all(torch.equal(images, first) for images in epochs.values())
