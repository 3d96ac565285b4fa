import importlib
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from mec.data import ArrayDataset, ImageDataset, PixelFormat
from mec.data.transforms.custom import BatchTransformViews, ImageTransformViews
from mec.data.transforms.dry_run import create_custom_views
from mec.errors import InputError
from tests.data.test_loaders import LoadedDataset
from tests.data.transforms.test_geometry import photograph

IMAGES = ArrayDataset("photographs", np.stack([photograph(40, 50), photograph(40, 50)[::-1]]), decoded=True)
IN_FILES = LoadedDataset(IMAGES)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
generator = np.random.default_rng(0)


def dry_run(transform: Any, dataset: ImageDataset = IMAGES, image_size: int = 16, channels: int = 3) -> Any:
    return create_custom_views(transform, dataset, PixelFormat(channels), image_size, seed=0)


@pytest.mark.parametrize("name", ["SimCLRTransform", "BYOLTransform", "VICRegTransform"])
def test_lightly_transforms_have_two_views_and_their_normalization(name: str) -> None:
    transforms = pytest.importorskip("lightly.transforms")
    if name == "BYOLTransform":
        of_view = importlib.import_module("lightly.transforms.byol_transform")
        transform = transforms.BYOLTransform(of_view.BYOLView1Transform(32), of_view.BYOLView2Transform(32))
    else:
        transform = getattr(transforms, name)(input_size=32)
    views = dry_run(transform)
    assert isinstance(views, ImageTransformViews)
    assert (views.size, views.num_views, views.statistics) == (32, 2, IMAGENET)


def test_lightly_multi_crop_is_refused() -> None:
    transforms = pytest.importorskip("lightly.transforms")
    with pytest.raises(InputError, match=r"view_transform: .* 96 x 96, 224 x 224 .*multi-crop"):
        dry_run(transforms.DINOTransform())


@pytest.mark.parametrize(
    ("transform", "kind", "size", "num_views"),
    [
        (v2.RandomCrop(20), ImageTransformViews, 20, 2),
        (nn.Sequential(v2.RandomCrop(20), v2.ToImage()), ImageTransformViews, 20, 2),
        (lambda image: tuple(v2.RandomCrop(20)(image) for _ in range(4)), ImageTransformViews, 20, 4),
        (nn.AdaptiveAvgPool2d(24), BatchTransformViews, 24, 2),
        (nn.Sequential(v2.RandomCrop(20), nn.Identity()), BatchTransformViews, 20, 2),
    ],
)
def test_number_size_and_place_are_found(transform: Any, kind: type, size: int, num_views: int) -> None:
    views = dry_run(transform)
    assert isinstance(views, kind)
    assert (views.size, views.num_views, views.statistics) == (size, num_views, None)


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flipped: Tensor = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3))
        return flipped


@pytest.mark.parametrize(
    ("module", "size", "input_size"),
    [(v2.CenterCrop(16), 16, 18), (v2.CenterCrop(28), 28, 32), (nn.Identity(), 16, 16), (nn.AvgPool2d(2), None, None)],
)
def test_center_crops_for_modules_are_the_same_in_a_resumed_run(
    module: nn.Module, size: int | None, input_size: int
) -> None:
    transform = nn.Sequential(Flip(), module)
    if size is None:
        with pytest.raises(InputError, match="view_transform: expected views of one size, or of the size of the input"):
            dry_run(transform, IN_FILES)
        return
    views = dry_run(transform, IN_FILES)
    assert (views.size, views.input_size) == (size, input_size)
    resumed = dry_run(transform, IN_FILES, image_size=views.size)
    assert (resumed.size, resumed.input_size) == (size, input_size)


class AsDictionary(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"views": x}


class Crash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (3, "expected an nn.Module or a function of an image, got int"),
        (v2.Compose, "got the class Compose"),
        (lambda image: image.no_such_method(), r"raised AttributeError .*PIL image 50 x 40 of mode RGB"),
        (Crash(), r"Crash raised RuntimeError \(two lines\) for a float tensor \(2, 3, 40, 50\)"),
        (lambda image: None, "got NoneType"),
        (AsDictionary(), "got dict"),
        (lambda image: [], "expected at least 2 views"),
        (lambda image: [torch.zeros(3, 16, 16)] * image.getpixel((0, 0))[0], "the same number of all images"),
        (lambda image: torch.zeros(2, 3, 16, 16), "expected views"),
        (lambda image: [torch.zeros(3, 16, 16, dtype=torch.int64)] * 2, "int64"),
        (lambda image: [image, image], "expected square views of one size, got 40 x 50"),
        (lambda image: [torch.zeros(3, 16, 16), torch.zeros(3, 24, 24)], "16 x 16, 24 x 24"),
        (lambda image: [torch.zeros(1, 16, 16)] * 2, "expected views of 3 channels .* got 1; set channels"),
        (lambda image: [torch.full((3, 16, 16), torch.nan)] * 2, "NaN"),
        (nn.Flatten(), r"expected views of 2 images \(n, c, h, w\)"),
        (lambda image: [v2.functional.pil_to_tensor(v2.CenterCrop(16)(image)).float()] * 2, "floats in .0, 1."),
        (
            v2.Compose([v2.CenterCrop(16), v2.PILToTensor(), v2.ToDtype(torch.float32), v2.Normalize(*IMAGENET)]),
            "before",
        ),
    ],
)
def test_unsuitable_transforms_are_refused_in_one_line(transform: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^view_transform: .*{message}") as caught:
        dry_run(transform)
    assert "\n" not in str(caught.value)


def test_a_hint_for_gray_images_names_the_setting() -> None:
    gray = ArrayDataset("gray", IMAGES.images[..., :1], decoded=True)
    with pytest.raises(InputError, match="mode L; if it expects color images, set channels to 3"):
        dry_run(lambda image: image.split()[2], gray, channels=1)


def with_its_own_generator(image: Any) -> list[Any]:
    return [v2.functional.adjust_brightness(v2.CenterCrop(16)(image), generator.random()) for _ in range(2)]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (with_its_own_generator, "resumed run will differ"),
        (nn.Sequential(v2.RandomCrop(16), nn.Identity()), "same random numbers for all images of a batch"),
        (v2.CenterCrop(16), "equal views"),
        (v2.RandomCrop(16), ""),
        (Flip(), ""),
    ],
)
def test_suspicious_transforms_are_logged(transform: Any, message: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mec"):
        dry_run(transform, ArrayDataset("square", np.ascontiguousarray(IMAGES.images[:, :, :40]), decoded=True))
    warnings = [record.getMessage() for record in caplog.records if message not in record.getMessage() or not message]
    assert not warnings
    assert bool(caplog.records) == bool(message)
