import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mec import evaluate
from mec.data import open_dataset
from mec.data.transforms.multi_view import MultiView
from mec.embedding.extract import CROP, extract, extract_crops
from mec.errors import InputError
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.linear import INVERSE_PENALTIES, LogisticFit, fast_probe_accuracies, select_penalty
from mec.evaluate.task import Features, features_of, open_task
from mec.models import create_encoder, untrained


def blobs(n: int = 400, spread: float = 1.0, seed: int = 0) -> Features:
    """Four Gaussian classes in 6 dimensions of very uneven scale."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(4, 6)) * 3

    def split(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 4
        x = (centers[labels] + rng.normal(size=(n, 6)) * spread) * [1, 10, 100, 1, 0.01, 1]
        return torch.from_numpy(x).float(), torch.from_numpy(labels)

    return Features("blobs", *split(seed + 1), *split(seed + 2))


def test_probe_separates_separable_classes_and_not_noise() -> None:
    assert fast_probe_accuracies(blobs(spread=0.3), 4)["top-1"] == 1.0
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(400, 6, generator=random) for _ in range(2)]
    labels = blobs().train_labels
    assert abs(fast_probe_accuracies(Features("noise", noise[0], labels, noise[1], labels), 4)["top-1"] - 0.25) < 0.1


@pytest.mark.parametrize("signal", [0.02, 0.1, 1.0])
def test_penalty_has_the_lowest_cross_entropy_of_held_out_images(signal: float) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 40)) + signal * y[:, None]
    fit, held, fit_y, held_y = train_test_split(x, y, test_size=12, stratify=y, random_state=0)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-8, max_iter=9999)).fit(fit, fit_y)
        for C in INVERSE_PENALTIES
    ]
    losses = [log_loss(held_y, model.predict_proba(held)) for model in models]
    chosen = select_penalty(torch.from_numpy(x).float(), torch.from_numpy(y), 2, 500)
    assert losses[INVERSE_PENALTIES.index(chosen)] <= min(losses) + 1e-3


def test_a_class_with_one_image_has_no_held_out_images() -> None:
    assert select_penalty(torch.randn(3, 5), torch.tensor([0, 0, 1]), 2, 200) == 1.0


def test_penalty_is_selected_on_a_sample_of_a_large_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of two images may have one or none in the sample: the selection then leaves it out."""
    monkeypatch.setattr(sys.modules[fast_probe_accuracies.__module__], "MAX_SELECTION_IMAGES", 150)
    f = blobs()
    labels = f.train_labels.clone()
    labels[:2] = 4
    assert select_penalty(f.train, labels, 5, 50) in INVERSE_PENALTIES


def test_random_crops_equal_those_of_the_views_and_keep_their_labels() -> None:
    encoder = untrained(create_encoder("test_resnet", 32, 1))
    dataset = open_dataset("digits", "test").subset(np.arange(60))
    features, labels = extract_crops(dataset, encoder, seed=3, workers=0)
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    (x,) = MultiView(32, [CROP], 3)(images, np.arange(60), 0)
    with torch.no_grad():
        expected = encoder(encoder.normalize(x))
    distance, which = torch.cdist(features, expected).min(dim=1)
    assert sorted(which.tolist()) == list(range(60))
    assert float(distance.max()) < 1e-3
    assert labels.tolist() == dataset.labels[which.numpy()].tolist()


