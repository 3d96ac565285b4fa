import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mec.data.image_grid import SIDE
from mec.embedding import neighbors
from mec.embedding.embed import embed
from mec.embedding.neighbors import centered, groups_of, nearest, similar_pairs
from mec.errors import InputError
from mec.models.encoder import create_encoder
from mec.models.io import load_encoder, untrained
from tests.report.runs import smooth_noise


def reference_neighbors(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, bank))
    similarity = a @ b.T
    order = np.argsort(-similarity, axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), order


@pytest.mark.parametrize(("bank_rows", "query_rows"), [(7, 5), (64, 1000), (100, 100)])
def test_blocks_of_any_size_give_the_exact_neighbors(
    bank_rows: int, query_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbors, "BANK_ROWS", bank_rows)
    monkeypatch.setattr(neighbors, "QUERY_ROWS", query_rows)
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(100, 16)).astype(np.float32)
    queries = rng.normal(size=(33, 16)).astype(np.float32)
    progress: list[int] = []
    similarity, rows = nearest(torch.from_numpy(queries), torch.from_numpy(bank), 9, progress.append)
    expected, order = reference_neighbors(queries, bank, 9)
    assert sum(progress) == 100
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(similarity.numpy(), expected, atol=1e-6)


def test_memory_is_bounded_by_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of queries x bank is allocated."""
    largest = 0
    original = torch.Tensor.topk

    def recording(self: torch.Tensor, *args: object, **options: object) -> object:
        nonlocal largest
        largest = max(largest, self.numel())
        return original(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "topk", recording)
    nearest(torch.randn(3000, 4), torch.randn(20_000, 4), 5)
    assert largest <= neighbors.BANK_ROWS * neighbors.QUERY_ROWS


def reference_pairs(values: np.ndarray, similarity: float) -> tuple[dict[tuple[int, int], float], np.ndarray]:
    """Compute pairs and scores one image at a time, in float64."""
    x = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs, scores = {}, []
    for i, row in enumerate(x):
        cosines = x @ row
        cosines[i] = -np.inf
        nearest = np.argsort(-cosines)[: min(10, len(x) - 1)]
        scores.append(1 - cosines[nearest].mean())
        pairs |= {(min(i, int(j)), max(i, int(j))): cosines[j] for j in nearest if cosines[j] >= similarity}
    return pairs, np.array(scores)


def test_pairs_and_scores_match_the_float64_reference() -> None:
    rng = np.random.default_rng(0)
    values = (5 + rng.normal(size=(40, 16))).repeat(5, axis=0) + 0.1 * rng.normal(size=(200, 16))
    values = values.astype(np.float32)
    values[150] = values[10]
    table = centered(lambda: iter(np.array_split(values, 7)), 200)
    pairs, similarity, scores = similar_pairs(table, 0.98)
    expected, distances = reference_pairs(values, 0.98)
    assert 100 < len(expected) < 1000
    assert dict(zip(map(tuple, pairs.tolist()), similarity, strict=True)) == pytest.approx(expected, abs=2e-6)
    assert (np.diff(similarity) <= 0).all()
    assert (pairs[0].tolist(), similarity[0]) == ([10, 150], 1.0)
    np.testing.assert_allclose(scores, distances, atol=2e-6)


def test_copies_of_an_image_are_one_group() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 32)).astype(np.float32)
    values[50:150] = values[50]
    pairs, similarity, _ = similar_pairs(centered(lambda: iter([values]), 300), 1.0)
    assert set(pairs.ravel().tolist()) == set(range(50, 150))
    assert (similarity == 1).all()
    assert set(groups_of(pairs, 300).tolist()) == {1}


def test_a_dataset_of_one_image_many_times() -> None:
    values = np.full((20, 8), 3.7, dtype=np.float32) * (1 + 1e-7 * np.random.default_rng(0).normal(size=(20, 8)))
    pairs, similarity, scores = similar_pairs(centered(lambda: iter([values.astype(np.float32)]), 20), 0.95)
    assert set(pairs.ravel().tolist()) == set(range(20))
    np.testing.assert_allclose(similarity, 1, atol=1e-4)
    np.testing.assert_allclose(scores, 0, atol=1e-4)


def test_fewer_than_three_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 16, 16), dtype=np.uint8))
    encoder = untrained(create_encoder("test_resnet", 16))
    assert len(pd.read_parquet(embed(tmp_path / "a.npz", encoder, tmp_path / "e.parquet"))) == 1
    with pytest.raises(InputError, match=r"near_duplicates, outliers: expected at least 3 images, got 1"):
        embed(tmp_path / "a.npz", encoder, tmp_path / "e.parquet", near_duplicates=True)


def test_groups_are_connected_pairs_in_order_of_occurrence() -> None:
    pairs = np.array([[7, 9], [0, 1], [8, 9], [3, 4], [1, 2]])
    assert groups_of(pairs, 10).tolist() == [1, 2, 1, 3, 2]
    assert groups_of(np.empty((0, 2), dtype=np.int64), 10).tolist() == []


def test_lists_name_the_splits(tmp_path: Path) -> None:
    """One train image is also a test image: the split columns show it."""
    rng = np.random.default_rng(0)
    train = np.kron(rng.integers(0, 256, (40, 3, 3, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    test = np.kron(rng.integers(0, 256, (8, 3, 3, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    test[5] = train[21]
    arrays = {"train_images": train, "train_labels": np.arange(40) % 4, "test_images": test}
    np.savez(tmp_path / "a.npz", **arrays, test_labels=np.arange(8) % 4)
    encoder = untrained(create_encoder("test_resnet", 12))
    lists = {}
    for name in ("e.parquet", "f.npy"):
        embed(tmp_path / "a.npz", encoder, tmp_path / name, True, True, 0.9999)
        pairs = lists[name] = pd.read_csv(tmp_path / f"{name[0]}.near-duplicates.csv")
        columns = ["group", "found_by", "correlation", "similarity", "path", "other", "split", "other_split"]
        assert pairs.columns.tolist() == columns
        assert pairs.iloc[0].tolist() == [1, "thumbnail", 1.0, 1.0, "a[21]", "a[5]", "train", "test"]
        outliers = pd.read_csv(tmp_path / f"{name[0]}.outliers.csv")
        assert outliers.columns.tolist() == ["score", "path", "label", "split"]
        assert len(outliers) == 12  # a quarter
        assert outliers.score.is_monotonic_decreasing
    pd.testing.assert_frame_equal(*lists.values())


def test_no_duplicates_give_an_empty_list_and_remove_the_old_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    images[3] = images[7]
    encoder, out = untrained(create_encoder("test_resnet", 16)), tmp_path / "e.parquet"
    np.savez(tmp_path / "a.npz", images=images)
    embed(tmp_path / "a.npz", encoder, out, near_duplicates=True, similarity=1.0)
    assert (
        "1 pair of near-duplicates (1 by thumbnails, 0 by embeddings alone): 2 images in 1 group, listed"
        in capsys.readouterr().err
    )
    assert Image.open(tmp_path / "e.near-duplicates.png").width > 2 * SIDE
    np.savez(tmp_path / "a.npz", images=images[:7])
    out.unlink()
    (tmp_path / "e.json").unlink()
    embed(tmp_path / "a.npz", encoder, out, near_duplicates=True, similarity=1.0)
    assert (tmp_path / "e.near-duplicates.csv").read_text().split() == [
        "group,found_by,correlation,similarity,path,other"
    ]
    assert not (tmp_path / "e.near-duplicates.png").exists()
    assert "is empty" in capsys.readouterr().err
    (tmp_path / "e.outliers.csv").mkdir()
    with pytest.raises(InputError, match=r"^out: .*e.outliers.csv cannot be written \(Is a directory"):
        embed(tmp_path / "a.npz", encoder, out, outliers=True)


def altered_copies(image: Image.Image) -> dict[str, Image.Image]:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=50)
    darker = Image.fromarray((255 * (np.asarray(image) / 255) ** 1.4).astype(np.uint8))
    return {"half": half, "jpeg": Image.open(jpeg), "darker": darker}


@pytest.mark.parametrize("size", [32, 96])
def test_copies_are_found_by_thumbnails_without_a_trained_encoder(
    tmp_path: Path, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every altered copy of smooth images is found, no other pair, and flat images are copies of nothing."""
    expected = set()
    images = tmp_path / "images"
    images.mkdir()
    for i in range(30):
        image = Image.fromarray(smooth_noise(i, 120 + 7 * (i % 4), 150, coarse=6))
        image.save(images / f"{i:02}.png")
        if i < 8:
            for kind, copy in altered_copies(image).items():
                copy.save(images / f"{i:02}-{kind}.png")
                expected |= {(f"{i:02}", f"{i:02}-{kind}")}
    for level in (0, 128, 255):
        Image.new("L", (120, 120), level).save(images / f"flat{level}.png")
    noise = np.random.default_rng(0).integers(127, 129, (120, 120), dtype=np.uint8)
    Image.fromarray(noise).save(images / "nearly-flat.png")
    embed(images, untrained(create_encoder("test_resnet", size)), tmp_path / "e.parquet", True, workers=0)
    table = pd.read_csv(tmp_path / "e.near-duplicates.csv")
    stems = {tuple(sorted((Path(a).stem, Path(b).stem))) for a, b in zip(table.path, table.other, strict=True)}
    assert {pair for pair in stems if "-" not in pair[0]} == expected
    assert {pair[0][:2] == pair[1][:2] for pair in stems} == {True}
    log = capsys.readouterr().err
    assert "the encoder is untrained: near-duplicates are found by their thumbnails only" in log
    assert f"{len(table)} pairs of near-duplicates ({len(table)} by thumbnails, 0 by" in log
    assert "32 images in 8 groups" in log


