from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from mec.data.transforms.inspection import find_normalization, is_from, name_of, objects_in
from mec.errors import InputError

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
GLOBAL = v2.Compose([v2.Resize(8), v2.Normalize(MEAN, STD)])


def by_comprehension(image: Any) -> list[Any]:
    return [GLOBAL(image) for _ in range(2)]


def by_another_function(image: Any) -> list[Any]:
    return by_comprehension(image)


def by_argument(image: Any, transform: Callable[[Any], Any]) -> list[Any]:
    return [transform(image)] * 2


class Caller:
    def __call__(self, image: Any) -> list[Any]:
        return by_comprehension(image)

    def views(self, image: Any) -> list[Any]:
        return [GLOBAL(image)] * 2


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = {"last": v1.Normalize(MEAN, STD)}


class Normalize:
    """Holds its numbers as kornia's does."""

    def __init__(self) -> None:
        self.flags = {"mean": torch.tensor([MEAN]), "std": torch.tensor([STD])}


def enclosing() -> Callable[[Any], Any]:
    transform = [v1.Compose([v1.Normalize(torch.tensor(MEAN), list(STD))])]
    return lambda image: [transform[0](image)] * 2


@pytest.mark.parametrize(
    "transform",
    [
        GLOBAL, by_comprehension, by_another_function, partial(by_argument, transform=GLOBAL), Caller(), Caller().views,
        Module(), nn.Sequential(Module()), Normalize(), enclosing(),
    ],
)  # fmt: skip
def test_normalize_is_found(transform: Any) -> None:
    assert find_normalization(transform, 3) == (MEAN, STD)


def test_transforms_without_normalize_have_none() -> None:
    assert find_normalization(v2.Compose([v2.Resize(8)]), 3) is None
    assert find_normalization(by_argument, 3) is None


def test_normalization_by_the_image_has_no_statistics() -> None:
    by_image = v1.Normalize(MEAN, STD)
    by_image.normalization = "image"  # as in albumentations
    assert find_normalization(by_image, 3) is None


def test_one_number_holds_for_all_channels() -> None:
    assert find_normalization(v1.Normalize([0.5], [0.25]), 2) == ((0.5, 0.5), (0.25, 0.25))


def test_ambiguous_numbers_are_refused() -> None:
    both = [v1.Normalize(MEAN, STD), v1.Normalize(STD, STD)]
    with pytest.raises(InputError, match="view_transform: expected one mean and std"):
        find_normalization(both, 3)
    with pytest.raises(InputError, match="view_transform: expected 1 numbers as the mean"):
        find_normalization(GLOBAL, 1)


def test_cycles_and_origin() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    assert list(objects_in(cycle)) == [cycle]
    assert is_from("torchvision.transforms", GLOBAL)
    assert not is_from("torchvis", GLOBAL)
    assert [name_of(x) for x in (GLOBAL, by_argument, partial(by_argument), Caller())] == [
        "Compose", "by_argument", "by_argument", "Caller",
    ]  # fmt: skip
