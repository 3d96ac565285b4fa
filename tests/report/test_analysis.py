"""The feature analysis, compared with numpy and brute force."""

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
from mec.embedding.extract import extract
from mec.errors import InputError
from mec.models.io import save_encoder
from mec.report import analysis as module
from mec.report.analysis import FeatureAnalysis, analyze_features
from mec.report.charts import spectrum_chart
from mec.report.record import Missing
from tests.data.datasets.shard_files import write_shards
from tests.report.runs import decode, make_run, narrow_encoder, smooth_noise, thumbnail, write_checkpoint, write_images


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="sklearn")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), classes=3, images_per_class=20)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", data)


def analyze(run: Path, data: Any = None, max_images: int = 100) -> FeatureAnalysis:
    analysis = analyze_features(run, data, max_images)
    assert isinstance(analysis, FeatureAnalysis)
    return analysis


def reason_missing(run: Path, data: Any = None) -> str:
    missing = analyze_features(run, data, 100)
    assert isinstance(missing, Missing)
    return missing.reason


def test_spectrum_rank_labels_and_neighbors_are_those_of_the_features(run: Path, data: Path) -> None:
    analysis = analyze(run)
    images = open_dataset(data, "test")
    features = extract(images, narrow_encoder(), 0)[0].double().numpy()
    assert features.shape == (12, 32)  # a fifth of each class
    values = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    assert values[-1] < 1e-12  # 12 centered images have 11 singular values
    values = values[:-1]
    assert analysis.singular_values == pytest.approx(values / values.sum(), abs=1e-6)
    entropy = -sum(p * np.log(p) for p in values**2 / (values**2).sum() if p > 1e-12)
    assert analysis.feature_rank == pytest.approx(np.exp(entropy), rel=1e-3)
    assert analysis.points.shape == (12, 2)
    assert np.isfinite(analysis.points).all()
    assert analysis.labels == [f"class{i}" for i in range(3) for _ in range(4)]
    for title, label in zip(analysis.titles, analysis.labels, strict=True):
        assert title.startswith(f"{label}{os.sep}")
    assert analysis.images == f"all 12 test images of {data}"
    assert analysis.encoder == "the trained encoder"
    for index in range(12):
        expected = np.asarray(Image.fromarray(read_image(images, index)).resize((48, 48)))
        assert np.abs(thumbnail(analysis.sprites, index) - expected).mean() < 15
    x = features - features.mean(axis=0)
    assert len(analysis.neighbors) == 8
    assert len(Counter(row.query.alt.split(" (")[1] for row in analysis.neighbors)) == 3
    captions = [f"{title} ({label})" for title, label in zip(analysis.titles, analysis.labels, strict=True)]
    for row in analysis.neighbors:
        q = captions.index(row.query.alt)
        similarities = x @ x[q] / np.linalg.norm(x[q]) / np.linalg.norm(x, axis=1)
        cosines = {captions[i]: similarities[i] for i in range(len(x)) if i != q}
        nearest = sorted(cosines.values(), reverse=True)[:8]
        assert [cosine for cosine, _ in row.neighbors] == pytest.approx(nearest, abs=1e-5)
        assert [cosines[image.alt] for _, image in row.neighbors] == pytest.approx(nearest, abs=1e-5)
        expected = np.asarray(Image.open(data / row.query.alt.split(" (")[0]).resize((96, 96)))
        assert np.abs(decode(row.query) - expected).mean() < 10


def test_clusters_separate_groups_and_are_sorted_by_size() -> None:
    centers = np.eye(4) * 10
    rows = np.repeat(np.arange(4), (20, 12, 9, 7))
    features = centers[rows] + np.random.default_rng(0).normal(0, 0.01, (48, 4))
    clusters = module._cluster(features - features.mean(axis=0))
    assert max(Counter(zip(clusters, rows, strict=True)).values()) <= 20
    assert all(len(set(rows[clusters == cluster])) == 1 for cluster in np.unique(clusters))
    sizes = np.bincount(clusters)
    assert list(sizes) == sorted(sizes, reverse=True)


@pytest.mark.parametrize("count", [2, 10])
def test_few_images_are_enough(tmp_path: Path, count: int) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(i) for i in range(count)]))
    analysis = analyze(make_run(tmp_path / "run", tmp_path / "a.npz"))
    assert analysis.points.shape == (count, 2)
    assert np.isfinite(analysis.points).all()
    assert analysis.labels is None
    assert [len(row.neighbors) for row in analysis.neighbors] == [min(8, count - 1)] * min(8, count)
    assert len(analysis.singular_values) == count - 1
    assert analysis.singular_values.min() > 1e-6
    assert 1 <= analysis.feature_rank <= count - 1 + 1e-6
    assert analysis.titles[0] == "a[0]"


