import importlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mec.embedding import parts
from mec.embedding.embed import embed
from mec.errors import InputError
from tests.embedding.sized_images import encoder, photographs, read

embed_module = importlib.import_module("mec.embedding.embed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"), 30)


@pytest.mark.parametrize(("size", "crop_fraction"), [(32, 1.0), (96, 224 / 256)])
def test_embeddings_equal_those_of_the_central_crop(
    folder: Path, tmp_path: Path, size: int, crop_fraction: float
) -> None:
    model = encoder(size)
    out = embed(folder, model, tmp_path / "a" / "b" / "e.parquet", workers=0)
    paths, embeddings = read(out)
    assert paths == sorted(str(p) for p in folder.rglob("*.*"))
    expected = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        side = round(min(image.size) * crop_fraction)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        crop = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected.append(model(model.normalize(x))[0].numpy())
    # resampling by PyTorch and by PIL, and two JPEG decoders, differ by one or two of 255
    reference = np.stack(expected)
    assert np.abs(embeddings - reference).max() < 0.02 * np.abs(reference).max()
    assert np.linalg.norm(embeddings - reference) < 0.005 * np.linalg.norm(reference)
    assert sorted(os.listdir(out.parent)) == ["e.json", "e.parquet"]


def test_parquet_and_npy_hold_the_same_rows(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(embed(folder, encoder(), tmp_path / "e.parquet", workers=0))
    assert table.schema.names == ["path", "label", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert frame.label.tolist() == [Path(p).parent.name for p in frame.path]
    values = np.load(embed(folder, encoder(), tmp_path / "f.npy", workers=0))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.stack(frame.embedding))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "f.csv"), frame[["path", "label"]], check_dtype=False)
    info = json.loads((tmp_path / "f.json").read_text())
    assert (info["images"], info["features"], info["corrupt"]) == (30, values.shape[1], [])


def test_every_split_is_embedded_with_its_name(tmp_path: Path) -> None:
    frame = pd.read_parquet(embed("digits", encoder(8), tmp_path / "e.parquet"))
    assert frame.split.value_counts().to_dict() == {"train": 1347, "test": 450}
    assert sorted(frame.label.unique()) == list("0123456789")
    subset = pd.read_parquet(embed("digits", encoder(8), tmp_path / "subset.parquet", subsample=100))
    assert subset.path.tolist() == [f"digits[{i}]" for i in (*range(14), *range(5))]
    expected = frame.iloc[[*range(0, 1347, 100), *range(1347, 1797, 100)]]
    np.testing.assert_allclose(np.stack(subset.embedding), np.stack(expected.embedding), rtol=1e-4, atol=1e-5)


def test_unlabeled_images_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (5, 9, 9), dtype=np.uint8))
    frame = pd.read_parquet(embed(tmp_path / "a.npz", encoder(), tmp_path / "e.parquet"))
    assert frame.label.isna().all()
    images = photographs(tmp_path / "images", 2, 1)
    name = os.fsencode(images / "class0") + b"/\xff\xe9.png"
    shutil.copy(images / "class0" / "0000.png", name)
    paths = read(embed(images, encoder(), tmp_path / "f.parquet", workers=0))[0]
    assert paths[-1].endswith("class0/\\xff\\xe9.png")
    embed(images, encoder(), tmp_path / "g.npy", workers=0)
    assert os.fsencode(name) in (tmp_path / "g.csv").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_embeddings_of_the_files(folder: Path, tmp_path: Path, workers: int) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = sorted(folder.rglob("*.*"))
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for file in files[15 * shard : 15 * shard + 15]:
                sample = {"__key__": file.stem, file.suffix[1:]: file.read_bytes(), "cls": file.parent.name}
                tar.write(sample)
    paths, embeddings = read(embed(tmp_path / "{0..1}.tar", encoder(), tmp_path / "e.parquet", workers=workers))
    assert paths[16] == f"{tmp_path}/1.tar, image 1"
    np.testing.assert_array_equal(embeddings, read(embed(folder, encoder(), tmp_path / "f.parquet", workers=0))[1])