def test_fast_probe_takes_central_or_random_crops() -> None:
    encoder = create_encoder("test_resnet", 16, 1)
    central, random = (
        evaluate.linear("digits", encoder, crops=c, max_iter=5, workers=0) for c in ("central", "random")
    )
    assert list(central.rows) == ["encoder", "untrained", "raw pixels"]
    assert list(random.rows) == ["encoder", "untrained"]
    assert random.protocol.settings["crops"] == "random"
    assert random.rows["encoder"] != central.rows["encoder"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning:sklearn")
def test_few_shot_scores_match_scikit_learns_nearest_centroid() -> None:
    """For unit vectors the nearest centroid is the nearest mean by cosine."""
    f = blobs()
    center = f.train.mean(0)
    train, test = (torch.nn.functional.normalize(x - center, dim=1).numpy() for x in (f.train, f.test))
    members = [np.flatnonzero(f.train_labels.numpy() == c) for c in range(4)]
    random = np.random.default_rng([3, 5])
    expected = []
    for _ in range(4):
        chosen = np.stack([random.choice(m, 5, replace=False) for m in members])
        means = train[chosen].mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        expected.append(NearestCentroid().fit(means, np.arange(4)).score(test, f.test_labels.numpy()))
    np.testing.assert_allclose(class_mean_scores(f, 4, shots=5, trials=4, seed=3)["top-1"], expected, atol=1e-6)


def test_more_shots_give_higher_accuracy_and_less_spread() -> None:
    scores = [class_mean_scores(blobs(spread=2.0), 4, shots, trials=20, seed=0)["top-1"] for shots in (1, 20)]
    assert scores[1].mean() > scores[0].mean()
    assert scores[1].std() < scores[0].std()


def test_features_do_not_depend_on_the_batch() -> None:
    encoder = untrained(create_encoder("test_resnet", 32, 1))
    dataset = open_dataset("digits", "test")
    features, indices = extract(dataset, encoder)
    assert indices.tolist() == list(range(450))
    assert features.shape == (450, encoder.num_features)
    subset, _ = extract(dataset.subset(np.arange(300, 310)), encoder)
    torch.testing.assert_close(features[300:310], subset)


def test_every_row_of_the_table_has_features() -> None:
    task = open_task("digits", create_encoder("test_resnet", 16, 1), workers=0)
    features = list(features_of(task))
    assert [f.name for f in features] == ["encoder", "untrained", "raw pixels"]
    assert features[2].train.shape == (1347, 64)
    assert str(task.dataset) == "digits (1,347 train, 450 test, 10 classes)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        for i in range(6):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (40 * i, 99, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_unusable_datasets_and_arguments_are_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    unlabeled, one_class = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("one")
    Image.new("RGB", (32, 32)).save(unlabeled / "a.png")
    Image.new("RGB", (32, 32)).save(unlabeled / "b.png")
    (one_class / "ant").symlink_to(folder / "ant")
    single = tmp_path_factory.mktemp("single")
    for name in ("ant", "bee"):
        (single / name).mkdir()
        Image.new("RGB", (32, 32)).save(single / name / "0.png")
    for data, message in (
        (unlabeled, "no labels"),
        (one_class, "one class .ant., expected at least 2"),
        (single, "class 'ant' .* has no test images"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.linear(data, "test_resnet")
    with pytest.raises(InputError, match="shots: expected at most 5"):
        evaluate.few_shot(folder, "test_resnet", shots=(6,))
    default = evaluate.few_shot(folder, "test_resnet", trials=2, baselines=False)
    assert [metric.name for metric in default.rows["untrained"]] == ["1 shot", "5 shots"]
    with pytest.raises(InputError, match="trials: expected"):
        evaluate.few_shot(folder, "test_resnet", trials=0)
    with pytest.raises(InputError, match="max_iter: expected"):
        evaluate.linear(folder, "test_resnet", max_iter=0)


@pytest.mark.parametrize(("num_corrupt", "passes"), [(1, True), (4, False)])
def test_corrupt_small_images_are_counted_and_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_corrupt: int, passes: bool
) -> None:
    for name, tone in (("a", 60), ("b", 190)):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("RGB", (20, 20), (tone, i, 0)).save(tmp_path / name / f"{i:02}.png")
    train = [Path(open_dataset(tmp_path, "train").title(i)) for i in range(num_corrupt)]
    for path in train:
        path.write_bytes(b"")
    encoder = untrained(create_encoder("resnet18", 32, options={"layers": [1, 1, 1, 1], "channels": [16] * 4}))
    if passes:
        (f,) = features_of(open_task(tmp_path, encoder, baselines=False))
        assert len(f.train) == len(f.train_labels) == 47
        assert "skipped 1 corrupt image" in capsys.readouterr().err
    else:
        with pytest.raises(InputError, match=r"^data: 4 of 48 images"):
            list(features_of(open_task(tmp_path, encoder, baselines=False)))


def uneven(n: int = 1500, d: int = 20, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes in columns of very uneven scale and offset, one of them constant."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, d)) * 0.5
    labels = rng.integers(0, classes, n)
    x = (centers[labels] + rng.normal(size=(n, d))) * rng.uniform(0.01, 100, d) + rng.normal(size=d) * 30
    x[:, 3] = 7.3
    return x.astype(np.float32), labels


@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0, 10.0])
def test_fit_matches_scikit_learn_in_float64(C: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[LogisticFit.__module__], "BLOCK_ROWS", 400)
    x, y = uneven()
    scores = LogisticFit(torch.from_numpy(x), torch.from_numpy(y), 4)(C, 300).scores(torch.from_numpy(x))
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    expected = LogisticRegression(C=C, max_iter=2000, tol=1e-10).fit(scaled, y).predict_proba(scaled)
    np.testing.assert_allclose(scores.softmax(dim=1).numpy(), expected, atol=3e-3)


def test_warm_start_reaches_the_solution_of_a_fresh_fit() -> None:
    x, y = (torch.from_numpy(a) for a in uneven())
    fit = LogisticFit(x, y, 4)
    for C in (1e-4, 1e-2):
        fit(C, 300)
    warm, fresh = fit(1.0, 300), LogisticFit(x, y, 4)(1.0, 300)
    torch.testing.assert_close(warm.scores(x).softmax(1), fresh.scores(x).softmax(1), atol=3e-3, rtol=0)


def test_class_without_images_is_never_predicted() -> None:
    x, y = (torch.from_numpy(a) for a in uneven())
    scores = LogisticFit(x, y, 6)(1.0, 100).scores(x)
    assert scores.shape == (1500, 6)
    assert int(scores.argmax(dim=1).max()) == 3


def test_features_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features may be mapped from a file larger than memory: blocks are read, nothing is written."""
    x, y = uneven()
    x.flags.writeable = False
    monkeypatch.setattr(sys.modules[LogisticFit.__module__], "BLOCK_ROWS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about read-only arrays
        fit = LogisticFit(torch.from_numpy(x), torch.from_numpy(y), 4)
    fit(1.0, 5)
    assert fit.features.data_ptr() == x.ctypes.data
