from pathlib import Path

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.detection.datasets import open_annotated
from mec.evaluate.detection.datasets.annotations import AnnotatedDataset

OFFICIAL = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def thing(name: str, box: str = "1 1 10 20", more: str = "") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object>{more}<name>{name}</name><bndbox>{inner}</bndbox></object>"


def image(folder: Path, stem: str, *objects: str, size: str = "<width>30</width><height>20</height>") -> None:
    """An xml and an empty file; the pixels are not read here."""
    for inner in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages" / f"{stem}.jpg").touch()
    text = f"<annotation><filename>x</filename><size>{size}</size>{''.join(objects)}</annotation>"
    (folder / "Annotations" / f"{stem}.xml").write_text(text)


def lists(folder: Path, **stems: str) -> None:
    for kind, names in stems.items():
        (folder / "ImageSets" / "Main" / f"{kind}.txt").write_text("\n".join(names.split()) + "\n")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Both years, as the challenges' archives unpack."""
    kit = tmp_path / "VOCdevkit"
    for year, stems in ((2007, ["000001", "000002", "000003", "000004"]), (2012, ["2008_000008", "2011_003216"])):
        for i, stem in enumerate(stems):
            image(kit / f"VOC{year}", stem, thing(OFFICIAL[i + year - 2007]), thing("person"))
    lists(kit / "VOC2007", train="000001", val="000002", trainval="000001 000002", test="000004 000003")
    lists(kit / "VOC2012", train="2008_000008", val="2011_003216", trainval="2008_000008 2011_003216", test="absent")
    (kit / "VOC2007" / "ImageSets" / "Main" / "dog_trainval.txt").write_text("000001 -1\n000002  1\n")
    return kit


def files(part: AnnotatedDataset) -> list[str]:
    return [Path(part.images.title(i)).stem for i in range(len(part))]


BOTH = ["000001", "000002", "2008_000008", "2011_003216"]


@pytest.mark.parametrize(
    ("years", "train"), [(None, BOTH), ((2007,), BOTH[:2]), ((2007, 2012), BOTH), ((2012,), BOTH[2:])]
)
@pytest.mark.parametrize("within", [".", ".."])
def test_trainval_of_the_years_and_test_of_2007(
    devkit: Path, years: tuple[int, ...] | None, train: list[str], within: str
) -> None:
    ours, test = open_annotated(devkit / within, years)
    assert (files(ours), files(test)) == (train, ["000004", "000003"])
    assert all(Path(part.images.title(i)).is_file() for part in (ours, test) for i in range(len(part)))
    assert (ours.ids.tolist(), test.ids.tolist()) == (list(range(1, len(train) + 1)), [1, 2])
    assert ours.categories == test.categories == OFFICIAL
    assert ours.category_ids.tolist() == list(range(1, 21))
    assert ours.rules == test.rules == "voc07"
    assert [test.categories[i] for i in test.labels] == ["boat", "person", "bird", "person"]
    assert not ours.has_masks
    assert test.name == "VOC2007 test"


