"""Names of datasets in logs, results and run folders."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import Subset

from mec.data import ArrayDataset, ImageDataset
from mec.data.dataset import data_name
from mec.data.datasets import open_splits

PIXELS = np.zeros((2, 8, 8, 3), dtype=np.uint8)


class Own(ImageDataset):
    name, labels, classes, layout, skipped = "own", None, [], "", {}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("a/b", "a/b"),
        (Path("a/b"), "a/b"),
        (PIXELS, "numpy.ndarray"),
        ((PIXELS, [0, 1]), "numpy.ndarray"),
        ({"test": [], "train": torch.from_numpy(PIXELS)}, "torch.Tensor"),
        (Subset(torchvision.datasets.FakeData(), range(2)), "Subset of torchvision.datasets.FakeData"),
        (datasets.Dataset.from_dict({"label": [0]}), "datasets.Dataset"),
        (ArrayDataset("pets", PIXELS), "pets"),
        (open_splits("digits"), "digits"),
        (Own(), "own"),
    ],
)
def test_names(data: Any, name: str) -> None:
    assert data_name(data).endswith(name)
