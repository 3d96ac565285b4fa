"""What is said of an encoder, against numpy, brute force and plain facts."""

import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mec.data.dataset import read_image
from mec.data.datasets import open_dataset
from mec.errors import InputError
from mec.evaluate.features import extract
from mec.models.encoder import Encoder
from mec.models.io import save_encoder
from mec.report import analysis as module
from mec.report.analysis import learned
from mec.report.schema import Learned, Missing
from tests.data.datasets.shard_files import write_shards
from tests.report.runs import cell, checkpoint, decoded, make_run, narrow, noisy, silent, write_images


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="sklearn")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=3, each=20)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", data)


def look(run: Path, data: Any = None, most: int = 100) -> Learned:
    found = learned(run, data, most, silent)
    assert isinstance(found, Learned)
    return found


def missing(run: Path, data: Any = None) -> str:
    found = learned(run, data, 100, silent)
    assert isinstance(found, Missing)
    return found.reason


def test_figures_are_those_of_the_features(run: Path, data: Path) -> None:
    found = look(run)
    images = open_dataset(data, "test")
    features = extract(images, narrow(), 0)[0].double().numpy()
    assert features.shape == (12, 32)  # a fifth of each class
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    assert found.singular_values == pytest.approx(values / values.sum(), abs=1e-6)
    shares = values**2 / (values**2).sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 1e-12)
    assert found.effective_rank == pytest.approx(np.exp(entropy), rel=1e-3)
    assert found.points.shape == (12, 2)
    assert np.isfinite(found.points).all()
    assert found.labels == [f"class{i}" for i in range(3) for _ in range(4)]
    assert all(title.startswith(f"{label}{os.sep}") for title, label in zip(found.titles, found.labels, strict=True))
    assert found.images == f"all 12 test images of {data}"
    assert found.encoder == "the trained encoder"
    for number in range(12):
        expected = np.asarray(Image.fromarray(read_image(images, number)).resize((48, 48)))
        assert np.abs(cell(found.sprites, number) - expected).mean() < 15


def test_neighbors_are_those_of_brute_force(run: Path, data: Path) -> None:
    found = look(run)
    x = extract(open_dataset(data, "test"), narrow(), 0)[0].double().numpy()
    x = x - x.mean(axis=0)
    assert len(found.neighbors) == 8
    assert len(Counter(row.query.alt.split(" (")[1] for row in found.neighbors)) == 3
    captions = [f"{title} ({label})" for title, label in zip(found.titles, found.labels or [], strict=True)]
    for row in found.neighbors:
        q = captions.index(row.query.alt)
        cosines = {
            captions[i]: float(x[q] @ x[i] / np.linalg.norm(x[q]) / np.linalg.norm(x[i]))
            for i in range(len(x))
            if i != q
        }
        best = sorted(cosines.values(), reverse=True)[:8]
        assert [cosine for cosine, _ in row.found] == pytest.approx(best, abs=1e-5)
        assert [cosines[one.alt] for _, one in row.found] == pytest.approx(best, abs=1e-5)
        expected = np.asarray(Image.open(data / row.query.alt.split(" (")[0]).resize((96, 96)))
        assert np.abs(decoded(row.query) - expected).mean() < 10


def test_clusters_are_what_lies_together() -> None:
    centers = np.eye(4) * 10
    rows = np.repeat(np.arange(4), (20, 12, 9, 7))
    features = centers[rows] + np.random.default_rng(0).normal(0, 0.01, (48, 4))
    found = module._clusters(features - features.mean(axis=0))
    for group in range(4):
        assert len(set(found[rows == group])) > 0
    assert max(Counter(zip(found, rows, strict=True)).values()) <= 20
    assert all(len(set(rows[found == cluster])) == 1 for cluster in np.unique(found))
    sizes = np.bincount(found)
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_few_images(tmp_path: Path, count: int) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([noisy(i) for i in range(count)]))
    found = look(make_run(tmp_path / "run", tmp_path / "a.npz"))
    assert found.points.shape == (count, 2)
    assert np.isfinite(found.points).all()
    assert found.labels is None
    assert [len(row.found) for row in found.neighbors] == [min(8, count - 1)] * min(8, count)
    assert 1 <= found.effective_rank <= count - 1 + 1e-6
    assert found.titles[0] == "a[0]"


