import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mec.errors import InputError
from mec.evaluate.tracking.datasets.davis import PALETTE, open_mask_sequences
from mec.evaluate.tracking.sequences import Labels, MaskSequence, SequenceError

RED, GREEN, YELLOW, PALETTES_VOID = (128, 0, 0), (0, 128, 0), (128, 128, 0), (224, 224, 192)
"""The first three colors of DAVIS, and its 256th."""
H, W = 6, 8


def grid(*values: Any) -> np.ndarray:
    """Columns 0, 1 ... have these values; the rest is 0."""
    mask = np.zeros((H, W, *np.shape(values)[1:]), np.uint8)
    mask[:, : len(values)] = values
    return mask


def image(mask: np.ndarray, kind: str) -> Image.Image:
    image = Image.fromarray(mask)
    if kind == "P":
        image.putpalette([*(0, 0, 0), *RED, *GREEN, *YELLOW, *[7] * 753])
    return image.convert("1") if kind == "1" else image


def write(
    root: Path, masks: Sequence[np.ndarray | None], kind: str = "P", name: str = "dog", size: str = "480p"
) -> Path:
    """A sequence; frames are named by fives, as those of YouTube-VOS, and frame i is gray i."""
    frames, annotations = root / "JPEGImages" / size / name, root / "Annotations" / size / name
    for folder in (frames, annotations):
        folder.mkdir(parents=True)
    for i, mask in enumerate(masks):
        Image.fromarray(np.full((H, W, 3), i, np.uint8)).save(frames / f"{5 * i:05}.jpg")
        if mask is not None:
            image(mask, kind).save(annotations / f"{5 * i:05}.png")
    return annotations


def load(root: Path, name: str = "dog") -> MaskSequence:
    return open_mask_sequences(root)[name]()


def columns(labels: Labels | None) -> list[int]:
    assert labels is not None
    assert labels.dtype == np.uint8
    assert (labels == labels[0]).all()
    return labels[0].tolist()


def test_palette_is_that_of_pascal_voc() -> None:
    # published in the development kit of PASCAL VOC 2012
    assert PALETTE[:9].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128], [128, 128, 128],
        [64, 0, 0],
    ]  # fmt: skip
    assert PALETTE[[20, 255]].tolist() == [[0, 64, 128], [224, 224, 192]]
    assert len({tuple(color) for color in PALETTE.tolist()}) == 256


@pytest.mark.parametrize(
    ("kind", "first", "second", "labels", "later"),
    [
        pytest.param("P", (1, 2, 255), (2, 255, 3), [1, 2, 255], [2, 255, 0], id="indices, void, a new object"),
        pytest.param("P", (3, 7), (7, 1), [3, 7], [7, 0], id="indices with gaps"),
        pytest.param("L", (255, 255), (0, 255), [1, 1], [0, 1], id="white is the object of DAVIS 2016"),
        pytest.param("L", (1, 2), (2, 255), [1, 2], [2, 255], id="grays are labels"),
        pytest.param("L", (1, 2, 255), (255, 1), [1, 2, 255], [255, 1], id="white with other labels is void"),
        pytest.param("RGB", (GREEN, RED, YELLOW), (RED, (9, 9, 9)), [2, 1, 3], [1, 0], id="DAVIS's colors"),
        pytest.param("RGB", (GREEN, RED), (PALETTES_VOID, RED), [2, 1], [255, 1], id="and its void"),
        pytest.param("RGB", ((9, 0, 0), (0, 9, 0)), ((0, 9, 0), RED), [2, 1], [1, 0], id="other colors"),
        pytest.param("RGB", ((0, 0, 9), RED), (RED, (0, 0, 9)), [1, 2], [2, 1], id="other colors and one of DAVIS's"),
        pytest.param("RGB", ((255,) * 3,), ((0,) * 3, (255,) * 3), [1], [0, 1], id="white in three channels"),
        pytest.param("RGB", ((1,) * 3, (2,) * 3), ((2,) * 3,), [1, 2], [2], id="labels in three channels"),
        pytest.param("RGBA", ((*RED, 255), (*GREEN, 0)), ((*GREEN, 0), (*RED, 9)), [1, 0], [0, 1], id="transparent"),
    ],
)
def test_labels_of_all_mask_encodings(
    tmp_path: Path, kind: str, first: Any, second: Any, labels: list[int], later: list[int]
) -> None:
    write(tmp_path, [grid(*first), grid(*second)], kind)
    sequence = load(tmp_path)
    for frame, expected in enumerate((labels, later)):
        assert columns(sequence.ground_truth(frame)) == [*expected, *[0] * (W - len(expected))]