def test_correlation_is_that_of_the_area_means(tmp_path: Path) -> None:
    images = np.stack([smooth_noise(i % 5, 32, 32) for i in range(10)]).astype(int)
    images[5:] = (images[5:] + np.random.default_rng(0).integers(-20, 20, images[5:].shape)).clip(0, 255)
    np.savez(tmp_path / "a.npz", images=images.astype(np.uint8))
    embed(tmp_path / "a.npz", untrained(create_encoder("test_resnet", 32)), tmp_path / "e.npy", True, correlation=0.9)
    table = pd.read_csv(tmp_path / "e.near-duplicates.csv")
    pixels = images.mean(axis=3).reshape(10, 16, 2, 16, 2).mean(axis=(2, 4)).reshape(10, 256)
    expected = np.corrcoef(pixels)
    pairs = [(int(a[2:-1]), int(b[2:-1])) for a, b in zip(table.path, table.other, strict=True)]
    assert set(pairs) >= {(i, i + 5) for i in range(5)}
    assert table.correlation.tolist() == pytest.approx([expected[pair] for pair in pairs], abs=2e-4)


def test_thumbnails_are_made_later_for_a_file_written_without_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.stack([smooth_noise(i) for i in range(12)])
    images[9] = images[2]
    np.savez(tmp_path / "a.npz", images=images)
    encoder, lists = untrained(create_encoder("test_resnet", 32)), []
    for name, first in (("e", False), ("f", True)):
        embed(tmp_path / "a.npz", encoder, tmp_path / f"{name}.parquet", near_duplicates=first)
        assert (tmp_path / f"{name}.thumbnails.npy").exists() == first
        embed(tmp_path / "a.npz", encoder, tmp_path / f"{name}.parquet", near_duplicates=True)
        lists.append((tmp_path / f"{name}.near-duplicates.csv").read_text())
        assert np.load(tmp_path / f"{name}.thumbnails.npy").shape == (12, 256)
    assert lists[0] == lists[1]
    assert capsys.readouterr().err.count("written without thumbnails: reading the images again") == 1
    np.save(tmp_path / "f.thumbnails.npy", np.zeros((11, 256), np.float16))
    with pytest.raises(InputError, match=r"out: .*f.thumbnails.npy has the shape \(11, 256\), expected \(12, 256\)"):
        embed(tmp_path / "a.npz", encoder, tmp_path / "f.parquet", near_duplicates=True)