@pytest.mark.parametrize(("images", "distinct"), [(40, 40), (40, 20), (9, 3)])
def test_singular_values_are_those_of_numpy_without_rounding_errors(tmp_path: Path, images: int, distinct: int) -> None:
    """32 features of ``distinct`` images, some of them several times: at most distinct - 1 values are not 0."""
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(i % distinct) for i in range(images)]))
    analysis = analyze(make_run(tmp_path / "run", tmp_path / "a.npz"))
    features = extract(open_dataset(tmp_path / "a.npz", "all"), narrow_encoder(), 0)[0].double().numpy()
    expected = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
    rank = np.linalg.matrix_rank(features - features.mean(axis=0), tol=1e-6 * expected[0])
    assert rank <= min(distinct - 1, 32)
    assert len(analysis.singular_values) == min(images - 1, 32)
    assert np.count_nonzero(analysis.singular_values) == rank
    assert analysis.singular_values[:rank] == pytest.approx(expected[:rank] / expected[:rank].sum(), abs=1e-6)
    shown = spectrum_chart([(0, "run", analysis)]).figure["data"][0]["y"]
    assert (len(shown), min(shown) > 1e-7) == (rank, True)


def test_identical_images_give_zeros_and_a_single_one_is_too_few(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(0)] * 12))
    np.savez(tmp_path / "single.npz", images=smooth_noise(0)[None])
    run = make_run(tmp_path / "run", tmp_path / "a.npz")
    assert "at least two" in reason_missing(run, tmp_path / "single.npz")
    analysis = analyze(run)
    assert not analysis.points.any()
    assert not analysis.clusters.any()
    assert analysis.feature_rank == 0
    assert not analysis.singular_values.any()


@pytest.mark.parametrize("channels", [1, 5])
def test_16_bit_images_of_any_number_of_channels_have_thumbnails(tmp_path: Path, channels: int) -> None:
    images = np.stack([smooth_noise(i, channels=channels).astype(np.uint16) * 16 for i in range(12)])
    np.savez(tmp_path / "a.npz", images=images)
    encoder = narrow_encoder(channels=channels, value_range=(0.0, 4095.0))
    analysis = analyze(make_run(tmp_path / "run", tmp_path / "a.npz", encoder))
    expected = smooth_noise(5, channels=channels)[..., [0, 1, 2] if channels == 5 else [0, 0, 0]]
    assert np.abs(thumbnail(analysis.sprites, 5) - np.asarray(Image.fromarray(expected).resize((48, 48)))).mean() < 15


@pytest.mark.parametrize("labeled", [True, False])
def test_shards_are_sampled(tmp_path: Path, labeled: bool) -> None:
    analysis = analyze(make_run(tmp_path / "run", write_shards(tmp_path / "shards", labeled=labeled)), max_images=8)
    assert 2 <= len(analysis.titles) <= 8
    assert (analysis.labels is not None) == labeled
    assert set(analysis.labels or []) <= {"ant", "bee", "cat"}
    assert all("x-000" in title for title in analysis.titles)


def test_a_single_image_per_class_is_analyzed_without_a_test_split(tmp_path: Path) -> None:
    analysis = analyze(make_run(tmp_path / "run", write_images(tmp_path / "data", classes=4, images_per_class=1)))
    assert len(analysis.titles) == 4  # too few for a test split
    assert analysis.images == f"all 4 images of {tmp_path / 'data'}"