@pytest.mark.parametrize(
    ("kind", "first", "colors"),
    [
        ("P", (1, 2), {1: RED, 2: GREEN, 9: (7, 7, 7)}),
        ("L", (255,), {1: (255,) * 3}),
        ("L", (1, 2), {1: (1,) * 3, 2: (2,) * 3}),
        ("RGB", ((9, 0, 0), (0, 9, 8)), {1: (0, 9, 8), 2: (9, 0, 0)}),
        ("RGB", (GREEN, RED), {1: RED, 2: GREEN}),
    ],
)
def test_palette_comes_from_the_masks(tmp_path: Path, kind: str, first: Any, colors: dict[int, Any]) -> None:
    write(tmp_path, [grid(*first)], kind)
    palette = load(tmp_path).palette
    assert palette.shape == (256, 3)
    assert {label: tuple(palette[label].tolist()) for label in colors} == colors


def test_unannotated_frames_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, [grid(1) if i % 5 == 0 else None for i in range(12)], name="fifth")
    write(tmp_path, [grid(1), None, None], name="first")
    fifth, first = load(tmp_path, "fifth"), load(tmp_path, "first")
    assert [i for i in range(12) if fifth.ground_truth(i) is not None] == [0, 5, 10]
    assert [first.ground_truth(i) is None for i in range(3)] == [False, True, True]
    assert fifth.name == "fifth"
    assert fifth.names[:3] == ("00000", "00005", "00010")
    assert [int(frame[0, 0, 0]) for frame in fifth.frames] == list(range(12))


def test_frames_are_in_numeric_order(tmp_path: Path) -> None:
    folder = write(tmp_path, [])
    for i in (10, 9, 8):
        Image.fromarray(np.full((H, W, 3), i, np.uint8)).save(tmp_path / f"JPEGImages/480p/dog/{i}.png")
        image(grid(1), "L").save(folder / f"{i}.png")
    sequence = load(tmp_path)
    assert sequence.names == ("8", "9", "10")
    assert [int(frame[0, 0, 0]) for frame in sequence.frames] == [8, 9, 10]


def test_objects_missing_in_the_first_mask_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [grid(1), grid(1, 255), grid(1, 2), grid(2)])
    sequence = load(tmp_path)
    expected = "dog: 2 masks, first 00010.png, have objects that the first mask lacks; they are background\n"
    assert capsys.readouterr().err.endswith(expected)
    assert columns(sequence.ground_truth(3)) == [0] * W


@pytest.mark.parametrize(
    ("inner", "size"), [("", "480p"), ("DAVIS", "Full-Resolution"), ("2017-trainval", "1080p"), ("", ""), ("DAVIS", "")]
)
def test_layouts(tmp_path: Path, inner: str, size: str) -> None:
    write(tmp_path / inner, [grid(1)], size=size)
    # files that other systems create
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / inner / folder / size / ".cache").mkdir()
        (tmp_path / inner / folder / size / "dog" / "._00000.png").write_bytes(b"Mac")
    assert list(open_mask_sequences(tmp_path)) == ["dog"]
    assert len(load(tmp_path).frames) == 1


