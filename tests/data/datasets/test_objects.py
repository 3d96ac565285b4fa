"""Datasets that are objects give the images and labels of the same images in a folder."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torchvision.transforms import v2

from mec.data import PixelFormat, open_dataset, read_image
from mec.data.analysis import infer_pixel_format, load_into_memory
from mec.data.datasets import open_splits
from mec.data.pixels import CorruptImageError
from mec.errors import InputError

SIDE, NAMES = 12, ["ant", "bee", "cat"]
PIXELS = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE + 2, 3), dtype=np.uint8)
TARGETS = [i // 3 for i in range(9)]  # the order of a folder


class Photographs:
    """A user's class: items by function, and a count of how often one is loaded."""

    classes: ClassVar[list[str]] = NAMES

    def __init__(self, item: Callable[[int], Any], length: int = 9) -> None:
        self.item, self.length, self.loaded = item, length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        self.loaded += 1
        return self.item(index)


def pil(i: int) -> Image.Image:
    return Image.fromarray(PIXELS[i])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    for i, target in enumerate(TARGETS):
        (root / NAMES[target]).mkdir(exist_ok=True)
        pil(i).save(root / NAMES[target] / f"{i}.png")
    return root


def _hugging_face(folder: Path) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict({"image": list(map(pil, range(9))), "label": TARGETS}, features=features)


def _image_folder(folder: Path, **options: Any) -> torchvision.datasets.ImageFolder:
    return torchvision.datasets.ImageFolder(str(folder), **options)


def _reversed(folder: Path) -> Subset[Any]:
    return Subset(Subset(_image_folder(folder), range(8, -1, -1)), range(8, -1, -1))  # type: ignore[arg-type]


CHW = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
SAME_IMAGES: dict[str, Callable[[Path], Any]] = {
    "ImageDataset": open_dataset,
    "Splits": open_splits,
    "ImageFolder": _image_folder,
    "Subset": _reversed,
    "ConcatDataset": lambda f: ConcatDataset(
        [Subset(_image_folder(f), range(4)), Subset(_image_folder(f), range(4, 9))]
    ),
    "Hugging Face": _hugging_face,
    "Hugging Face, torch format": lambda f: _hugging_face(f).with_format("torch"),
    "Hugging Face, transform": lambda f: _hugging_face(f).with_transform(lambda b: {"pixel_values": b["image"]}),
    "TensorDataset": lambda f: TensorDataset(CHW, torch.tensor(TARGETS)),
    "arrays": lambda f: (PIXELS, TARGETS),
    "tensors": lambda f: (CHW, torch.tensor(TARGETS)),
    "one-hot": lambda f: (PIXELS, np.eye(3)[TARGETS]),
    "list of (PIL, label)": lambda f: [(pil(i), NAMES[TARGETS[i]]) for i in range(9)],
    "paths": lambda f: [(p, p.parent.name) for p in sorted(f.rglob("*.png"))],
    "bytes": lambda f: [{"img": p.read_bytes(), "class": p.parent.name} for p in sorted(f.rglob("*.png"))],
    "class of tensors": lambda f: Photographs(lambda i: (CHW[i], torch.tensor(TARGETS[i]))),
    "class of dicts": lambda f: Photographs(lambda i: {"image": PIXELS[i], "label": np.int64(TARGETS[i]), "id": i}),
    "class of floats": lambda f: Photographs(lambda i: (CHW[i] / 255, TARGETS[i])),
    "array items without labels": lambda f: Photographs(lambda i: PIXELS[i]),
    "array": lambda f: PIXELS,
}