def test_names_tell_the_lists(devkit: Path) -> None:
    assert open_annotated(devkit)[0].name == "VOC2007 trainval + VOC2012 trainval"
    (devkit / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").unlink()
    train, _ = open_annotated(devkit / "VOC2007")
    assert (train.name, files(train)) == ("VOC2007 train", ["000001"])


@pytest.mark.parametrize(("year", "rules"), [(2007, "voc07"), (2012, "voc")])
def test_without_a_test_list_train_and_val(devkit: Path, year: int, rules: str) -> None:
    (devkit / "VOC2007" / "ImageSets" / "Main" / "test.txt").unlink()
    stems = BOTH[:2] if year == 2007 else BOTH[2:]
    for path, years in ((devkit, (year,)), (devkit / f"VOC{year}", None)):
        train, test = open_annotated(path, years)
        assert (files(train), files(test), test.rules) == (stems[:1], stems[1:], rules)
    train, test = open_annotated(devkit)
    assert (files(train), files(test)) == (["000001", "2008_000008"], ["000002"])


def test_years_that_are_not_there(devkit: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data: VOC2010 is asked for, .* has VOC2007 and VOC2012"):
        open_annotated(devkit, (2007, 2010))
    image(tmp_path / "mine", "a", thing("dog"))
    with pytest.raises(InputError, match=r"data: VOC2007 is asked for, .*mine has a set without years"):
        open_annotated(tmp_path / "mine", (2007,))


def test_objects(devkit: Path) -> None:
    """Boxes by hand: pixels are numbered from 1 and the last is within."""
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    image(
        devkit / "VOC2007",
        "000001",
        thing("dog", "1 1 30 20", "<difficult>1</difficult>"),
        thing("person", "45.70 4.50 12 12"),
        thing("cat", "5.5 6 7.25 8", f"<difficult>0</difficult>{part}"),
    )
    train, _ = open_annotated(devkit, (2007,))
    assert train.sizes.tolist() == [[20, 30]] * 2
    assert train.starts.tolist() == [0, 3, 5]
    assert train.boxes[:3].tolist() == [[0, 0, 30, 20], [44.7, 3.5, 12, 12], [4.5, 5, 7.25, 8]]
    assert [train.categories[i] for i in train.labels[:3]] == ["dog", "person", "cat"]
    assert train.areas[:3].tolist() == [600, 0, 2.75 * 3]
    assert train.difficult.tolist() == [True] + [False] * 4
    assert train.usable.tolist() == [True, False, True, True, True], "difficult ones are learned"
    assert not train.crowd.any()


def test_a_set_of_ones_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    for i, name in enumerate(["wolf", "dog", "wolf", "ant", "dog"]):
        image(mine, f"p{i}", thing(name))
    (mine / "JPEGImages" / "p1.jpg").rename(mine / "JPEGImages" / "p1.PNG")
    for folder in ("ImageSets/Main", "ImageSets"):
        (mine / folder).rmdir()
    train, test = open_annotated(mine)
    assert (len(train), len(test)) == (4, 1), "there are no lists"
    assert "mine all is one part: 1 of its 5 images are held out" in capfd.readouterr().err
    (mine / "ImageSets" / "Main").mkdir(parents=True)
    lists(mine, train="p0 p1 p3", val="p2", test="p4")
    train, test = open_annotated(mine)
    assert (files(train), files(test), test.rules) == (["p0", "p1", "p3"], ["p4"], "voc")
    assert train.images.names[1] == "mine/JPEGImages/p1.PNG"
    assert train.categories == test.categories == ["ant", "dog", "wolf"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1, 0], [1])
    lists(mine, train="p1 p0", test="p3")
    with pytest.raises(InputError, match="data: mine test has 'ant', a class that mine train lacks"):
        open_annotated(mine)


def test_folders_without_annotations(tmp_path: Path) -> None:
    for inner in ("Annotations", "JPEGImages"):
        (tmp_path / "mine" / inner).mkdir(parents=True)
    with pytest.raises(InputError, match=r"data: no .xml in .*mine/Annotations"):
        open_annotated(tmp_path / "mine")


def test_a_list_of_all_is_divided(tmp_path: Path) -> None:
    for i in range(10):
        image(tmp_path / "mine", f"p{i}", thing("dog"))
    lists(tmp_path / "mine", trainval=" ".join(f"p{i}" for i in range(10)))
    train, test = open_annotated(tmp_path / "mine")
    assert (len(train), len(test)) == (8, 2)
    assert sorted(files(train) + files(test)) == [f"p{i}" for i in range(10)]
    assert np.array_equal(np.sort(np.concatenate([train.ids, test.ids])), np.arange(1, 11))
    assert train.categories == OFFICIAL


def test_real_images_in_the_form_of_voc(real_data: Path, tmp_path: Path) -> None:
    """The boxes of COCO's cats and persons, rounded outwards, come back through xml."""
    folder = real_data / "coco128"
    if not folder.is_dir():
        pytest.skip(f"no coco128 in {real_data}")
    coco, _ = open_annotated(folder)
    expected = []
    for i in range(len(coco)):
        things = []
        for k in range(coco.starts[i], coco.starts[i + 1]):
            if (name := coco.categories[coco.labels[k]]) in ("cat", "person"):
                low, high = np.floor(coco.boxes[k, :2]).astype(int), np.ceil(coco.boxes[k, 2:]).astype(int)
                things.append(thing(name, f"{low[0] + 1} {low[1] + 1} {high[0]} {high[1]}"))
                expected.append([*low, *high])
        height, width = coco.sizes[i]
        size = f"<width>{width}</width><height>{height}</height>"
        stem = Path(coco.images.names[i]).stem
        image(tmp_path / "VOC2007", stem, *things, size=size)
    stems = " ".join(Path(name).stem for name in coco.images.names)
    lists(tmp_path / "VOC2007", trainval=stems, test=stems)
    train, _ = open_annotated(tmp_path)
    assert train.boxes.tolist() == expected
    assert train.sizes.tolist() == coco.sizes.tolist()
    assert set(train.labels.tolist()) == {OFFICIAL.index("cat"), OFFICIAL.index("person")}


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation><size>", "000001.xml is damaged (no element found: line 1, column 18)"),
        ("", "000001.xml is damaged"),
        ("<annotation></annotation>", "000001.xml: expected a size with a height and a width of at least a pixel"),
        ("<annotation><size><width>0</width><height>9</height></size></annotation>", "expected a size with a height"),
        (thing("dog", "1 1 x 4"), "000001.xml: object 2 has no complete bndbox"),
        (thing("dog", "1 1 nan 4"), "000001.xml: object 2 has no complete bndbox"),
        ("<object><name>dog</name></object>", "object 2 has no complete bndbox"),
        (thing(" "), "object 2 has no name"),
    ],
)
def test_xml_that_is_not_as_it_should_be(devkit: Path, xml: str, message: str) -> None:
    path = devkit / "VOC2007" / "Annotations" / "000001.xml"
    if xml.startswith("<object>"):
        image(devkit / "VOC2007", "000001", thing("dog"), xml)
    else:
        path.write_text(xml)
    with pytest.raises(InputError) as error:
        open_annotated(devkit)
    assert str(error.value).startswith("data: ")
    assert message in str(error.value)


def test_what_is_missing_is_counted(devkit: Path) -> None:
    folder = devkit / "VOC2007"
    (folder / "JPEGImages" / "000003.jpg").unlink()
    with pytest.raises(InputError) as error:
        open_annotated(devkit)
    where = folder / "JPEGImages"
    assert str(error.value) == f"data: 1 of 2 images are missing, the first is 000003; looked for in {where}"
    (folder / "Annotations" / "000001.xml").unlink()
    with pytest.raises(InputError, match=r"1 of 2 annotations are missing, the first is 000001; .*VOC2007/Annotations"):
        open_annotated(devkit)
    lists(folder, trainval="000001 000002 000001")
    with pytest.raises(InputError, match=r"trainval.txt names 000001 twice"):
        open_annotated(devkit)
    lists(folder, trainval="")
    with pytest.raises(InputError, match=r"trainval.txt names no image"):
        open_annotated(devkit)
    for kind in ("trainval", "train"):
        (folder / "ImageSets" / "Main" / f"{kind}.txt").unlink()
    with pytest.raises(InputError, match=r"data: expected trainval.txt or train.txt in .*VOC2007/ImageSets/Main"):
        open_annotated(devkit)
