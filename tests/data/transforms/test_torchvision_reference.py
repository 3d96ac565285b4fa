import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mec.data import ArrayDataset, PixelFormat, open_dataset
from mec.data.loaders import EpochSampler, training_loader
from mec.data.rng import Stream, uniforms
from mec.data.transforms import VIEW_1, VIEW_2, ViewSettings
from mec.data.transforms.crop import Item
from mec.data.transforms.custom import TransformReader
from mec.data.transforms.reference import ReferenceViews, reference_transform
from mec.errors import InputError
from tests.data.transforms.test_geometry import photograph

CPU = torch.device("cpu")


def test_steps_and_their_order_are_those_of_the_papers_code() -> None:
    composed = reference_transform(224, VIEW_2)
    assert [type(t).__name__ for t in composed.transforms] == [
        "RandomResizedCrop", "RandomApply", "RandomGrayscale", "RandomApply", "RandomApply", "RandomHorizontalFlip",
    ]  # fmt: skip
    crop, jitter, gray, blur, solarize, flip = composed.transforms
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.2, 1.0), (3 / 4, 4 / 3))
    assert crop.interpolation == transforms.InterpolationMode.BILINEAR
    colors = jitter.transforms[0]
    assert (colors.brightness, colors.contrast) == ((0.6, 1.4), (0.6, 1.4))
    assert (colors.saturation, colors.hue, jitter.p) == ((0.8, 1.2), (-0.1, 0.1), 0.8)
    assert (gray.p, blur.p, solarize.p, flip.p) == (0.2, 0.1, 0.2, 0.5)


def test_views_match_torchvision_for_any_number_of_workers(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(photograph(100 + i, 120)).save(tmp_path / f"{i}.png")
    dataset, views = open_dataset(tmp_path), ReferenceViews(32, VIEW_1, VIEW_2, seed=2)
    results = []
    for workers, batch in ((0, 3), (2, 2)):
        loader = training_loader(dataset, views, EpochSampler(6, batch, seed=0), PixelFormat(), CPU, workers)
        views_by_index = {}
        for b in loader:
            x1, x2 = views(*b[:3])
            views_by_index |= {int(i): (x1[n], x2[n]) for n, i in enumerate(b.indices)}
        results.append(views_by_index)
    seeds = (uniforms(2, 0, np.arange(6), 2, Stream.VIEW_TRANSFORM) * 2**32).astype(int)
    for i in range(6):
        image = Image.open(tmp_path / f"{i}.png")
        for view, settings in enumerate((VIEW_1, VIEW_2)):
            torch.manual_seed(int(seeds[i, view]))
            random.seed(int(seeds[i, view]))
            expected = transforms.ToTensor()(reference_transform(32, settings)(image))
            assert torch.equal(results[0][i][view], expected)
            assert torch.equal(results[1][i][view], expected)


def test_array_datasets_and_grayscale_images_are_supported() -> None:
    dataset = ArrayDataset("a", np.random.default_rng(0).integers(0, 256, (4, 20, 20, 1), dtype=np.uint8))
    views = ReferenceViews(16, VIEW_1, VIEW_2)
    before = random.getstate(), torch.random.get_rng_state()
    reader = TransformReader(views, PixelFormat(1))
    reader([Item(0, lambda: dataset.load(0), "a")], 0, lambda _: iter(()))
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    (batch,) = training_loader(dataset, views, EpochSampler(4, 4, seed=0), PixelFormat(1), CPU, workers=0)
    assert views(*batch[:3])[0].shape == (4, 1, 16, 16)


def test_unsupported_settings_raise_input_error() -> None:
    with pytest.raises(InputError, match="views: reference has no rotation"):
        ReferenceViews(16, ViewSettings(rotation=10), VIEW_2)
    dataset = ArrayDataset("a", np.zeros((4, 20, 20, 5), np.uint8))
    views = ReferenceViews(16, VIEW_1, VIEW_2)
    with pytest.raises(InputError, match="views: reference expects grayscale or color"):
        training_loader(dataset, views, EpochSampler(4, 4, seed=0), PixelFormat(5), CPU, workers=0)
