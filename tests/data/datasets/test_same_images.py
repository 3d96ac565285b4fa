"""The same photographs as a folder, as shards and as parquet give the same images, labels and views."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader, training_sampler
from tests.data.datasets.shard_files import CPU, write_tar


@pytest.fixture(scope="module")
def datasets_on_disk(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write two classes of Caltech-101 in each format."""
    root = tmp_path_factory.mktemp("formats")
    folder = root / "folder"
    for name in ("anchor", "ant"):
        (folder / name).mkdir(parents=True)
        for path in sorted((real_data / "caltech101" / "101_ObjectCategories" / name).glob("*.jpg")):
            (folder / name / path.name).write_bytes(path.read_bytes())
    files = sorted(folder.rglob("*.jpg"))
    for start in range(0, len(files), 37):
        members = []
        for i, path in enumerate(files[start : start + 37], start):
            members += [(f"{i:06}.jpg", path.read_bytes()), (f"{i:06}.cls", path.parent.name.encode())]
        write_tar(root / "shards" / f"a-{start:04}.tar", members)
    rows = {"image": [{"bytes": p.read_bytes(), "path": None} for p in files], "label": [p.parent.name for p in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (root / "parquet").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / "parquet" / "a.parquet"))
    return {name: root / name for name in ("folder", "shards", "parquet")}


def test_formats_have_the_same_images_and_labels(datasets_on_disk: dict[str, Path]) -> None:
    folder = open_dataset(datasets_on_disk["folder"])
    expected = [folder.load(i) for i in range(len(folder))]
    for path in datasets_on_disk.values():
        dataset = open_dataset(path)
        assert [dataset.load(i) for i in range(len(dataset))] == expected
        assert dataset.classes == ["anchor", "ant"]
        assert np.array_equal(dataset.labels, folder.labels)
        train, test = (open_dataset(path, split) for split in ("train", "test"))
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