@pytest.mark.parametrize(("similarity", "warned"), [(0.5, True), (0.99999, False)])
def test_an_encoder_that_finds_all_images_alike_is_a_warning(
    tmp_path: Path, similarity: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(i) for i in range(40)]))
    encoder = create_encoder("test_resnet", 32)
    assert not encoder.untrained
    embed(tmp_path / "a.npz", encoder, tmp_path / "e.npy", True, similarity=similarity)
    assert ("images have near-duplicates by embeddings alone" in capsys.readouterr().err) == warned


def test_outliers_of_few_images_are_a_quarter(tmp_path: Path) -> None:
    images = np.stack([smooth_noise(i) for i in range(12)])
    np.savez(tmp_path / "a.npz", images=images)
    embed(tmp_path / "a.npz", untrained(create_encoder("test_resnet", 32)), tmp_path / "e.npy", outliers=True)
    assert len(pd.read_csv(tmp_path / "e.outliers.csv")) == 3


def test_copies_of_photographs_are_found(real_data: Path, tmp_path: Path) -> None:
    """Copied, recompressed and halved photographs are paired with their original, whatever the encoder."""
    photographs, folder = real_data / "caltech101" / "101_ObjectCategories", tmp_path / "images"
    if not photographs.is_dir():
        pytest.skip(f"no photographs in {photographs}")
    copies = {}
    for name in ("accordion", "binocular", "butterfly", "starfish"):
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(sorted((photographs / name).glob("*.jpg"))[:20]):
            shutil.copy(file, folder / name)
            copy, image = folder / name / f"other{number}.jpg", Image.open(file)
            if number == 0:
                shutil.copy(file, copy)
            elif number == 1:
                image.save(copy, quality=50)
            elif number < 5:
                image.resize((image.width // 2, image.height // 2)).save(copy, quality=95)
            if number < 5:
                copies[str(folder / name / file.name)] = str(copy)
    embed(folder, load_encoder("resnet18", image_size=96), tmp_path / "e.parquet", True, True, workers=0)
    pairs = pd.read_csv(tmp_path / "e.near-duplicates.csv")
    assert set(zip(pairs.path, pairs.other, strict=True)) == set(copies.items())
    assert set(pairs.path[pairs.similarity == 1]) >= {path for path in copies if copies[path].endswith("other0.jpg")}
    for kind in ("near-duplicates", "outliers"):
        assert np.asarray(Image.open(tmp_path / f"e.{kind}.png")).std() > 20
