"""Columns of tables: images, arrays and labels, missing values, and damaged files."""

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
from tests.data.datasets.table_files import IMAGES, TOTAL, write_parquet

pytestmark = pytest.mark.usefixtures("empty_cache", "network_calls")


def test_rows_without_an_image_are_corrupt(tmp_path: Path) -> None:
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
        dataset = open_dataset(tmp_path / name)
        assert (len(dataset), dataset.labels) == (4, None)
        for i in (0, 1):
            with pytest.raises(CorruptImageError, match=r"^the row has no image$"):
                dataset.load(i)
        assert dataset.load(2) == IMAGES[2]
        with pytest.raises(CorruptImageError, match="No such file"):
            dataset.load(3)
    pq.write_table(pa.table({"image": [None, IMAGES[0]]}), tmp_path / "c.parquet")
    dataset = open_dataset(tmp_path / "c.parquet")
    with pytest.raises(CorruptImageError, match=r"^the row has no image$"):
        dataset.load(0)
    assert dataset.load(1) == IMAGES[0]


def test_columns_of_arrays(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8)
    array_features = {
        "array": datasets.Array2D((5, 6), "uint8"),
        "lists": datasets.List(datasets.List(datasets.Value("uint8"))),
    }
    for name, feature in array_features.items():
        features = datasets.Features({"pixels": feature})
        table = datasets.Dataset.from_dict({"pixels": [a.tolist() for a in arrays]}, features=features)
        table.to_parquet(tmp_path / f"{name}.parquet")
        dataset = open_dataset(tmp_path / f"{name}.parquet")
        assert [read_image(dataset, i, PixelFormat(1))[..., 0].tolist() for i in range(3)] == arrays.tolist()
    pq.write_table(pa.table({"image": [[[1, 2], [3]]]}), tmp_path / "ragged.parquet")
    with pytest.raises(CorruptImageError, match="not a numeric array"):
        open_dataset(tmp_path / "ragged.parquet").load(0)


@pytest.mark.parametrize("column", ["image", "file_name", "path"])
def test_a_column_of_paths_is_relative_to_the_table(tmp_path: Path, column: str) -> None:
    (tmp_path / "a b.jpg").write_bytes(IMAGES[0])
    pq.write_table(pa.table({column: ["a b.jpg", "none.jpg"], "label": ["x", "y"]}), tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path / "t.parquet")
    assert (dataset.load(0), dataset.classes) == (IMAGES[0], ["x", "y"])
    assert dataset.layout == f"paths in column {column}, labels in column label"
    with pytest.raises(CorruptImageError, match="No such file"):
        dataset.load(1)


@pytest.mark.parametrize("missing", [None, -1])
def test_images_without_label_are_kept_for_pretraining_only(tmp_path: Path, missing: int | None) -> None:
    """Datasets on the hub mark a missing class by -1."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    columns = {"image": [{"bytes": c, "path": None} for c in IMAGES[:3]], "label": [1, missing, 0]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    assert open_dataset(tmp_path / "a.parquet").labels.tolist() == [1, -1, 0]
    pq.write_table(pa.table({"image": IMAGES[:3], "label": ["b", None, "a"]}), tmp_path / "b.parquet")
    assert open_dataset(tmp_path / "b.parquet").labels.tolist() == [1, -1, 0]
    pq.write_table(pa.table({"image": IMAGES[:3], "label": [10, 9, 10]}), tmp_path / "c.parquet")
    dataset = open_dataset(tmp_path / "c.parquet")
    assert (dataset.classes, dataset.labels.tolist()) == (["9", "10"], [1, 0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no parquet" * 100, "as a dataset"),
        (None, "as a dataset"),
        ("columns", "expected an image column, got the columns caption, label"),
        ("absent", "does not exist"),
    ],
)
def test_invalid_table_is_an_input_error(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "a.parquet"
    if content is None:
        complete = write_parquet(path).read_bytes()
        path.write_bytes(complete[: len(complete) // 2])
    elif content == "columns":
        pq.write_table(pa.table({"caption": ["a"], "label": [1]}), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.parquet.*{message}") as raised:
        open_dataset(path)
    assert "\n" not in str(raised.value)


def test_damage_inside_a_parquet_file_affects_only_the_images_there(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    dataset = open_dataset(path)
    num_corrupt = 0
    for i in range(TOTAL):
        try:
            assert np.array_equal(read_image(dataset, i), np.asarray(Image.open(io.BytesIO(IMAGES[i]))))
        except CorruptImageError:
            num_corrupt += 1
    assert 0 < num_corrupt < TOTAL / 2