def test_480p_comes_first_and_has_its_masks(tmp_path: Path) -> None:
    write(tmp_path, [grid(1)], size="Full-Resolution", name="large")
    write(tmp_path, [grid(1)], name="small")
    assert list(open_mask_sequences(tmp_path)) == ["small"]
    (tmp_path / "Annotations/480p").rename(tmp_path / "elsewhere")
    assert list(open_mask_sequences(tmp_path)) == ["large"]


def test_lists(tmp_path: Path) -> None:
    for name in ("ape", "bear", "cow"):
        write(tmp_path, [grid(1)], name=name)
    opened = open_mask_sequences(tmp_path)
    assert list(opened) == ["ape", "bear", "cow"]
    assert "no ImageSets/2017/val.txt, so all sequences with masks" in opened.description
    lines = [f"/JPEGImages/480p/{n}/{i}.jpg /Annotations/480p/{n}/{i}.png" for n in "ab" for i in "01"]
    for year, text in (("480p", "\n".join(lines)), ("2016", "cow\nape\n\n"), ("2017", "bear\ngone")):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
        (tmp_path / "ImageSets" / year / "val.txt").write_text(text)
    opened = open_mask_sequences(tmp_path)
    assert list(opened) == ["bear", "gone"]
    assert f"the 2 sequences of {tmp_path}/ImageSets/2017/val.txt, of 3 in the folders" in opened.description
    assert list(open_mask_sequences(tmp_path, ["ape"])) == ["ape"]
    file = tmp_path / "ImageSets/2017/val.txt"
    for data, message in ((b"", "is empty, expected names of sequences"), (b"be\xff", "is not text")):
        file.write_bytes(data)
        with pytest.raises(InputError, match=f"^data: {file} {message}"):
            open_mask_sequences(tmp_path)
    file.write_text("bear\r\ngone", encoding="utf-16")
    assert list(open_mask_sequences(tmp_path)) == ["bear", "gone"]
    with pytest.raises(SequenceError, match="gone: No such file"):
        load(tmp_path, "gone")
    (tmp_path / "ImageSets/2017/val.txt").unlink()
    assert list(open_mask_sequences(tmp_path)) == ["cow", "ape"]
    (tmp_path / "ImageSets/2016/val.txt").unlink()
    with pytest.raises(InputError, match=r"data: none of 2 sequences is in .*; the first is a$"):
        open_mask_sequences(tmp_path)


def test_invalid_data_is_rejected_in_one_line(tmp_path: Path) -> None:
    def message(data: Path, names: Sequence[str] | None = None) -> str:
        with pytest.raises(InputError) as error:
            open_mask_sequences(data, names)
        assert "\n" not in str(error.value)
        return str(error.value).replace(str(tmp_path), "DATA")

    assert message(tmp_path / "no") == "data: no folder DATA/no"
    assert message(tmp_path) == "data: expected JPEGImages in DATA or in exactly one of its folders, got none"
    for name in ("a", "b"):
        (tmp_path / name / "JPEGImages/480p").mkdir(parents=True)
    assert message(tmp_path).endswith("of its folders, got a, b")
    assert message(tmp_path / "a").startswith("data: DATA/a has JPEGImages but no Annotations of the same resolution")
    (tmp_path / "a/Annotations/1080p/dog").mkdir(parents=True)
    assert message(tmp_path / "a").startswith("data: DATA/a has JPEGImages but no Annotations of the same resolution")
    (tmp_path / "b/Annotations/480p").mkdir(parents=True)
    assert message(tmp_path / "b") == "data: none of 0 sequences is in DATA/b/JPEGImages/480p"
    (tmp_path / "b/Annotations/480p/dog").mkdir()
    for name in ("dig", "../dog", "zebra"):
        assert message(tmp_path / "b", [name]).startswith(f"sequences: {name!r} matches none of the 1 sequences")