@pytest.mark.parametrize("make", SAME_IMAGES.values(), ids=SAME_IMAGES)
def test_objects_have_the_images_and_labels_of_a_folder(make: Callable[[Path], Any], folder: Path) -> None:
    data = make(folder)
    dataset = open_dataset(data)
    images = [read_image(dataset, i) for i in range(len(dataset))]
    assert np.array_equal(images, PIXELS)
    in_memory, corrupt = load_into_memory(dataset, infer_pixel_format(dataset))
    scale = 1 if in_memory.images.dtype == np.uint8 else 255  # type: ignore[union-attr]
    assert np.allclose(in_memory.images * scale, PIXELS, atol=1e-4)
    assert not corrupt
    if dataset.labels is not None:
        numbers = [str(NAMES.index(n)) for n in NAMES]
        assert dataset.labels.tolist() == TARGETS
        assert dataset.classes in (NAMES, numbers)
        train, test = open_dataset(data, "train"), open_dataset(data, "test")
        assert (len(train), len(test)) == (6, 3)
        assert sorted(test.labels) == [0, 1, 2]
    assert (dataset.labels is None) == (make in list(SAME_IMAGES.values())[-2:])
    subset = open_dataset(data, subsample=4)
    assert np.array_equal(read_image(subset, 1), PIXELS[4])
    assert len(subset) == 3


def _transparent() -> Image.Image:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    return image


def _turned() -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to be upright
    image = Image.new("L", (4, 2), 0)
    image.putpixel((0, 0), 200)
    image.info["exif"] = exif.tobytes()
    return image