def test_one_image_is_too_few(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=noisy(0)[None])
    assert "at least two" in missing(make_run(tmp_path / "run", tmp_path / "a.npz"))


def test_images_that_are_all_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([noisy(0)] * 12))
    found = look(make_run(tmp_path / "run", tmp_path / "a.npz"))
    assert not found.points.any()
    assert not found.clusters.any()
    assert found.effective_rank == 0
    assert not found.singular_values.any()


@pytest.mark.parametrize("channels", [1, 5])
def test_deep_images_of_any_channels(tmp_path: Path, channels: int) -> None:
    deep = np.stack([noisy(i, channels=channels).astype(np.uint16) * 16 for i in range(12)])
    np.savez(tmp_path / "a.npz", images=deep)
    encoder = narrow(channels=channels, value_range=(0.0, 4095.0))
    found = look(make_run(tmp_path / "run", tmp_path / "a.npz", encoder))
    expected = noisy(5, channels=channels)[..., [0, 1, 2] if channels == 5 else [0, 0, 0]]
    assert np.abs(cell(found.sprites, 5) - np.asarray(Image.fromarray(expected).resize((48, 48)))).mean() < 15


@pytest.mark.parametrize("labeled", [True, False])
def test_shards(tmp_path: Path, labeled: bool) -> None:
    found = look(make_run(tmp_path / "run", write_shards(tmp_path / "shards", labeled=labeled)), most=8)
    assert 2 <= len(found.titles) <= 8
    assert (found.labels is not None) == labeled
    assert set(found.labels or []) <= {"ant", "bee", "cat"}
    assert all("x-000" in title for title in found.titles)


def test_a_image_of_each_class_is_no_reason_to_fail(tmp_path: Path) -> None:
    found = look(make_run(tmp_path / "run", write_images(tmp_path / "data", classes=4, each=1)))
    assert len(found.titles) == 4  # none is held out for testing
    assert found.images == f"all 4 images of {tmp_path / 'data'}"


def test_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from mec.evaluate.drawing.tracks import VideoWriter

    with VideoWriter(tmp_path / "a.mp4", 10) as film:
        for i in range(20):
            film.add(noisy(i, 48, 64))
    found = look(make_run(tmp_path / "run", tmp_path / "a.mp4", every=4))
    assert len(found.titles) == 5
    assert found.labels is None


def test_broken_images_are_left_out_and_names_stay_as_they_are(tmp_path: Path) -> None:
    names = ["<script>alert(1)<", "Köder 鸟 \U0001f426", "a&b 'quoted'", os.fsdecode(b"\xff\xfe")]
    for i, name in enumerate([*names, *map(str, range(40))]):
        Image.fromarray(noisy(i)).save(tmp_path / f"{name}.png".replace("/", ""))
    (tmp_path / "zz.png").write_bytes(b"no image")
    found = look(make_run(tmp_path / "run", tmp_path))
    assert len(found.titles) == len(found.points) == 44
    assert set(found.titles) >= {*(f"{name}.png" for name in names[:3]), "??.png"}
    "".join(found.titles).encode()
    assert "zz.png" not in found.titles


def test_too_many_broken_images_are_said(tmp_path: Path) -> None:
    for i in range(10):
        Image.fromarray(noisy(i)).save(tmp_path / f"{i}.png")
        (tmp_path / f"broken{i}.png").write_bytes(b"no image")
    assert "cannot be read" in missing(make_run(tmp_path / "run", tmp_path))


