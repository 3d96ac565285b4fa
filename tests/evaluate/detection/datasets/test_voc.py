from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def object_xml(name: str, box: str = "1 1 10 20", extra: str = "") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object>{extra}<name>{name}</name><bndbox>{inner}</bndbox></object>"


def write_image(folder: Path, stem: str, *objects: str, size: str = "<width>30</width><height>20</height>") -> None:
    """Write an XML file and an empty image file; pixels are not read in these tests."""
    for subfolder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages" / f"{stem}.jpg").touch()
    text = f"<annotation><filename>x</filename><size>{size}</size>{''.join(objects)}</annotation>"
    (folder / "Annotations" / f"{stem}.xml").write_text(text)


def write_lists(folder: Path, **lists: str) -> None:
    for name, stems in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(stems.split()) + "\n")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Write both years as in the unpacked archives of the challenges."""
    devkit = tmp_path / "VOCdevkit"
    for year, stems in ((2007, ["000001", "000002", "000003", "000004"]), (2012, ["2008_000008", "2011_003216"])):
        for i, stem in enumerate(stems):
            write_image(devkit / f"VOC{year}", stem, object_xml(VOC_CLASSES[i + year - 2007]), object_xml("person"))
    voc2007, voc2012 = devkit / "VOC2007", devkit / "VOC2012"
    write_lists(voc2007, train="000001", val="000002", trainval="000001 000002", test="000004 000003")
    write_lists(voc2012, train="2008_000008", val="2011_003216", trainval="2008_000008 2011_003216", test="absent")
    (voc2007 / "ImageSets" / "Main" / "dog_trainval.txt").write_text("000001 -1\n000002  1\n")
    return devkit


def stems_of(dataset: AnnotatedDataset) -> list[str]:
    return [Path(dataset.images.title(i)).stem for i in range(len(dataset))]


TRAINVAL = ["000001", "000002", "2008_000008", "2011_003216"]
"""Images of both years."""


@pytest.mark.parametrize(
    ("years", "train_stems", "folder"),
    [
        (None, TRAINVAL, "."),
        ((2007,), TRAINVAL[:2], ".."),
        ((2007, 2012), TRAINVAL, ".."),
        ((2012,), TRAINVAL[2:], "."),
    ],
)
def test_splits_are_trainval_of_the_years_and_test_of_2007(
    devkit: Path, years: tuple[int, ...] | None, train_stems: list[str], folder: str
) -> None:
    train, test = open_annotated(devkit / folder, years)
    assert (stems_of(train), stems_of(test)) == (train_stems, ["000004", "000003"])
    assert all(Path(split.images.title(i)).is_file() for split in (train, test) for i in range(len(split)))
    assert (train.image_ids.tolist(), test.image_ids.tolist()) == (list(range(1, len(train_stems) + 1)), [1, 2])
    assert train.categories == test.categories == VOC_CLASSES
    assert train.category_ids.tolist() == list(range(1, 21))
    assert train.ap_metric == test.ap_metric == "voc07"
    assert [test.categories[i] for i in test.labels] == ["boat", "person", "bird", "person"]
    assert not train.has_masks
    assert test.name == "VOC2007 test"


def test_names_include_the_lists(devkit: Path) -> None:
    assert open_annotated(devkit)[0].name == "VOC2007 trainval + VOC2012 trainval"
    (devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").unlink()
    train, _ = open_annotated(devkit / "VOC2007")
    assert (train.name, stems_of(train)) == ("VOC2007 train", ["000001"])


@pytest.mark.parametrize(("year", "ap_metric"), [(2007, "voc07"), (2012, "voc")])
def test_without_a_test_list_the_splits_are_train_and_val(devkit: Path, year: int, ap_metric: str) -> None:
    (devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    stems = TRAINVAL[:2] if year == 2007 else TRAINVAL[2:]
    for path, years in ((devkit, (year,)), (devkit / f"VOC{year}", None)):
        train, test = open_annotated(path, years)
        assert (stems_of(train), stems_of(test), test.ap_metric) == (stems[:1], stems[1:], ap_metric)
    train, test = open_annotated(devkit)
    assert (stems_of(train), stems_of(test)) == (["000001", "2008_000008"], ["000002"])


def test_missing_years_are_rejected(devkit: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: expected VOC2010, .* has VOC2007 and VOC2012"):
        open_annotated(devkit, (2007, 2010))
    write_image(tmp_path / "mine", "a", object_xml("dog"))
    with pytest.raises(InputError, match=r"data: expected VOC2007, .*mine has a dataset without years"):
        open_annotated(tmp_path / "mine", (2007,))


def test_objects_by_hand(devkit: Path) -> None:
    """VOC counts pixels from 1 and includes the last."""
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    write_image(
        devkit / "VOC2007",
        "000001",
        object_xml("dog", "1 1 30 20", "<difficult>1</difficult>"),
        object_xml("person", "45.70 4.50 12 12"),
        object_xml("cat", "5.5 6 7.25 8", f"<difficult>0</difficult>{part}"),
    )
    train, _ = open_annotated(devkit, (2007,))
    assert train.sizes.tolist() == [[20, 30]] * 2
    assert train.offsets.tolist() == [0, 3, 5]
    assert train.boxes[:3].tolist() == [[0, 0, 30, 20], [44.7, 3.5, 12, 12], [4.5, 5, 7.25, 8]]
    assert [train.categories[i] for i in train.labels[:3]] == ["dog", "person", "cat"]
    assert train.areas[:3].tolist() == [600, 0, 2.75 * 3]
    assert train.is_difficult.tolist() == [True] + [False] * 4
    assert train.is_target.tolist() == [True, False, True, True, True], "difficult objects are targets"
    assert not train.is_crowd.any()


def test_a_custom_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    for i, name in enumerate(["wolf", "dog", "wolf", "ant", "dog"]):
        write_image(mine, f"p{i}", object_xml(name))
    (mine / "JPEGImages" / "p1.jpg").rename(mine / "JPEGImages" / "p1.PNG")
    for folder in ("ImageSets/Main", "ImageSets"):
        (mine / folder).rmdir()
    train, test = open_annotated(mine)
    assert (len(train), len(test)) == (4, 1), "there are no lists"
    assert "test: mine all, 1/5, 1 image, 1 object of 1 class, held out" in capfd.readouterr().err
    (mine / "ImageSets" / "Main").mkdir(parents=True)
    write_lists(mine, train="p0 p1 p3", val="p2", test="p4")
    train, test = open_annotated(mine)
    assert (stems_of(train), stems_of(test), test.ap_metric) == (["p0", "p1", "p3"], ["p4"], "voc")
    assert train.images.names[1] == "mine/JPEGImages/p1.PNG"
    assert train.categories == test.categories == ["ant", "dog", "wolf"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1, 0], [1])
    write_lists(mine, train="p1 p0", test="p3")
    with pytest.raises(InputError, match="data: mine test has 'ant', a class that mine train lacks"):
        open_annotated(mine)


def test_a_folder_without_annotations_is_rejected(tmp_path: Path) -> None:
    for subfolder in ("Annotations", "JPEGImages"):
        (tmp_path / "mine" / subfolder).mkdir(parents=True)
    with pytest.raises(InputError, match=r"data: no .xml in .*mine/Annotations"):
        open_annotated(tmp_path / "mine")


def test_a_fifth_of_a_single_list_is_held_out(tmp_path: Path) -> None:
    for i in range(10):
        write_image(tmp_path / "mine", f"p{i}", object_xml("dog"))
    write_lists(tmp_path / "mine", trainval=" ".join(f"p{i}" for i in range(10)))
    train, test = open_annotated(tmp_path / "mine")
    assert (len(train), len(test)) == (8, 2)
    assert sorted(stems_of(train) + stems_of(test)) == [f"p{i}" for i in range(10)]
    assert np.array_equal(np.sort(np.concatenate([train.image_ids, test.image_ids])), np.arange(1, 11))
    assert train.categories == VOC_CLASSES


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><size>", "000001.xml cannot be read as XML (no element found: line 1, column 18)"),
        ("<annotation></annotation>", "000001.xml: expected a size with a height and a width of at least a pixel"),
        ("<annotation><size><width>0</width><height>9</height></size></annotation>", "expected a size with a height"),
        (object_xml("dog", "1 1 x 4"), "000001.xml: object 2 has no complete bndbox"),
        (object_xml("dog", "1 1 nan 4"), "000001.xml: object 2 has no complete bndbox"),
        ("<object><name>dog</name></object>", "object 2 has no complete bndbox"),
        (object_xml(" "), "object 2 has no name"),
    ],
)
def test_invalid_xml_is_rejected(devkit: Path, xml: str, message: str) -> None:
    path = devkit / "VOC2007" / "Annotations" / "000001.xml"
    if xml.startswith("<object>"):
        write_image(devkit / "VOC2007", "000001", object_xml("dog"), xml)
    else:
        path.write_text(xml)
    with pytest.raises(InputError) as error:
        open_annotated(devkit)
    assert str(error.value).startswith("data: ")
    assert message in str(error.value)


def test_missing_files_are_counted(devkit: Path) -> None:
    folder = devkit / "VOC2007"
    (folder / "JPEGImages" / "000003.jpg").unlink()
    with pytest.raises(InputError) as error:
        open_annotated(devkit)
    searched = folder / "JPEGImages"
    assert str(error.value) == f"data: 1 of 2 images are missing, the first is 000003; searched {searched}"
    (folder / "Annotations" / "000001.xml").unlink()
    with pytest.raises(InputError, match=r"1 of 2 annotations are missing, the first is 000001; .*VOC2007/Annotations"):
        open_annotated(devkit)
    write_lists(folder, trainval="000001 000002 000001")
    with pytest.raises(InputError, match=r"trainval.txt has 000001 twice"):
        open_annotated(devkit)
    write_lists(folder, trainval="")
    with pytest.raises(InputError, match=r"trainval.txt is empty"):
        open_annotated(devkit)
    for name in ("trainval", "train"):
        (folder / "ImageSets" / "Main" / f"{name}.txt").unlink()
    with pytest.raises(InputError, match=r"data: expected trainval.txt or train.txt in .*VOC2007/ImageSets/Main"):
        open_annotated(devkit)


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("my photo (0)", "my photo (0)"),
        ("my photo (0)  1", "my photo (0)"),
        ("my photo (0) -1", "my photo (0)"),
        ("000001  1", "000001"),
        ("000001 1 0.5", "000001"),
        ("a 1", "a 1"),  # although there is an image a
        ("a.v2", "a.v2"),
        ("a.v2.jpg", "a.v2"),
        ("JPEGImages/my photo (0).jpg", "my photo (0)"),
        ("D:\\VOC\\JPEGImages\\000001.JPG", "000001"),
        ("\ufeff000001", "000001"),
    ],
)
def test_a_line_of_a_list_is_a_name_or_has_columns(tmp_path: Path, line: str, stem: str) -> None:
    mine = tmp_path / "mine"
    for name in ("my photo (0)", "000001", "a", "a 1", "a.v2", "other", "._other"):
        write_image(mine, name, object_xml("dog"))
    for name, text in (("train", line), ("test", "other")):
        (mine / "ImageSets" / "Main" / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    train, _ = open_annotated(mine)
    assert train.images.names == [f"mine/JPEGImages/{stem}.jpg"]


def test_lists_in_other_encodings_are_read_or_refused(devkit: Path) -> None:
    path = devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
    path.write_text("000001\n000002\n", encoding="utf-16")
    assert stems_of(open_annotated(devkit, (2007,))[0]) == ["000001", "000002"]
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"^data: .*trainval.txt is not text in UTF-8"):
        open_annotated(devkit, (2007,))


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("p0", "p1", "._p0"):
        write_image(tmp_path / "mine", name, object_xml("dog"))
    for folder in ("ImageSets/Main", "ImageSets"):
        (tmp_path / "mine" / folder).rmdir()
    train, test = open_annotated(tmp_path / "mine")
    assert sorted(stems_of(train) + stems_of(test)) == ["p0", "p1"]


def test_polygons_of_voc_are_a_warning_in_capitals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    polygon = "<polygon><x1>1</x1><y1>1</y1><x2>9</x2><y2>1</y2><x3>9</x3><y3>9</y3></polygon>"
    for name, extra in (("p0", polygon), ("p1", ""), ("p2", polygon)):
        write_image(tmp_path / "mine", name, object_xml("dog", extra=extra), object_xml("cat"))
    write_lists(tmp_path / "mine", train="p0 p1", test="p2")
    train, _ = open_annotated(tmp_path / "mine")
    assert not train.has_masks
    first, second, contents = capfd.readouterr().err.splitlines()
    assert first.startswith("warning: mine train: POLYGONS OF VOC ARE NOT READ, THE DETECTOR LEARNS BOXES ONLY (2 obj")
    assert second.startswith("warning: mine test: POLYGONS")
    assert contents.startswith("mine: PASCAL VOC, boxes only, 20 classes; ")


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([object_xml("dog", f"1 1 {side} 9", "<difficult>1</difficult>") for side in (5, 6)], r"difficult objects 2\)"),
        ([object_xml("dog", "40 4 50 9"), object_xml("dog", extra="<difficult>True</difficult>")],
         r"boxes outside the image or without area 1, difficult objects 1\)"),
        ([], r"images without objects 1\)"),
    ],
)  # fmt: skip
def test_a_test_split_without_objects_to_count_is_refused(tmp_path: Path, objects: list[str], reason: str) -> None:
    write_image(tmp_path / "mine", "p0", object_xml("dog"))
    write_image(tmp_path / "mine", "p1", *objects)
    write_lists(tmp_path / "mine", train="p0", test="p1")
    with pytest.raises(InputError, match=rf"^data: mine test \(test\) has no object to count \({reason}"):
        open_annotated(tmp_path / "mine")