def test_memory_is_bounded_by_a_few_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 3.7 MB: fewer than four of ten are in memory at any time."""
    monkeypatch.setattr(parts, "BATCH", 300)
    monkeypatch.setattr(parts, "BLOCK_PARTS", 1)
    images = np.random.default_rng(0).integers(0, 256, (3_000, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(3_000) % 7)

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).repeat(1, 16)

    model = encoder(8)
    model.backbone, model.num_features = Wide(), 3072
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    peaks = []
    write_part, blocks = parts.EmbeddingParts._write_part, parts.EmbeddingParts._blocks

    def write(self: Any, *arguments: Any) -> None:
        write_part(self, *arguments)
        peaks.append(pa.total_allocated_bytes() - arrow)

    def recorded(self: Any, columns: list[str]) -> Any:
        for block in blocks(self, columns):
            peaks.append(pa.total_allocated_bytes() - arrow)
            yield block

    monkeypatch.setattr(parts.EmbeddingParts, "_write_part", write)
    monkeypatch.setattr(parts.EmbeddingParts, "_blocks", recorded)
    out = embed(tmp_path / "a.npz", model, tmp_path / "e.npy")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    values = np.load(out, mmap_mode="r")
    assert values.shape == (3_000, 3072)
    assert len(peaks) == 20
    part_bytes = 300 * 3072 * 4
    assert peak < 4 * part_bytes < values.nbytes / 2
    assert max(peaks) < 4 * part_bytes


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("e.csv", {}, "out: expected a name that ends with .parquet or .npy, got .*e.csv"),
        ("e.npy", {"similarity": 1.5}, "similarity: expected a number above 0 and at most 1, got 1.5"),
        ("e.npy", {"subsample": 0}, "subsample: expected at least 1, got 0"),
        ("e.npy", {"frame_stride": 0}, "frame_stride: expected at least 1, got 0"),
        ("e.npy", {"workers": -1}, "workers: expected at least 0, got -1"),
        ("folder.npy", {}, "out: expected a file name, got the folder .*folder.npy"),
        ("file/e.npy", {}, "out: .* cannot be written \\((File exists|Not a directory)"),
    ],
)
def test_bad_arguments_are_refused(
    folder: Path, tmp_path: Path, out: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^{message}"):
        embed(folder, encoder(), tmp_path / out, **{"workers": 0} | options)


def test_corrupt_images_are_left_out_and_too_many_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_module, "FINGERPRINT_IMAGES", 1)
    monkeypatch.setattr(parts, "BATCH", 8)
    folder = photographs(tmp_path / "images", 60, 1)
    names = [folder / "class0" / f"{number:04}.jpg" for number in (3, 5, 35, 55)]
    good = [name.read_bytes() for name in names]
    for name in names[:3]:
        name.write_bytes(b"corrupt")
    out = embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    assert len(read(out)[0]) == 57
    corrupt = pd.read_csv(tmp_path / "e.corrupt.csv").set_index("image").reason
    assert corrupt.to_dict() == dict.fromkeys(map(str, names[:3]), "not an image in a supported format")
    assert json.loads((tmp_path / "e.json").read_text())["corrupt"] == [3, 5, 35]
    names[3].write_bytes(b"corrupt")
    with pytest.raises(InputError, match=r"^data: 4 of 60 images cannot be read"):
        embed(folder, encoder(), tmp_path / "f.parquet", workers=0)
    assert not (tmp_path / "f.parquet").exists()
    for name, content in zip(names, good, strict=True):
        name.write_bytes(content)
    assert len(read(embed(folder, encoder(), tmp_path / "f.parquet", workers=0))[0]) == 60
    assert sorted(p.name for p in tmp_path.glob("f*")) == ["f.json", "f.parquet"]