def test_frames_of_a_video_are_analyzed(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from mec.evaluate.tracking.datasets.video import VideoWriter

    with VideoWriter(tmp_path / "a.mp4", 10) as video:
        for i in range(20):
            video.add(smooth_noise(i, 48, 64))
    analysis = analyze(make_run(tmp_path / "run", tmp_path / "a.mp4", frame_stride=4))
    assert len(analysis.titles) == 5
    assert analysis.labels is None


def test_corrupt_images_are_skipped_and_names_are_unchanged(tmp_path: Path) -> None:
    names = ["<script>alert(1)<", "Köder 鸟 \U0001f426", "a&b 'quoted'", os.fsdecode(b"\xff\xfe")]
    for i, name in enumerate([*names, *map(str, range(40))]):
        Image.fromarray(smooth_noise(i)).save(tmp_path / f"{name}.png".replace("/", ""))
    (tmp_path / "zz.png").write_bytes(b"no image")
    analysis = analyze(make_run(tmp_path / "run", tmp_path))
    assert len(analysis.titles) == len(analysis.points) == 44
    assert set(analysis.titles) >= {*(f"{name}.png" for name in names[:3]), "??.png"}
    "".join(analysis.titles).encode()
    assert "zz.png" not in analysis.titles
    assert analysis.images.endswith(", 1 of which cannot be read")
    for i in range(10):
        (tmp_path / f"zz{i}.png").write_bytes(b"no image")
    assert "cannot be read" in reason_missing(make_run(tmp_path / "another run", tmp_path))


def test_sample_is_stratified_by_class(run: Path, tmp_path: Path) -> None:
    labels = np.array([0, 1] * 100 + [2] * 200)
    np.savez(tmp_path / "a.npz", images=np.stack([smooth_noise(i, 8, 8) for i in range(400)]), labels=labels)
    analysis = analyze(run, tmp_path / "a.npz", 20)  # of 80 in the test split
    assert analysis.images.startswith("20 of the 80 test images")
    assert Counter(analysis.labels) == {"0": 5, "1": 5, "2": 10}
    test = open_dataset(tmp_path / "a.npz", "test")
    assert test.labels is not None
    assert analysis.labels == [str(test.labels[int(title[2:-1])]) for title in analysis.titles]


def test_analysis_is_cached_until_encoder_or_number_of_images_changes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = analyze(run)
    (file,) = (run / "report").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_encoder", None)  # calling it would fail
        cached = analyze(run)
        assert cached.titles == first.titles
        assert cached.neighbors == first.neighbors
        assert cached.sprites == first.sprites
        assert np.array_equal(cached.points, first.points)
        assert np.array_equal(cached.singular_values, first.singular_values)
        assert cached.clusters.tolist() == first.clusters.tolist()
        assert cached.points.dtype == first.points.dtype
    file.write_bytes(file.read_bytes()[:-200])
    assert len(analyze(run).titles) == 12
    assert len(analyze(run, max_images=6).titles) == 6
    assert len(list((run / "report").iterdir())) == 1
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("a file instead of a folder: no cache can be written")
    save_encoder(narrow_encoder(seed=1), run)
    changed = analyze(run)
    assert not np.allclose(changed.singular_values, first.singular_values, atol=1e-4)


def test_data_replaces_images_that_have_moved(run: Path, data: Path, tmp_path: Path) -> None:
    (run / "environment.json").write_text('{"data": "gone/away"}')
    assert "gone/away does not exist" in reason_missing(run)
    assert "--data" in reason_missing(run)
    assert len(analyze(run, data).titles) == 12
    with pytest.raises(InputError, match="nowhere does not exist"):
        analyze_features(run, "nowhere", 100)
    environment = json.dumps({"data": data.name, "working_directory": str(data.parent)})
    (run / "environment.json").write_text(environment)  # started in another folder
    (run / "recipe.yaml").write_text("no: recipe")  # of another version
    assert len(analyze(run, max_images=10).titles) == 10  # not cached
    (run / "environment.json").unlink()
    assert "--data" in reason_missing(run)


def test_the_newest_intact_checkpoint_of_an_unfinished_run_is_used(run: Path) -> None:
    trained = analyze(run)
    (run / "encoder.safetensors").unlink()
    assert "no checkpoint yet" in reason_missing(run)
    intact = write_checkpoint(run, narrow_encoder(), 1200)
    newest = write_checkpoint(run, narrow_encoder(seed=1), 2400)
    assert analyze(run).encoder == "the encoder after 2,400 steps"
    newest.write_bytes(newest.read_bytes()[:-10])
    analysis = analyze(run)
    assert analysis.encoder == "the encoder after 1,200 steps"
    assert analysis.singular_values == pytest.approx(trained.singular_values, abs=1e-6)
    assert newest.exists()  # only training moves damaged checkpoints
    intact.unlink()
    assert "no checkpoint yet" in reason_missing(run)


def test_an_unreadable_encoder_and_features_that_are_not_finite_are_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "feature_function", lambda *_: lambda x: torch.full((len(x), 4), torch.nan))
        assert "diverged" in reason_missing(run)
    assert not (run / "report").exists()
    (run / "encoder.safetensors").write_bytes(b"no weights")
    assert "encoder" in reason_missing(run)


def test_a_slow_encoder_embeds_fewer_images(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "MIN_IMAGES", 3)
    monkeypatch.setattr(module, "CPU_SECONDS", 1e-9)
    assert len(analyze(run, max_images=7).titles) == 3
    assert "3 of the 12 test images" in capsys.readouterr().err
