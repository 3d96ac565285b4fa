import json
import unicodedata
from pathlib import Path

import pytest

from mec.errors import InputError
from mec.evaluate.detection.datasets.image_files import find_images


def write_files(folder: Path, *names: str) -> Path:
    """Write empty image files; return the path of a JSON file beside them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder / "a.json"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("./a.jpg", "a.jpg"),
        ("sub/./a.jpg", "sub/a.jpg"),
        (r"sub\deep\a.jpg", "sub/deep/a.jpg"),
        ("my%20photo%20(0).jpg", "my photo (0).jpg"),
        ("A.JPG", "a.jpg"),
        ("a.jpeg", "a.jpg"),
        ("a", "a.png"),
        ("photos/a.v2", "photos/a.v2.tif"),
        (r"C:\data\a.jpg", "a.jpg"),
        ("/home/me/data/A.jpg", "a.jpg"),
        ("https://host/data/a%2Bb.jpg", "a+b.jpg"),
        ("caf\u00e9.jpg", unicodedata.normalize("NFD", "caf\u00e9.jpg")),
    ],
)
def test_names_spelled_otherwise_are_found_and_logged(
    tmp_path: Path, name: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_files(tmp_path, file, "other.jpg")
    assert find_images(path, ["other.jpg", name]) == (tmp_path, ["other.jpg", file])
    line = f"a.json: 1 of 2 images are spelled otherwise in {tmp_path}: {name!r} is read as {file!r}\n"
    assert capfd.readouterr().err == line


@pytest.mark.parametrize(
    "names", [["50%25.jpg", "50%.jpg"], ["a.jpg", "A.jpg", "a.png"], ["x y/b.jpg", "b.jpg"], [r"a\b.jpg", "b.jpg"]]
)
def test_exact_names_come_first(tmp_path: Path, names: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    path = write_files(tmp_path, *names)
    assert find_images(path, names[::-1]) == (tmp_path, names[::-1])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("names", "files", "missing"),
    [
        (["a.jpg"], ["a.png", "a.bmp"], 1),  # which of the two?
        (["a.jpg", "A.jpg"], ["a.JPG"], 2),  # of which of the two?
        (["a.jpg", "b/a.jpg"], ["a.jpg"], 1),  # the file has its own name
        (["a.jpg"], ["a.txt"], 1),  # no image
        (["1/a.jpg", "2/a.jpg"], ["a.jpg", "b.jpg"], 2),
    ],
)
def test_ambiguous_names_are_missing(tmp_path: Path, names: list[str], files: list[str], missing: int) -> None:
    path = write_files(tmp_path, *files)
    with pytest.raises(InputError, match=f"^data: {missing} of {len(names)} images of .* are missing, the first is "):
        find_images(path, names)


def test_a_folder_of_exact_names_is_preferred_to_one_of_similar_names(tmp_path: Path) -> None:
    write_files(tmp_path, "train/A.jpg", "images/a.jpg")
    path = tmp_path / "train.json"
    path.write_text(json.dumps({}))
    assert find_images(path, ["a.jpg"]) == (tmp_path / "images", ["a.jpg"])
