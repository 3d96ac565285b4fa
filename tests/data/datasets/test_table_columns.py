"""What the columns of a table hold: images, arrays, labels, or none of them, and what is damaged."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mec.data import PixelFormat, open_dataset, read_image
from mec.data.pixels import CorruptImageError
from mec.errors import InputError
from tests.data.datasets.table_files import IMAGES, TOTAL, write_plain

pytestmark = pytest.mark.usefixtures("own_cache", "asked")


def test_rows_without_a_image_are_broken(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(IMAGES[2])
    structs = [
        None,
        {"bytes": None, "path": None},
        {"bytes": None, "path": str(tmp_path / "there.png")},
        {"bytes": None, "path": str(tmp_path / "absent.png")},
    ]
    pq.write_table(pa.table({"image": structs}), tmp_path / "a.parquet")
    feature = {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
    pq.write_table(pa.table({"image": structs}).replace_schema_metadata(feature), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        images = open_dataset(tmp_path / name)
        assert (len(images), images.labels) == (4, None)
        for i in (0, 1):
            with pytest.raises(CorruptImageError, match=r"^the row has no image$"):
                images.load(i)
        assert images.load(2) == IMAGES[2]
        with pytest.raises(CorruptImageError, match="No such file"):
            images.load(3)
    pq.write_table(pa.table({"image": [None, IMAGES[0]]}), tmp_path / "c.parquet")
    images = open_dataset(tmp_path / "c.parquet")
    with pytest.raises(CorruptImageError, match=r"^the row has no image$"):
        images.load(0)
    assert images.load(1) == IMAGES[0]


def test_arrays_in_columns(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    kinds = {"array": datasets.Array2D((5, 6), "uint8"), "lists": datasets.List(datasets.List(datasets.Value("uint8")))}
    for name, kind in kinds.items():
        features = datasets.Features({"pixels": kind})
        table = datasets.Dataset.from_dict({"pixels": [a.tolist() for a in arrays]}, features=features)
        table.to_parquet(tmp_path / f"{name}.parquet")
        images = open_dataset(tmp_path / f"{name}.parquet")
        assert [read_image(images, i, PixelFormat(1))[..., 0].tolist() for i in range(3)] == arrays.tolist()
    pq.write_table(pa.table({"image": ["a.png", "b.png"]}), tmp_path / "names.parquet")
    pq.write_table(pa.table({"image": [[[1, 2], [3]]]}), tmp_path / "ragged.parquet")
    for name in ("names", "ragged"):
        with pytest.raises(CorruptImageError, match="not an array of numbers"):
            open_dataset(tmp_path / f"{name}.parquet").load(0)


@pytest.mark.parametrize("missing", [None, -1])
def test_labels_are_those_of_all_rows_or_none(tmp_path: Path, missing: int | None) -> None:
    """-1 is what the hub has for a class that is not told."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    columns = {"image": [{"bytes": c, "path": None} for c in IMAGES[:3]], "label": [1, missing, 0]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    assert open_dataset(tmp_path / "a.parquet").labels is None
    pq.write_table(pa.table({"image": IMAGES[:3], "label": ["b", None, "a"]}), tmp_path / "b.parquet")
    assert open_dataset(tmp_path / "b.parquet").labels is None
    pq.write_table(pa.table({"image": IMAGES[:3], "label": [10, 9, 10]}), tmp_path / "c.parquet")
    images = open_dataset(tmp_path / "c.parquet")
    assert (images.classes, images.labels.tolist()) == (["9", "10"], [1, 0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be opened as a data set"),
        (b"no parquet" * 100, "cannot be opened as a data set"),
        (None, "cannot be opened as a data set"),
        ("columns", r"no column of images \(it has caption, label\)"),
        ("absent", "does not exist"),
    ],
)
def test_what_is_no_table_of_images_is_named(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "a.parquet"
    if content is None:
        whole = write_plain(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "columns":
        pq.write_table(pa.table({"caption": ["a"], "label": [1]}), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.parquet.*{message}") as raised:
        open_dataset(path)
    assert "\n" not in str(raised.value)


def test_damage_within_a_parquet_file_costs_the_images_there(tmp_path: Path) -> None:
    path = write_plain(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    images = open_dataset(path)
    lost = []
    for i in range(TOTAL):
        try:
            assert np.array_equal(read_image(images, i), np.asarray(Image.open(io.BytesIO(IMAGES[i]))))
        except CorruptImageError:
            lost.append(i)
    assert lost
    assert len(lost) < TOTAL / 2
