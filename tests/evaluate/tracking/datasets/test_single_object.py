import json
import re
from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.sequences import UNUSABLE, ImageFrames
from tests.evaluate.tracking.box_folders import (
    box_lines,
    encode_image,
    frame_numbers,
    load_only,
    write_frames,
    write_otb_sequence,
)


def test_otb_is_read_as_published(real_data: Path) -> None:
    folder = real_data / "OTB100"
    if not folder.is_dir():
        pytest.skip(f"no OTB100 in {real_data}")
    loads = open_box_sequences(folder)
    lengths = {"Couple": 140, "Crossing": 120, "Dog1": 1350, "DragonBaby": 113, "Football1": 74, "Jogging-1": 307,
               "Jogging-2": 307}  # fmt: skip
    assert list(loads) == list(lengths)
    for name, load in loads.items():
        sequence = load()
        assert (sequence.name, len(sequence.frames)) == (name, lengths[name])
        assert frame_numbers(sequence) == list(range(1, lengths[name] + 1))
        text = (folder / "anno" / f"{name}.txt").read_text()
        expected = np.array([re.findall(r"\d+", line) for line in text.splitlines()], np.float64) - [1, 1, 0, 0]
        np.testing.assert_array_equal(sequence.ground_truth, expected)
        assert next(iter(sequence.frames)).ndim == 3
    assert loads["DragonBaby"]().attributes == ("SV", "OCC", "MB", "FM", "IPR", "OPR", "OV")
    assert loads["Dog1"]().attributes == ("SV", "IPR", "OPR"), "listed in anno only"
    assert loads["Jogging-2"]().attributes == ("OCC", "DEF", "OPR")
    assert list(open_box_sequences(folder / "Jogging")) == ["Jogging-1", "Jogging-2"]
    assert open_box_sequences(folder / "Jogging")["Jogging-1"]().attributes == ("OCC", "DEF", "OPR")


