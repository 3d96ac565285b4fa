import importlib
import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mec.embedding.embed import embed
from mec.errors import InputError
from tests.evaluate.sized_images import encoder, photographs, read

whole = importlib.import_module("mec.embedding.embed")
module = importlib.import_module("mec.embedding.writer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"), 30)


@pytest.mark.parametrize(("size", "share"), [(32, 1.0), (96, 224 / 256)])
def test_embeddings_are_those_of_the_central_crop(folder: Path, tmp_path: Path, size: int, share: float) -> None:
    of = encoder(size)
    out = embed(folder, of, tmp_path / "a" / "b" / "e.parquet", workers=0)
    paths, found = read(out)
    assert paths == sorted(str(p) for p in folder.rglob("*.*"))
    expected = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        side = round(min(image.size) * share)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        crop = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected.append(of(of.normalize(x))[0].numpy())
    # PyTorch's and PIL's resampling, and two decoders of JPEG, differ by one or two of 255
    wanted = np.stack(expected)
    assert np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.linalg.norm(found - wanted) < 0.005 * np.linalg.norm(wanted)
    assert sorted(os.listdir(out.parent)) == ["e.json", "e.parquet"]


def test_parquet_and_npy_hold_the_same(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(embed(folder, encoder(), tmp_path / "e.parquet", workers=0))
    assert table.schema.names == ["path", "label", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    frame = pd.read_parquet(tmp_path / "e.parquet")
    assert frame.label.tolist() == [Path(p).parent.name for p in frame.path]
    values = np.load(embed(folder, encoder(), tmp_path / "f.npy", workers=0))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.stack(frame.embedding))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "f.csv"), frame[["path", "label"]], check_dtype=False)
    about = json.loads((tmp_path / "f.json").read_text())
    assert (about["images"], about["features"], about["skipped"]) == (30, values.shape[1], [])


def test_every_split_is_embedded_and_named(tmp_path: Path) -> None:
    frame = pd.read_parquet(embed("digits", encoder(8), tmp_path / "e.parquet"))
    assert frame.split.value_counts().to_dict() == {"train": 1347, "test": 450}
    assert sorted(frame.label.unique()) == list("0123456789")
    few = pd.read_parquet(embed("digits", encoder(8), tmp_path / "few.parquet", every=100))
    assert few.path.tolist() == [f"digits[{i}]" for i in (*range(14), *range(5))]
    of = frame.iloc[[*range(0, 1347, 100), *range(1347, 1797, 100)]]
    np.testing.assert_allclose(np.stack(few.embedding), np.stack(of.embedding), rtol=1e-4, atol=1e-5)


def test_without_labels_and_with_any_name(tmp_path: Path) -> None:
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
def test_shards_are_read_forward_and_give_the_same(folder: Path, tmp_path: Path, workers: int) -> None:
    webdataset = pytest.importorskip("webdataset")
    files = sorted(folder.rglob("*.*"))
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as tar:
            for file in files[15 * shard : 15 * shard + 15]:
                sample = {"__key__": file.stem, file.suffix[1:]: file.read_bytes(), "cls": file.parent.name}
                tar.write(sample)
    paths, found = read(embed(tmp_path / "{0..1}.tar", encoder(), tmp_path / "e.parquet", workers=workers))
    assert paths[16] == f"{tmp_path}/1.tar, image 1"
    np.testing.assert_array_equal(found, read(embed(folder, encoder(), tmp_path / "f.parquet", workers=0))[1])


def test_little_is_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of 3.7 MB a part: never more than some of ten, wherever they are on their way."""
    for name in ("PART", "BATCH", "BLOCK"):
        monkeypatch.setattr(module, name, 300)
    images = np.random.default_rng(0).integers(0, 256, (3_000, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(3_000) % 7)

    class Wide(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).repeat(1, 16)

    of = encoder(8)
    of.backbone, of.num_features = Wide(), 3072
    written = 0
    write = module.Part.write

    def counted(self: Any, path: Path) -> None:
        nonlocal written
        written += 1
        write(self, path)

    monkeypatch.setattr(module.Part, "write", counted)
    tracemalloc.start()
    out = embed(tmp_path / "a.npz", of, tmp_path / "e.npy")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    values = np.load(out, mmap_mode="r")
    assert values.shape == (3_000, 3072)
    assert written == 10
    part = 300 * 3072 * 4
    assert most < 4 * part < values.nbytes / 2


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("e.csv", {}, "out: .*e.csv ends with neither .parquet nor .npy"),
        ("e.npy", {"similarity": 1.5}, "similarity: expected a number above 0 and at most 1, got 1.5"),
        ("e.npy", {"every": 0}, "every: expected at least 1, got 0"),
        ("e.npy", {"workers": -1}, "workers: expected at least 0, got -1"),
        ("folder.npy", {}, "out: .*folder.npy is a folder, expected the name of a file"),
        ("file/e.npy", {}, "out: .* cannot be written \\((File exists|Not a directory)"),
    ],
)
def test_refusals(folder: Path, tmp_path: Path, out: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^{message}"):
        embed(folder, encoder(), tmp_path / out, **{"workers": 0} | options)


def test_broken_images_are_left_out_and_too_many_refused_until_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "SAMPLED", 1)
    monkeypatch.setattr(module, "PART", 8)
    monkeypatch.setattr(module, "BATCH", 8)
    folder = photographs(tmp_path / "images", 60, 1)
    names = [folder / "class0" / f"{number:04}.jpg" for number in (3, 5, 35, 55)]
    good = [name.read_bytes() for name in names]
    for name in names[:3]:
        name.write_bytes(b"broken")
    out = embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    assert len(read(out)[0]) == 57
    skipped = pd.read_csv(tmp_path / "e.skipped.csv").set_index("image").reason
    assert skipped.to_dict() == dict.fromkeys(map(str, names[:3]), "not an image in a format that is read")
    assert json.loads((tmp_path / "e.json").read_text())["skipped"] == [3, 5, 35]
    names[3].write_bytes(b"broken")
    with pytest.raises(InputError, match=r"^data: 4 of 60 images cannot be read"):
        embed(folder, encoder(), tmp_path / "f.parquet", workers=0)
    assert not (tmp_path / "f.parquet").exists()
    for name, content in zip(names, good, strict=True):
        name.write_bytes(content)
    assert len(read(embed(folder, encoder(), tmp_path / "f.parquet", workers=0))[0]) == 60
    assert sorted(p.name for p in tmp_path.glob("f*")) == ["f.json", "f.parquet"]