@pytest.mark.parametrize(
    ("masks", "kind", "message"),
    [
        ([], "P", "dog: no frames"),
        ([None, grid(1)], "P", "1 masks for 2 frames, 00000.png is the first missing one"),
        ([grid(), grid(1)], "P", "00000.png: no object in the first mask"),
        ([grid(255, 255)], "P", "00000.png: no object in the first mask"),
        ([grid(1), None, grid(1), grid(1)], "P", "3 masks for 4 frames, 00005.png is the first missing one"),
        ([grid(1), grid(1), grid(1), None], "P", "3 masks for 4 frames, 00015.png is the first missing one"),
        ([grid(1), grid(1)[:, 1:]], "P", "00005.png: 7 x 6 pixels, expected 8 x 6 as in its frame"),
        ([grid((9, 9, 9), (255, 255, 255))], "RGB", "or only white on black, got gray levels [9, 255]"),
        ([grid(1).astype(np.uint16)], "I;16", "expected indices, gray levels or colors of 8 bits, got"),
    ],
)
def test_invalid_sequences_are_rejected(tmp_path: Path, masks: Any, kind: str, message: str) -> None:
    write(tmp_path, masks, kind)
    opened = open_mask_sequences(tmp_path)
    with pytest.raises(SequenceError, match=re.escape(message)):
        opened["dog"]()


def test_photographs_are_not_masks(tmp_path: Path) -> None:
    folder = write(tmp_path, [None, None])
    for i in range(2):
        smooth = np.random.default_rng(i).integers(0, 256, (H, W, 3), np.uint8).repeat(6, 0).repeat(6, 1)
        for name, kind in (("JPEGImages/480p/dog", "jpg"), ("Annotations/480p/dog", "png")):
            Image.fromarray(smooth).resize((90, 90)).save(tmp_path / name / f"{5 * i:05}.{kind}")
    with pytest.raises(SequenceError, match=r"00000.png: expected one color for each of up to 254 objects, got \d+"):
        load(tmp_path)
    for file in folder.iterdir():
        image(np.ones((90, 90), np.uint8), "P").save(file)
    Image.fromarray(np.ones((90, 90, 3), np.uint8)).save(folder / "00005.png")
    with pytest.raises(SequenceError, match=r"00005.png: expected indices or gray levels as in the first mask"):
        load(tmp_path)


def test_corrupt_files_are_detected_on_loading(tmp_path: Path) -> None:
    folder = write(tmp_path, [grid(1)] * 3)
    intact, frame = (folder / "00010.png").read_bytes(), tmp_path / "JPEGImages/480p/dog/00010.jpg"
    for damaged in (b"", b"text", frame.read_bytes(), intact[:-30], intact.replace(b"IDAT", b"IDAX")):
        (folder / "00010.png").write_bytes(damaged)
        with pytest.raises(SequenceError, match=r"00010.png: .") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)
    (folder / "00010.png").write_bytes(intact)
    frame.write_bytes(b"text")
    with pytest.raises(SequenceError, match=r"00010.jpg: ."):
        load(tmp_path)
    Image.fromarray(np.zeros((H, 2 * W, 3), np.uint8)).save(frame)
    with pytest.raises(SequenceError, match=r"00010.jpg: 16 x 6 pixels, expected 8 x 6 as in the first frame"):
        load(tmp_path)
    frame.unlink()
    with pytest.raises(SequenceError, match=r"00010.png: a mask without a frame"):
        load(tmp_path)
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(frame)
    assert len(load(tmp_path).frames) == 3
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save(frame.with_suffix(".png"))
    with pytest.raises(SequenceError, match="dog: two frames have the same name"):
        load(tmp_path)


def test_real_davis(real_data: Path) -> None:
    opened = open_mask_sequences(real_data / "davis16-subset")
    assert list(opened) == ["blackswan", "dog", "drift-straight", "kite-surf", "libby", "motocross-jump"]
    lengths = []
    for load_one in opened.values():
        sequence = load_one()
        lengths.append(len(sequence.frames))
        labels = sequence.ground_truth(lengths[-1] - 1)
        assert labels is not None
        assert labels.shape == (480, 854)
        assert set(np.unique(labels)) <= {0, 1}
    assert lengths == [50, 60, 50, 50, 49, 40]
