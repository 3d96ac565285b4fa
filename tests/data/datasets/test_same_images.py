"""One set of photographs as a folder, as shards and as parquet: the same images, labels and views."""

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
def sources(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four classes of Caltech-101."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    made = tmp_path_factory.mktemp("sources")
    folder = made / "folder"
    for name in ("accordion", "anchor", "ant", "butterfly"):
        (folder / name).mkdir(parents=True)
        for path in sorted((real_data / "caltech101" / "101_ObjectCategories" / name).glob("*.jpg")):
            (folder / name / path.name).write_bytes(path.read_bytes())
    files = sorted(folder.rglob("*.jpg"))
    (made / "shards").mkdir()
    for n, start in enumerate(range(0, len(files), 37)):
        with tarfile.open(made / "shards" / f"a-{n:04}.tar", "w") as tar:
            for i, path in enumerate(files[start : start + 37], start):
                (made / "label").write_text(path.parent.name)
                tar.add(path, f"{i:06}.jpg")
                tar.add(made / "label", f"{i:06}.cls")
    rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in files], "label": [p.parent.name for p in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (made / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(made / "parquet" / "a.parquet"))
    return {name: made / name for name in ("folder", "shards", "parquet")}


def contents(dataset: ImageDataset) -> list[str]:
    return [hashlib.sha256(dataset.load(i)).hexdigest() for i in range(len(dataset))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEC_DATA", str(tmp_path))


def test_the_same_images_and_labels(sources: dict[str, Path]) -> None:
    opened = {name: open_dataset(path) for name, path in sources.items()}
    expected = contents(opened["folder"])
    for dataset in opened.values():
        assert contents(dataset) == expected
        assert dataset.classes == ["accordion", "anchor", "ant", "butterfly"]
        assert np.array_equal(dataset.labels, opened["folder"].labels)
        train, test = (open_dataset(sources["folder"], part) for part in ("train", "test"))
        assert len(train) + len(test) == len(dataset)


def test_training_sees_each_image_once_with_the_same_views(sources: dict[str, Path]) -> None:
    views, seen = TwoViews(32, seed=1), {}
    for name, path in sources.items():
        dataset = open_dataset(path, "pretrain")
        for workers in (0, 2):
            sampler = training_sampler(dataset, 1, seed=0)
            sampler.set_epoch(3)
            loader = training_loader(dataset, views, sampler, PixelFormat(), CPU, workers)
            batches = {int(b.indices[0]): b.images[0] for b in loader}
            assert sorted(batches) == list(range(len(dataset))), name
            seen[name, workers] = torch.stack([batches[i] for i in range(len(dataset))])
    first = seen["folder", 0]
    assert all(torch.equal(images, first) for images in seen.values())
