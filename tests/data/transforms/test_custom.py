import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from mec.data import ArrayDataset, ImageDataset, PixelFormat, open_dataset
from mec.data.analysis import load_into_memory
from mec.data.loaders import training_loader
from mec.data.rng import Stream, uniforms
from mec.data.transforms.custom import (
    BatchTransformViews,
    ImageTransformViews,
    SeededTransform,
    as_tensor,
    transform_batch,
    transform_image,
)
from mec.errors import InputError
from tests.data.transforms.test_geometry import photograph

CPU = torch.device("cpu")
TO_FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
V1 = v1.Compose([v1.RandomResizedCrop(24), v1.ColorJitter(0.4, 0.4, 0.2, 0.1), v1.ToTensor()])
V2 = v2.Compose([v2.RandomResizedCrop(24), v2.ColorJitter(0.4, 0.4, 0.2, 0.1), *TO_FLOAT])


def two_views(image: Image.Image) -> list[Tensor]:
    """Use every generator: torch in V2, random and numpy here."""
    return [V2(image) * random.random(), V2(image) * float(np.random.rand())]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def seeds_of(seed: int, epoch: int, index: int, count: int) -> list[int]:
    u = uniforms(seed, epoch, np.array([index]), count, Stream.VIEW_TRANSFORM)[0]
    return [int(value) for value in u * 2**32]