def test_classes_share_what_is_taken(run: Path, tmp_path: Path) -> None:
    labels = np.array([0, 1] * 100 + [2] * 200)
    np.savez(tmp_path / "a.npz", images=np.stack([noisy(i, 8, 8) for i in range(400)]), labels=labels)
    found = look(run, tmp_path / "a.npz", 20)  # of 80 that are for testing
    assert found.images.startswith("20 of the 80 test images")
    assert Counter(found.labels) == {"0": 5, "1": 5, "2": 10}
    tested = open_dataset(tmp_path / "a.npz", "test")
    assert tested.labels is not None
    assert found.labels == [str(tested.labels[int(title[2:-1])]) for title in found.titles]


def test_it_is_kept_until_something_changes(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(run)
    (file,) = (run / "report").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_encoder", None)  # it is not called
        again = look(run)
        assert again.titles == first.titles
        assert again.neighbors == first.neighbors
        assert again.sprites == first.sprites
        assert np.array_equal(again.points, first.points)
        assert np.array_equal(again.singular_values, first.singular_values)
    file.write_bytes(file.read_bytes()[:-200])
    assert look(run).effective_rank == first.effective_rank
    assert len(look(run, most=6).titles) == 6
    assert len(look(run).titles) == 12
    save_encoder(narrow(seed=1), run)
    changed = look(run)
    assert not np.allclose(changed.singular_values, first.singular_values, atol=1e-4)
    assert len(list((run / "report").iterdir())) == 1


def test_a_folder_that_cannot_be_written(run: Path) -> None:
    (run / "report").write_text("in the way")
    assert len(look(run).titles) == 12


def test_images_that_have_moved(run: Path, data: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text('{"data": "gone/away"}')
    assert "gone/away does not exist" in missing(run)
    assert "--data" in missing(run)
    assert len(look(run, data).titles) == 12
    with pytest.raises(InputError, match="data: nowhere does not exist"):
        learned(run, "nowhere", 100, silent)
    typed = json.dumps({"data": data.name, "directory": str(data.parent)})
    (run / "environment.json").write_text(typed)  # the run was started elsewhere than the report
    assert len(look(run).titles) == 12
    (run / "environment.json").unlink()
    assert "--data" in missing(run)


def unfinished(run: Path, *encoders: Encoder) -> None:
    (run / "encoder.safetensors").unlink()
    for step, encoder in enumerate(encoders, 1):
        checkpoint(run, encoder, 1000 * step)


def test_a_run_that_has_not_ended(run: Path) -> None:
    trained = look(run)
    unfinished(run)
    assert "no checkpoint yet" in missing(run)
    unfinished_at = checkpoint(run, narrow(), 1200)
    newest = checkpoint(run, narrow(seed=1), 2400)
    assert look(run).encoder == "the encoder after 2,400 steps"
    newest.write_bytes(newest.read_bytes()[:-10])
    found = look(run)
    assert found.encoder == "the encoder after 1,200 steps"
    assert found.singular_values == pytest.approx(trained.singular_values, abs=1e-6)
    assert newest.exists()  # only training sets damaged ones aside
    unfinished_at.unlink()
    assert "no checkpoint yet" in missing(run)


def test_an_encoder_that_cannot_be_read(run: Path) -> None:
    (run / "encoder.safetensors").write_bytes(b"no weights")
    assert "encoder" in missing(run)


def test_features_that_are_no_numbers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "frozen", lambda *_: lambda x: torch.full((len(x), 4), torch.nan))
    assert "diverged" in missing(run)
    assert not (run / "report").exists()


def test_a_slow_encoder_looks_at_fewer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "LEAST", 3)
    monkeypatch.setattr(module, "SECONDS", 1e-9)
    assert len(look(run).titles) == 3
    said: list[str] = []
    learned(run, None, 7, said.append)
    assert "3 of the 12 test images" in said[0]
