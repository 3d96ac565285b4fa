import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mec.data import ArrayDataset, PixelFormat, open_dataset
from mec.data.loaders import EpochSampler, training_loader
from mec.data.rng import uniforms
from mec.data.transforms.crop import Item
from mec.data.transforms.torchvision_reference import ReferenceCropper, ReferenceViews, reference_transform
from mec.data.transforms.view_settings import VIEW_1, VIEW_2, ViewSettings
from mec.errors import InputError
from tests.data.transforms.test_geometry import photograph

CPU = torch.device("cpu")


def test_the_steps_are_those_of_the_papers_code_in_its_order() -> None:
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


def test_views_are_torchvisions_whatever_the_workers(tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(photograph(100 + i, 120)).save(tmp_path / f"{i}.png")
    images, views = open_dataset(tmp_path), ReferenceViews(32, VIEW_1, VIEW_2, seed=2)
    found = []
    for workers, batch in ((0, 3), (2, 2)):
        loader = training_loader(images, views, EpochSampler(6, batch, seed=0), PixelFormat(), CPU, workers)
        made = {}
        for b in loader:
            x1, x2 = views(*b[:3])
            made |= {int(i): (x1[n], x2[n]) for n, i in enumerate(b.indices)}
        found.append(made)
    seeds = (uniforms(2, 0, np.arange(6), 2, 8) * 2**32).astype(int)
    for i in range(6):
        image = Image.open(tmp_path / f"{i}.png")
        for view, settings in enumerate((VIEW_1, VIEW_2)):
            torch.manual_seed(int(seeds[i, view]))
            random.seed(int(seeds[i, view]))
            expected = transforms.ToTensor()(reference_transform(32, settings)(image))
            assert torch.equal(found[0][i][view], expected)
            assert torch.equal(found[1][i][view], expected)


def test_images_in_memory_and_gray_ones() -> None:
    images = ArrayDataset("a", np.random.default_rng(0).integers(0, 256, (4, 20, 20, 1), dtype=np.uint8))
    views = ReferenceViews(16, VIEW_1, VIEW_2)
    before = random.getstate(), torch.random.get_rng_state()
    cut = ReferenceCropper(views, PixelFormat(1))
    cut([Item(0, lambda: images.load(0), "a")], 0, lambda _: iter(()))
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    (batch,) = training_loader(images, views, EpochSampler(4, 4, seed=0), PixelFormat(1), CPU, workers=0)
    assert views(*batch[:3])[0].shape == (4, 1, 16, 16)


def test_what_the_papers_code_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="views: reference has no rotation"):
        ReferenceViews(16, ViewSettings(rotation=10), VIEW_2)
    images = ArrayDataset("a", np.zeros((4, 20, 20, 5), np.uint8))
    views = ReferenceViews(16, VIEW_1, VIEW_2)
    with pytest.raises(InputError, match="views: reference expects gray or color"):
        training_loader(images, views, EpochSampler(4, 4, seed=0), PixelFormat(5), CPU, workers=0)