def load_views(dataset: ImageDataset, views: Any, keys: Any, pixel_format: PixelFormat, workers: int = 0) -> list[Any]:
    return [(b, views(*b[:3])) for b in training_loader(dataset, views, keys, pixel_format, CPU, workers)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(4):
        Image.fromarray(photograph(50 + i, 60)).save(folder / f"{i}.png")
    (folder / "4.png").write_bytes(b"corrupt")
    return folder


@pytest.mark.parametrize("transforms", [[V1, V1], [V2, V2], [two_views]], ids=["v1", "v2", "two views"])
def test_views_equal_calls_by_hand_for_any_batches(transforms: list[Any], folder: Path) -> None:
    views = ImageTransformViews(transforms, 24, 2, seed=5, dtype=np.float32)
    ((batch, loaded),) = load_views(open_dataset(folder), views, [[(3, i) for i in range(5)]], PixelFormat())
    source = int(batch.source_indices[4])  # of the corrupt image, which keeps its random numbers
    assert batch.source_indices[:4].tolist() == [0, 1, 2, 3]
    assert source < 4
    assert [Path(c.title).name for c in batch.corrupt][:1] == ["4.png"]
    for index in range(5):
        image = Image.open(folder / f"{source if index == 4 else index}.png")
        expected: list[Tensor] = []
        for transform, seed in zip(transforms, seeds_of(5, 3, index, len(transforms)), strict=True):
            seed_all(seed)
            expected += transform(image) if transform is two_views else [transform(image)]
        for view in range(2):
            assert torch.equal(loaded[view][index], expected[view])


def test_workers_make_the_same_views(folder: Path) -> None:
    dataset, views = open_dataset(folder), ImageTransformViews([two_views], 24, 2, dtype=np.float32)
    ((_, together),) = load_views(dataset, views, [[(0, i) for i in range(4)]], PixelFormat())
    batches = load_views(dataset, views, [[(0, 3), (0, 1)], [(0, 0), (0, 2)]], PixelFormat(), workers=2)
    for batch, apart in batches:
        for row, index in enumerate(batch.indices):
            assert torch.equal(apart[0][row], together[0][index])
            assert torch.equal(apart[1][row], together[1][index])


def test_generators_are_restored() -> None:
    numbers = []
    for calls in (0, 1):
        seed_all(7)
        for seed in range(calls):
            transform_image([SeededTransform(two_views)], Image.new("RGB", (30, 30)), [seed])
            transform_batch(Scaled(), torch.zeros(2, 3, 4, 4), seed)
        numbers.append((torch.rand(1).item(), random.random(), np.random.rand()))
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("in_memory", [False, True])
def test_images_of_more_bits_or_channels_are_float_tensors(in_memory: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 1024, (2, 9, 8, 5)).astype(np.uint16)
    given = []

    def transform(image: Tensor) -> list[Tensor]:
        given.append(image)
        return [image[:, :8], image[:, 1:]]

    dataset: ImageDataset = ArrayDataset("deep", pixels)
    if in_memory:
        dataset, _ = load_into_memory(dataset, PixelFormat(5, (0, 1023)))
        assert dataset.decoded
    views = ImageTransformViews([transform], 8, 2, dtype=np.float32)
    ((_, loaded),) = load_views(dataset, views, [[(0, 0), (0, 1)]], PixelFormat(5, (0, 1023)))
    expected = pixels.transpose(0, 3, 1, 2) / 1023
    np.testing.assert_allclose(torch.stack(given).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(loaded[1].numpy(), expected[:, :, 1:], rtol=1e-6)


def test_views_of_every_type_agree() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    expected = torch.from_numpy(array).permute(2, 0, 1)
    for view in (array, Image.fromarray(array), expected, v2.functional.to_image(array)):
        converted = as_tensor(view)
        assert type(converted) is Tensor
        assert torch.equal(converted, expected)
    assert as_tensor(np.zeros((5, 4))).shape == (1, 5, 4)
    assert as_tensor(np.zeros((5, 4))).dtype == torch.float32


def test_uint8_views_stay_bytes_until_the_device(folder: Path) -> None:
    views = ImageTransformViews([lambda image: [image.resize((8, 8))] * 3], 8, 3)
    ((batch, loaded),) = load_views(open_dataset(folder), views, [[(0, 0)]], PixelFormat())
    assert batch.images.dtype == torch.uint8
    expected = F.to_tensor(Image.open(folder / "0.png").resize((8, 8)))
    assert len(loaded) == 3
    assert all(torch.equal(view[0], expected) for view in loaded)


class Scaled(nn.Module):
    """Scales each image by a random number of torch, random or numpy."""

    def forward(self, x: Tensor) -> list[Tensor]:
        n = len(x)
        factors = torch.rand(n), torch.full((n,), random.random()), torch.from_numpy(np.random.rand(n)).float()
        return [x * f.view(n, 1, 1, 1) for f in factors]


def test_modules_see_whole_images_in_memory_with_seeded_generators() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    dataset = ArrayDataset("a", images, decoded=True)
    views = BatchTransformViews(Scaled(), 8, 3, seed=2)
    ((_, loaded),) = load_views(dataset, views, [[(1, 3), (1, 0)]], PixelFormat(1))
    seed_all(seeds_of(2, 1, 3, 1)[0])
    expected = Scaled()(torch.from_numpy(images[[3, 0]]).permute(0, 3, 1, 2) / 255)
    assert all(torch.equal(x, y) for x, y in zip(loaded, expected, strict=True))


def test_modules_that_return_one_view_are_called_twice() -> None:
    views = BatchTransformViews(nn.Dropout(0.5), 8, 2)
    x1, x2 = views(torch.full((4, 1, 8, 8), 255, dtype=torch.uint8), np.arange(4), 0)
    assert set(x1.unique().tolist()) == set(x2.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(x1, x2)


def test_modules_see_center_crops_of_images_in_files(folder: Path) -> None:
    views = BatchTransformViews(nn.Identity(), 20, 2, input_size=20)
    ((_, (x, _)),) = load_views(open_dataset(folder), views, [[(0, 0)]], PixelFormat())
    expected = F.resize(F.center_crop(Image.open(folder / "0.png"), [50, 50]), [20, 20])
    assert (x[0] - F.to_tensor(expected)).abs().max() <= 1.01 / 255


def test_parameters_of_a_module_are_not_trained() -> None:
    assert not any(p.requires_grad for p in BatchTransformViews(nn.Conv2d(3, 3, 1), 8, 2).parameters())


class Pseudo:
    """Has a generator of its own, like the transforms of albumentations, and is called by keyword."""

    __module__ = "albumentations.core"

    def set_random_seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        return {"image": np.float32(image / 255 * self.generator.random())}


PSEUDO, OTHER = Pseudo(), Pseudo()


def test_albumentations_are_seeded_also_within_a_function() -> None:
    def pair(image: Image.Image) -> list[Any]:
        return [transform(image=np.asarray(image))["image"] for transform in (PSEUDO, OTHER, PSEUDO)]

    image = Image.new("L", (4, 4), 255)
    first, second, other = (SeededTransform(pair)(image, seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    values = [float(view.max()) for view in (*first, *other)]
    assert len(set(values)) == 6
    (alone,) = SeededTransform(PSEUDO)(image, 1)
    assert alone.shape == (1, 4, 4)


def test_errors_within_a_run_name_the_image(folder: Path) -> None:
    views = ImageTransformViews([lambda image: [np.zeros((image.height,) * 2 + (3,), np.uint8)] * 2], 50, 2)
    with pytest.raises(InputError, match=r"view_transform: .*\(3, 51, 51\) \(image .*1\.png\)"):
        load_views(open_dataset(folder), views, [[(0, 0), (0, 1)]], PixelFormat())
    views = ImageTransformViews([lambda image: [torch.zeros(3, 50, 50)] * 2], 50, 2)
    with pytest.raises(InputError, match="view_transform: expected views of uint8"):
        load_views(open_dataset(folder), views, [[(0, 0)]], PixelFormat())
    module = BatchTransformViews(nn.Identity(), 8, 2)
    with pytest.raises(InputError, match=r"view_transform: .*\(2, 3, 9, 9\)"):
        module(torch.zeros(2, 3, 9, 9), np.arange(2), 0)


def test_transforms_that_cannot_be_pickled_are_refused_where_workers_need_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = ImageTransformViews([lambda image: [image] * 2], 50, 2)
    training_loader(open_dataset(folder), views, [[(0, 0)]], PixelFormat(), CPU, workers=1)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "spawn")
    with pytest.raises(InputError, match="view_transform: expected a transform that pickle can send"):
        training_loader(open_dataset(folder), views, [[(0, 0)]], PixelFormat(), CPU, workers=1)