@pytest.mark.parametrize(
    ("image", "pixel", "expected"),
    [
        (Image.new("1", (4, 4), 1), (0, 0), (255, 255, 255)),
        (Image.new("P", (4, 4), 0).convert("RGB").quantize(), (0, 0), (0, 0, 0)),
        (_transparent(), (0, 0), (0, 0, 255)),
        (_transparent(), (1, 1), (255, 255, 255)),
        (_turned(), (0, 1), (200, 200, 200)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (0, 0), (255, 0, 0)),
        (Image.fromarray(np.full((4, 4), 32768, np.uint16)), (0, 0), (128, 128, 128)),
        (Image.new("F", (4, 4), 0.2), (0, 0), (51, 51, 51)),
        (torch.full((3, 8, 8), 0.2, dtype=torch.bfloat16), (0, 0), (51, 51, 51)),
        (np.full((8, 8), True), (0, 0), (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(image: Any, pixel: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(read_image(open_dataset([image]), 0)[pixel]) == expected


def test_labels_come_from_an_attribute_without_loading_images() -> None:
    data = Photographs(lambda i: (pil(i), TARGETS[i]))
    data.targets = TARGETS  # type: ignore[attr-defined]
    assert open_dataset(data).classes == NAMES
    assert data.loaded < len(data)
    assert "labels from targets" in open_dataset(data).layout


def test_pretraining_does_not_load_images_for_labels() -> None:
    data = Photographs(lambda i: (pil(i), TARGETS[i]))
    assert open_dataset(data, "pretrain").labels is None
    assert data.loaded < len(data)


def test_items_overrule_an_attribute_that_differs(folder: Path) -> None:
    data = _image_folder(folder, target_transform=lambda target: 2 - target)
    dataset = open_dataset(data)
    assert "labels from the items" in dataset.layout
    assert [dataset.classes[i] for i in dataset.labels] == [NAMES[2 - t] for t in TARGETS]  # type: ignore[union-attr]


def test_paths_of_an_image_folder_are_titles(folder: Path) -> None:
    assert open_dataset(_reversed(folder)).title(4) == str(folder / "bee" / "4.png")
    assert open_dataset(Photographs(pil)).title(4) == "tests.data.datasets.test_objects.Photographs[4]"


@pytest.mark.parametrize("form", ["dict", "tuple", "datasets"])
def test_given_splits_are_kept_with_the_classes_of_train(form: str, folder: Path) -> None:
    table = _hugging_face(folder)
    splits: Any = {
        "dict": {
            "Training": Subset(_image_folder(folder), range(6)),
            "val": open_dataset(folder).subset(np.arange(3, 5)),
        },
        "tuple": (Subset(_image_folder(folder), range(6)), [(pil(i), "bee") for i in (3, 4)]),
        "datasets": datasets.DatasetDict(train=table.select(range(6)), test=table.select([3, 4])),
    }[form]
    train, test = open_dataset(splits, "train"), open_dataset(splits, "test")
    assert [train.classes[i] for i in train.labels] == ["ant"] * 3 + ["bee"] * 3  # type: ignore[union-attr]
    assert [train.classes[i] for i in test.labels] == ["bee", "bee"]  # type: ignore[union-attr]
    assert np.array_equal(read_image(test, 1), PIXELS[4])
    assert np.array_equal(read_image(open_dataset(splits, "pretrain"), 5), PIXELS[5])


def test_random_items_are_seeded_by_their_index_and_leave_the_generators_alone(folder: Path) -> None:
    transform = v2.Compose(
        [v2.RandomCrop(6), v2.Lambda(lambda x: np.roll(x, (np.random.randint(6), random.randrange(6))))]
    )
    dataset = open_dataset(_image_folder(folder, transform=transform), "pretrain")
    assert "random transforms of the items seeded by their index" in dataset.layout
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index,union-attr]
    first = [read_image(dataset, i) for i in range(9)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[2]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    torch.manual_seed(5)
    in_memory, _ = load_into_memory(dataset, PixelFormat())  # in threads
    assert np.array_equal(in_memory.images, first)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    unseeded = open_dataset(Photographs(lambda i: generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)), "pretrain")
    assert "ITEMS ARE RANDOM" in unseeded.layout


def _raise(index: int) -> Any:
    if index in (0, 5):
        raise ValueError("bad\nsector")
    return pil(index), TARGETS[index]


def test_items_that_raise_are_corrupt_images() -> None:
    dataset = open_dataset(Photographs(_raise))
    with pytest.raises(CorruptImageError, match=r"^ValueError: bad sector$"):
        dataset.load(5)
    assert dataset.labels.tolist() == [-1, 0, 0, 1, 1, -1, 2, 2, 2]  # type: ignore[union-attr]
    in_memory, corrupt = load_into_memory(dataset, PixelFormat())
    assert len(in_memory) == 7
    assert [image.reason for image in corrupt] == ["ValueError: bad sector"] * 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(map(pil, range(9)))


REFUSED: dict[str, tuple[Any, str]] = {
    "stream": (Stream(), "can only be read in order"),
    "hugging face stream": (_hugging_face(Path()).to_iterable_dataset(), "can only be read in order"),
    "generator": (map(pil, range(9)), "can only be read in order"),
    "loader": (DataLoader(Photographs(pil)), "can only be read in order"),  # type: ignore[arg-type]
    "number": (5, "got int"),
    "nothing": (None, "got NoneType"),
    "length 0": (Photographs(pil, 0), "Photographs has length 0"),
    "empty list": ([], "list has length 0"),
    "empty array": (np.empty((0, 8, 8)), "shape (0, 8, 8)"),
    "vectors": (np.empty((9, 64)), "shape (9, 64)"),
    "items that are numbers": (Photographs(lambda i: i), "got int"),
    "items without image": (Photographs(lambda i: {"depth": 1}), "with the keys depth"),
    "items that raise": (Photographs(lambda i: {}[i]), "KeyError: 0"),
    "views": (Photographs(lambda i: [CHW[i], CHW[i]]), "tensor uint8 twice"),
    "views and label": (Photographs(lambda i: ([CHW[i], CHW[i]], 0)), "got 2 views"),
    "tensors of views": (TensorDataset(CHW, CHW), "views are made in training"),
    "labels of another length": ((PIXELS, TARGETS[:5]), "expected 9 labels"),
    "three splits": (([pil(0)], [pil(0)], [pil(0)]), "got a tuple of 3"),
    "columns": ({"image": PIXELS, "label": TARGETS}, "expected a dict of splits"),
    "paths of splits": (("a", "b"), "got the path a"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        open_dataset(data, "pretrain")
    assert message in str(error.value)
    assert str(error.value).startswith("data: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", [{"labels_csv": "a.csv"}, {"frame_stride": 2}])
def test_options_of_files_are_refused_with_an_object(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(option))}: .* got an object"):
        open_dataset(PIXELS, **option)


@pytest.mark.parametrize("label", [[1, 1], {"box": 1}, [[0, 1], [2]], torch.tensor([1, 0, 1]), pil(0).convert("L")])
def test_items_without_one_label_have_none(label: Any) -> None:
    dataset = open_dataset(Photographs(lambda i: (pil(i), label)))
    assert dataset.labels is None
    assert "not used: expected one label per image" in dataset.layout
