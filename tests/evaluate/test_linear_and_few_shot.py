import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestCentroid

from mec import evaluate
from mec.data import open_dataset
from mec.data.transforms.multi_view import Views
from mec.errors import InputError
from mec.evaluate.features import CROP, Features, extract, extract_crops, features_of
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.linear import STRENGTHS, choose_strength, probe
from mec.evaluate.task import open_task
from mec.models import create_encoder, untrained


def blobs(n: int = 400, spread: float = 1.0, seed: int = 0) -> Features:
    """Four Gaussian classes in 6 dimensions, of very uneven scale."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(4, 6)) * 3

    def part(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        labels = np.arange(n) % 4
        x = (centers[labels] + rng.normal(size=(n, 6)) * spread) * [1, 10, 100, 1, 0.01, 1]
        return torch.from_numpy(x).float(), torch.from_numpy(labels)

    return Features("blobs", *part(seed + 1), *part(seed + 2))


def test_probe_separates_what_is_separable_and_not_noise() -> None:
    assert probe(blobs(spread=0.3), 4)["top-1"] == 1.0
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(400, 6, generator=random) for _ in range(2)]
    labels = blobs().train_labels
    assert abs(probe(Features("noise", noise[0], labels, noise[1], labels), 4)["top-1"] - 0.25) < 0.1


def test_strength_is_chosen_without_the_test_split() -> None:
    """Many useless dimensions and few images: only a strong penalty generalizes."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x, y = torch.from_numpy(rng.normal(size=(60, 300)) + 0.25 * y[:, None]).float(), torch.from_numpy(y)
    assert choose_strength(x, y, 2, 200) in STRENGTHS[:7]
    assert choose_strength(x[:3], torch.tensor([0, 0, 1]), 2, 200) == 1.0


def test_strength_is_chosen_on_a_part_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of two may have one or none in the part: it is then left out of the choice, not an error."""
    monkeypatch.setattr(sys.modules[probe.__module__], "CHOOSING_LIMIT", 150)
    f = blobs()
    labels = f.train_labels.clone()
    labels[:2] = 4
    assert choose_strength(f.train, labels, 5, 50) in STRENGTHS


def test_random_crops_are_those_of_the_views_and_keep_their_labels() -> None:
    encoder = untrained(create_encoder("test_resnet", 32, 1))
    dataset = open_dataset("digits", "test").subset(np.arange(60))
    features, labels = extract_crops(dataset, encoder, seed=3, workers=0)
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    (x,) = Views(32, [CROP], 3)(images, np.arange(60), 0)
    with torch.no_grad():
        expected = encoder(encoder.normalize(x))
    distance, which = torch.cdist(features, expected).min(dim=1)
    assert sorted(which.tolist()) == list(range(60))
    assert float(distance.max()) < 1e-3
    assert labels.tolist() == dataset.labels[which.numpy()].tolist()


def test_fast_probe_on_random_crops() -> None:
    encoder = create_encoder("test_resnet", 32, 1)
    central, random = (evaluate.linear("digits", encoder, crops=c, iterations=20) for c in ("central", "random"))
    assert list(central.figures) == ["encoder", "untrained", "raw pixels"]
    assert list(random.figures) == ["encoder", "untrained"]
    assert "features of random crops" in random.protocol
    assert random.figures["encoder"] != central.figures["encoder"]


def test_few_label_scores_are_the_nearest_class_mean() -> None:
    """scikit-learn's nearest centroid on the same draw: for unit vectors the nearest mean by cosine."""
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
    np.testing.assert_allclose(class_mean_scores(f, 4, labels=5, draws=4, seed=3)["top-1"], expected, atol=1e-6)


def test_more_labels_are_better_and_spread_less() -> None:
    scores = [class_mean_scores(blobs(spread=2.0), 4, labels, draws=20, seed=0)["top-1"] for labels in (1, 20)]
    assert scores[1].mean() > scores[0].mean()
    assert scores[1].std() < scores[0].std()


def test_features_do_not_depend_on_the_batch() -> None:
    from mec.data import open_dataset

    encoder = untrained(create_encoder("test_resnet", 32, 1))
    dataset = open_dataset("digits", "test")
    whole, numbers = extract(dataset, encoder)
    assert numbers.tolist() == list(range(450))
    assert whole.shape == (450, encoder.num_features)
    part, _ = extract(dataset.subset(np.arange(300, 310)), encoder)
    torch.testing.assert_close(whole[300:310], part)


def test_baselines_stand_in_the_same_table() -> None:
    task = open_task("digits", create_encoder("test_resnet", 32, 1))
    features = list(features_of(task))
    assert [f.name for f in features] == ["encoder", "untrained", "raw pixels"]
    assert features[2].train.shape == (1347, 64)
    assert "1,347 train, 450 test, 10 classes" in task.data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        for i in range(6):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (40 * i, 99, 0)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_bad_sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    flat, one = tmp_path_factory.mktemp("flat"), tmp_path_factory.mktemp("one")
    Image.new("RGB", (32, 32)).save(flat / "a.png")
    Image.new("RGB", (32, 32)).save(flat / "b.png")
    (one / "ant").symlink_to(folder / "ant")
    lonely = tmp_path_factory.mktemp("lonely")
    for name in ("ant", "bee"):
        (lonely / name).mkdir()
        Image.new("RGB", (32, 32)).save(lonely / name / "0.png")
    for source, message in (
        (flat, "no labels"),
        (one, "one class .ant., expected at least 2"),
        (lonely, "class 'ant' .* has no test images"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.linear(source, "test_resnet")
    with pytest.raises(InputError, match="labels: expected at most 5"):
        evaluate.few_shot(folder, "test_resnet", labels=(6,))
    usual = evaluate.few_shot(folder, "test_resnet", draws=2, baselines=False)
    assert [c for c in usual.figures["untrained"] if c.endswith("per class")] == ["1 per class", "5 per class"]
    with pytest.raises(InputError, match="draws: expected"):
        evaluate.few_shot(folder, "test_resnet", draws=0)
    with pytest.raises(InputError, match="iterations: expected"):
        evaluate.linear(folder, "test_resnet", iterations=0)


@pytest.mark.parametrize(("broken", "passes"), [(1, True), (4, False)])
def test_broken_small_images_are_counted_when_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: int, passes: bool
) -> None:
    for name, tone in (("a", 60), ("b", 190)):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("RGB", (20, 20), (tone, i, 0)).save(tmp_path / name / f"{i:02}.png")
    train = [Path(open_dataset(tmp_path, "train").title(i)) for i in range(broken)]
    for path in train:
        path.write_bytes(b"")
    encoder = untrained(create_encoder("resnet18", 32, options={"layers": [1, 1, 1, 1], "channels": [16] * 4}))
    if passes:
        (f,) = features_of(open_task(tmp_path, encoder, baselines=False))
        assert len(f.train) == len(f.train_labels) == 47
        assert "skipped 1 that could not be read" in capsys.readouterr().err
    else:
        with pytest.raises(InputError, match=r"^data: 4 of 48 images cannot be read"):
            list(features_of(open_task(tmp_path, encoder, baselines=False)))
