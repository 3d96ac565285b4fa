import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from mec.data import ArrayDataset, FileDataset, open_dataset, read_image
from mec.errors import InputError


def write(path: Path, size: tuple[int, int] = (20, 10), color: object = (200, 30, 60), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder of two classes of ten images."""
    for name in ("ant", "bee"):
        for i in range(10):
            write(tmp_path / name / f"{i}.png", color=(i, 0, 0))
    return tmp_path


def test_subfolders_are_classes(classes: Path) -> None:
    dataset = open_dataset(classes)
    assert isinstance(dataset, FileDataset)
    assert dataset.classes == ["ant", "bee"]
    assert dataset.labels.tolist() == [0] * 10 + [1] * 10
    assert read_image(dataset, 3).shape == (10, 20, 3)


def test_random_split_has_a_fifth_of_each_class_for_testing(classes: Path) -> None:
    train, test = open_dataset(classes, "train"), open_dataset(classes, "test")
    assert sorted(train.names + test.names) == sorted(open_dataset(classes).names)
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert open_dataset(classes, "test").names == test.names


def test_images_at_any_depth_without_labels(tmp_path: Path) -> None:
    for name in ("a.JPG", "deep/er/b.png", "deep/c.webp", "d.txt", ".hidden.png", ".cache/e.png"):
        write(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("no image")
    dataset = open_dataset(tmp_path)
    assert dataset.labels is None
    assert sorted(dataset.names) == ["a.JPG", os.path.join("deep", "c.webp"), os.path.join("deep", "er", "b.png")]


def test_circular_links_are_followed_once(classes: Path) -> None:
    (classes / "ant" / "again").symlink_to(classes)
    assert len(open_dataset(classes)) == 20


def test_folder_with_its_own_splits(tmp_path: Path) -> None:
    for split, names in (("train", ("a", "b")), ("val", ("b", "a"))):
        for name in names:
            write(tmp_path / split / name / "x.png")
    assert open_dataset(tmp_path, "test").classes == ["a", "b"]
    assert len(open_dataset(tmp_path, "train")) == 2
    write(tmp_path / "val" / "new" / "x.png")
    test = open_dataset(tmp_path, "test")
    assert (test.labels, "the training split lacks 1 of its classes (new)" in test.layout) == (None, True)


def test_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([5, 7, 5, 7, 5, 7]))
    dataset = open_dataset(tmp_path / "a.npz")
    assert dataset.classes == ["5", "7"]
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert np.array_equal(read_image(dataset, 2), images[2])
    np.savez(tmp_path / "b.npz", x=rng.random((4, 8, 8)).astype(np.float32))
    assert read_image(open_dataset(tmp_path / "b.npz"), 0).shape == (8, 8, 3)
    arrays = {"images": images, "labels": np.eye(6)[:, :1]}
    medmnist = {f"{split}_{key}": array for split in ("train", "test") for key, array in arrays.items()}
    np.savez(tmp_path / "c.npz", **medmnist)
    assert len(open_dataset(tmp_path / "c.npz", "test")) == 6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.full((4, 8, 8), "a")}, "expected numeric images"),
        ({"images": np.zeros((4, 8), np.uint8)}, r"\(n, height, width"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3)}, "expected 4 labels, got 3"),
        ({"weights": np.zeros(3)}, "expected an array images"),
        ({"images": np.array([None, {}])}, "cannot read|allow_pickle"),
    ],
)
def test_invalid_npz_is_an_input_error(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path / "a.npz")


def test_digits_come_with_the_installation() -> None:
    train, test = open_dataset("digits", "train"), open_dataset("digits", "test")
    assert isinstance(train, ArrayDataset)
    assert (train.images.shape, len(test), train.images.max()) == ((1347, 8, 8, 1), 450, 255)


def test_failed_download_names_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("MEC_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", refuse)
    with pytest.raises(InputError, match=r"fashion-mnist is not in .*no route to host.*MEC_DATA"):
        open_dataset("fashion-mnist")


def test_invalid_data_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.doc").write_text("")
    for source, message in (
        (tmp_path / "absent", r"does not exist; built-in datasets: cifar10, cifar100, digits"),
        (tmp_path / "empty", "no image in"),
        (tmp_path / "a.txt", "lists no image"),
        (tmp_path / "a.doc", "expected a folder, .txt"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(source)


def test_real_photographs(real_data: Path) -> None:
    dataset = open_dataset(real_data / "caltech101" / "101_ObjectCategories")
    assert (len(dataset), len(dataset.classes)) == (3969, 101)
    assert read_image(dataset, 0).shape[2] == 3


def test_stl10_pretrains_on_its_unlabeled_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout that torchvision unpacks: bytes (n, channels, columns, rows), and labels from 1."""
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for name, n in (("train", 4), ("test", 3))}
    images["unlabeled"] = rng.integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
    for split, pixels in images.items():
        (folder / f"{split}_X.bin").write_bytes(pixels.tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 3, 10]))
    (folder / "test_y.bin").write_bytes(bytes([10, 1, 2]))
    (folder / STL10.class_names_file).write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    monkeypatch.setenv("MEC_DATA", str(tmp_path))
    pretrain, train, test = (open_dataset("stl10", split) for split in ("pretrain", "train", "test"))
    assert (len(pretrain), len(train), len(test)) == (5, 4, 3)
    assert pretrain.labels is None
    assert train.labels.tolist() == [0, 1, 2, 9]
    assert test.classes == list("abcdefghij")
    assert np.array_equal(read_image(pretrain, 1), images["unlabeled"][1].transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["10", "-2", "9"], ["-2", "9", "10"]), (["②", "①"], ["①", "②"]), (["--5", "1"], ["--5", "1"])],
)
def test_integer_classes_are_sorted_as_numbers_and_others_alphabetically(
    tmp_path: Path, names: list[str], expected: list[str]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("".join(f"{i}.png,{name}\n" for i, name in enumerate(names)))
    assert open_dataset(path).classes == expected


def test_a_header_is_not_a_class(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image,species\na.jpg,cat\n")
    assert open_dataset(path).classes == ["cat"]
    path.write_text("a.jpg,cat\nb.jpg,image\n")
    assert open_dataset(path).classes == ["cat", "image"]


@pytest.mark.parametrize(("name", "num_train"), [("cifar10", 10), ("cifar100", 2)])
def test_cifar_in_the_layout_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_train: int
) -> None:
    """Pickled batches as torchvision downloads them; their checksums are not tested here."""
    dataset_class = getattr(torchvision.datasets, name.upper())
    folder = tmp_path / dataset_class.base_folder
    folder.mkdir()
    last = 9 if name == "cifar10" else 99
    for batch, *_ in dataset_class.train_list + dataset_class.test_list:
        labels = {"labels" if name == "cifar10" else "fine_labels": [0, last]}
        (folder / batch).write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8)} | labels))
    classes = {dataset_class.meta["key"]: [f"c{i:02}" for i in range(last + 1)]}
    (folder / dataset_class.meta["filename"]).write_bytes(pickle.dumps(classes))
    monkeypatch.setattr(dataset_class, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    assert open_dataset(tmp_path, "test").labels.tolist() == [0, last]
    monkeypatch.setenv("MEC_DATA", str(tmp_path))
    train = open_dataset(name, "train")
    assert (len(train), len(train.classes)) == (num_train, last + 1)
    for split in ("train", "test"):  # image folders come first
        write(tmp_path / name / split / "cat" / "0.png", size=(32, 32))
    assert open_dataset(name, "test").classes == ["cat"]