PUBLISHED = {  # first and last image in the archive, first and last evaluated frame
    "David": (1, 770, 300, 770), "Diving": (1, 231, 1, 215), "Football1": (1, 81, 1, 74), "Freeman3": (1, 474, 1, 460),
    "Freeman4": (1, 297, 1, 283), "BlurCar3": (3, 359, 3, 359), "Tiger1": (1, 354, 6, 354), "Board": (1, 698, 1, 698),
    "Twinnings": (1, 472, 1, 472), "Human4-2": (1, 667, 1, 667),
    "Skating2-1": (1, 473, 1, 473),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_irregular_otb_sequences_have_the_evaluated_frames(real_data: Path, tmp_path: Path, name: str) -> None:
    """The published ground truth with empty image files; only the header of the first image is read."""
    boxes_file = real_data / "OTB100" / "anno" / f"{name}.txt"
    if not boxes_file.is_file():
        pytest.skip(f"no {boxes_file}")
    first, last, start, end = PUBLISHED[name]
    base, _, number = name.partition("-")
    name_format = "{:05d}.jpg" if name == "Board" else "{:04d}.jpg"
    write_frames(tmp_path / base / "img", range(first, last + 1), name_format, b"")
    write_frames(tmp_path / base / "img", [first, start], name_format, encode_image((640, 480)))
    (tmp_path / base / f"groundtruth_rect{number and '.'}{number}.txt").write_bytes(boxes_file.read_bytes())
    if base == "Human4":
        (tmp_path / base / "groundtruth_rect.1.txt").touch()
    sequence = load_only(tmp_path)
    assert sequence.name == name
    assert frame_numbers(sequence) == list(range(start, end + 1))
    last_row = [float(number) for number in re.findall(r"[-\d.]+", boxes_file.read_text().splitlines()[-1])]
    if name in ("Board", "Twinnings"):
        assert np.isnan(sequence.ground_truth[-1]).all()
        assert np.isfinite(sequence.ground_truth[:-1]).all()
    else:
        assert sequence.ground_truth[-1].tolist() == (np.array(last_row) - [1, 1, 0, 0]).tolist()
        assert np.isfinite(sequence.ground_truth).all()
    if name == "Tiger1":
        fields = re.findall(r"\d+", boxes_file.read_text().splitlines()[5])
        assert sequence.ground_truth[0].tolist() == (np.array(fields, float) - [1, 1, 0, 0]).tolist()


@pytest.mark.parametrize(("name", "count"), [("Football1", 74), ("Tiger1", 349)])
def test_copies_with_only_the_evaluated_frames_are_read(tmp_path: Path, name: str, count: int) -> None:
    sequence = load_only(write_otb_sequence(tmp_path / name, box_lines(count), range(1, count + 1)))
    assert frame_numbers(sequence) == list(range(1, count + 1))


@pytest.mark.parametrize(
    "text",
    [
        "10,20,5,6\n11,20,5,6", "10\t20\t5\t6\r\n11\t20\t5\t6\r\n", "10 20 5 6\n 11  20\t5 6 \n\n\n",
        "\ufeff10, 20, 5, 6\n11 , 20;5\t6\n", "10.0,20.00,5e0,6\n11.,20,5,6\r",
    ],
)  # fmt: skip
def test_any_separator_is_read_and_pixels_become_zero_based(tmp_path: Path, text: str) -> None:
    (write_otb_sequence(tmp_path / "a", "", range(1, 3)) / "groundtruth_rect.txt").write_bytes(text.encode())
    assert load_only(tmp_path).ground_truth.tolist() == [[9, 19, 5, 6], [10, 19, 5, 6]]


def test_unrelated_files_are_ignored(tmp_path: Path) -> None:
    for name in ("Ein Fuß (2)", "b#%", "a"):
        write_otb_sequence(tmp_path / name)
        for file in ("Thumbs.db", ".DS_Store", "._0001.jpg", "notes.txt", "cover.jpg", "take 2.jpg"):
            (tmp_path / name / "img" / file).write_bytes(b"x")
        (tmp_path / name / "._groundtruth_rect.txt").write_bytes(b"\0\5")
        (tmp_path / name / "groundtruth_rect.txt.bak").touch()
        write_frames(tmp_path / "__MACOSX" / name / "img", [])
    write_frames(tmp_path / ".hidden" / "img", [1])
    (tmp_path / "anno").mkdir()
    (tmp_path / "anno" / "a.txt").write_text("1,1,1,1")
    (tmp_path / "results" / "STRUCK").mkdir(parents=True)
    (tmp_path / "readme.txt").touch()
    loads = open_box_sequences(str(tmp_path))
    assert list(loads) == ["Ein Fuß (2)", "a", "b#%"]
    assert all(frame_numbers(load()) == [1, 2, 3] for load in loads.values())


@pytest.mark.parametrize("name", ["{}.PNG", "img{:05d}.tif", "2024-frame_{:03d}.webp"])
def test_images_are_sorted_by_the_numbers_in_their_names(tmp_path: Path, name: str) -> None:
    write_frames(tmp_path / "s" / "img", range(8, 12), name)
    write_frames(tmp_path / "s" / "img", [9], f"._{name}")
    (tmp_path / "s" / "groundtruth_rect.txt").write_text(box_lines(4))
    sequence = load_only(tmp_path / "s")
    assert isinstance(sequence.frames, ImageFrames)
    assert [file.name for file in sequence.frames.files] == [name.format(i) for i in range(8, 12)]


def test_attributes_come_from_the_most_specific_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_otb_sequence(tmp_path / "Car")
    monkeypatch.chdir(folder)
    assert list(open_box_sequences(".")) == ["Car"]
    assert load_only(folder).attributes == ()
    (tmp_path / "tb_50.txt").write_text("Car1\tLR\nCar\tIV ,SV\nCar2\tBC\n")
    assert load_only(folder).attributes == ("IV", "SV")
    (folder / "cfg.json").write_text(json.dumps({"attributes": ["OCC", "FM"]}))
    assert load_only(folder).attributes == ("OCC", "FM")
    (folder / "attrs.txt").write_text("BC, OV,BC\r\n")
    assert load_only(tmp_path).attributes == ("BC", "OV")


def test_frame_range_of_cfg_json_is_used(tmp_path: Path) -> None:
    folder = write_otb_sequence(tmp_path / "mine", box_lines(3), range(10, 20))
    (folder / "cfg.json").write_text('{"startFrame": 12, "endFrame": 14}')
    assert frame_numbers(load_only(folder)) == [12, 13, 14]
    for damaged in ('{"startFrame": 12', "[]", "\xff", '{"startFrame": 12, "endFrame": "14"}'):
        (folder / "cfg.json").write_text(damaged, encoding="latin-1")
        with pytest.raises(UNUSABLE, match="3 boxes for 10 frames, 10 to 19"):
            load_only(folder)
    for wrong in ("15, 12", "12, 15", "19, 99999999999999"):
        first, last = wrong.split(", ")
        (folder / "cfg.json").write_text(f'{{"startFrame": {first}, "endFrame": {last}}}')
        with pytest.raises(UNUSABLE, match=r"boxes for|lacks"):
            load_only(folder)


def test_got_10k_splits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("val", "test"):
        folder = tmp_path / split / f"GOT-10k_{split}_000001"
        write_frames(folder, range(1, 5), "{:08d}.jpg")
        (folder / "groundtruth.txt").write_text("1.0000,2.0000,5.5000,6.0000\n" * (4 if split == "val" else 1))
        (tmp_path / split / "list.txt").write_text(f"GOT-10k_{split}_000001\n")
    (tmp_path / "val" / "GOT-10k_val_000001" / "absence.label").write_text("0\n1\n0\n1\n")
    sequence = load_only(tmp_path / "val")
    assert (sequence.name, sequence.frames.frame_rate) == ("GOT-10k_val_000001", 10)
    assert frame_numbers(sequence) == [1, 2, 3, 4]
    assert sequence.ground_truth[[0, 2]].tolist() == [[0, 1, 5.5, 6]] * 2
    assert np.isnan(sequence.ground_truth[[1, 3]]).all()
    assert load_only(tmp_path / "val" / "GOT-10k_val_000001").name == "GOT-10k_val_000001"
    with pytest.raises(UNUSABLE, match="a box for the first frame only; only GOT-10k's server"):
        load_only(tmp_path / "test")
    with pytest.raises(InputError, match=r"data: .* has the splits test, val; expected one of them"):
        open_box_sequences(tmp_path)
    (tmp_path / "val" / "list.txt").write_text("GOT-10k_val_000001\nGOT-10k_val_000007\n")
    open_box_sequences(tmp_path / "val")
    assert "1 of 2 sequences in" in (message := capfd.readouterr().err)
    assert "the first is GOT-10k_val_000007" in message


@pytest.mark.parametrize("above", ["airplane", "."])
def test_lasot_invisible_frames_are_nan(tmp_path: Path, above: str) -> None:
    for name in ("airplane-1", "lion-5"):
        folder = tmp_path / above / name
        write_frames(folder / "img", range(1, 554 if name == "lion-5" else 5), "{:08d}.jpg", b"")
        write_frames(folder / "img", [1], "{:08d}.jpg")
        (folder / "groundtruth.txt").write_text("1,2,5,6\n0,0,0,0\n3,2,5,6\n4,2,5,6\n")
        (folder / "full_occlusion.txt").write_text("0,1,0,0")
        (folder / "out_of_view.txt").write_text("0,0,1,0\n")
    lion = tmp_path / above / "lion-5"
    (lion / "groundtruth.txt").write_text("1,2,5,6\n" * 552 + "1,1,-1,-1\n")
    for name in ("full_occlusion", "out_of_view"):
        (lion / f"{name}.txt").write_text(",".join("0" * 553))
    loads = open_box_sequences(tmp_path)
    sequence = loads["airplane-1"]()
    assert (sequence.ground_truth[0].tolist(), sequence.frames.frame_rate) == ([0, 1, 5, 6], 30)
    assert np.isnan(sequence.ground_truth[:, 0]).tolist() == [False, True, True, False]
    invalid_lines = np.flatnonzero(np.isnan(loads["lion-5"]().ground_truth[:, 0]))
    assert invalid_lines.tolist() == [552], "the published invalid line"


def test_names_and_patterns_select_sequences(tmp_path: Path) -> None:
    for name in ("Couple", "Crossing", "Car"):
        write_otb_sequence(tmp_path / name)
    assert list(open_box_sequences(tmp_path, ["Crossing", "Ca*"])) == ["Car", "Crossing"]
    with pytest.raises(InputError, match=r"^sequences: 'cuople' matches none of the 3 .*'Couple'"):
        open_box_sequences(tmp_path, ["Car", "cuople"])


def test_invalid_data_folders_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "MOT" / "img1").mkdir(parents=True)
    (tmp_path / "a.txt").touch()
    for path, message in (
        (tmp_path, "no sequence in .*groundtruth_rect.txt .OTB"),
        (tmp_path / "a.txt", "no folder"),
        (tmp_path / "b", "no folder"),
    ):
        with pytest.raises(InputError, match=f"^data: {message}.*$"):
            open_box_sequences(path)
    for above in ("x", "y"):
        write_otb_sequence(tmp_path / above / "Car")
    with pytest.raises(InputError, match=r"has Car twice, in .*x/Car and .*y/Car"):
        open_box_sequences(tmp_path)
    write_otb_sequence(tmp_path / "z" / "Car")
    assert list(open_box_sequences(tmp_path / "z")) == ["Car"]
