import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mec import evaluate
from mec.data import open_dataset
from mec.embedding.extract import CROP
from mec.errors import InputError
from mec.evaluate.finetune import BARLOW, SWAV
from mec.evaluate.supervised import PAPER_PROBE, SIMSIAM_PROBE, Classifier, Settings, fit
from mec.models import Encoder, create_encoder, untrained

OPTIONS = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 32], "zero_init_last": False}


@pytest.fixture
def encoder() -> Encoder:
    return untrained(create_encoder("resnet18", 16, 1, False, [0.23], [0.36], OPTIONS))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def test_settings_equal_the_published_ones() -> None:
    """Sources: the paper's code (benchmarks/linearprob), SimSiam's paper, the code of SwAV and Barlow Twins."""
    assert Settings(100, 4096, 0.03, 0.0, "cosine", "lars", True, 0.0) == PAPER_PROBE
    assert Settings(90, 4096, 0.02, 0.0, "cosine", "lars", False, 0.0) == SIMSIAM_PROBE
    assert SWAV["1%"] == Settings(20, 256, 5.0, 0.02, "steps", "sgd", False, 0.0)
    assert SWAV["10%"] == Settings(20, 256, 0.2, 0.01, "steps", "sgd", False, 0.0)
    assert Settings(20, 256, 0.5, 0.005, "cosine", "sgd", False, 0.0) == BARLOW
    assert (CROP.crop_scale, CROP.crop_ratio, CROP.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)


def test_schedules_equal_pytorchs() -> None:
    """SwAV uses MultiStepLR([12, 16], gamma=0.2), the others a cosine by epoch."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    for settings, make in (
        (SWAV["10%"], lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 16], gamma=0.2)),
        (BARLOW, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20)),
    ):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = make(optimizer)
        for epoch in range(20):
            np.testing.assert_allclose(settings.factor(epoch), optimizer.param_groups[0]["lr"], rtol=1e-9)
            optimizer.step()
            scheduler.step()


def test_layer_wise_learning_rates_equal_apexs(encoder: Encoder) -> None:
    """LARC without clipping: lr x 0.001 ||w|| / ||g|| where both norms are positive, written out in float64."""
    classifier = Classifier(encoder, torch.zeros(4, dtype=torch.int64), 3, PAPER_PROBE, 256, 0)
    optimizer = classifier.configure_optimizers()
    linear = classifier.head[-1]
    weights = [p.detach().double() for p in linear.parameters()]
    momenta = [torch.zeros_like(w) for w in weights]
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        for p, group in zip(linear.parameters(), [0, 0], strict=True):
            p.grad = torch.randn(p.shape, generator=random)
            optimizer.param_groups[group]["lr"] = 0.3
        for i, p in enumerate(linear.parameters()):
            g, w = p.grad.double(), weights[i]
            ratio = 0.001 * w.norm() / (g.norm() + 1e-8) if w.norm() > 0 and g.norm() > 0 else 1.0
            momenta[i] = 0.9 * momenta[i] + ratio * g
            weights[i] = w - 0.3 * momenta[i]
        optimizer.step()
    for p, w in zip(linear.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach().double(), w, rtol=1e-4, atol=1e-6)


def test_probe_leaves_the_encoder_unchanged(encoder: Encoder) -> None:
    encoder(torch.randn(8, 1, 16, 16))
    before = state(encoder)
    settings = replace(PAPER_PROBE, epochs=2, batch_size=64)
    classifier = fit(open_dataset("digits", "test"), 10, encoder, settings, 0, 0, "test")
    after = state(encoder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # the BatchNorm of the head estimates the scale of the features and has no parameters
    norm = classifier.head[0]
    assert float(norm.running_var.mean()) != 1.0
    assert not list(norm.parameters())


def test_finetuning_changes_every_parameter_and_statistic(encoder: Encoder) -> None:
    before = state(encoder)
    fit(open_dataset("digits", "test"), 10, encoder, replace(BARLOW, epochs=1, batch_size=64), 0, 0, "test")
    changed = {name for name, t in state(encoder).items() if not torch.equal(t, before[name])}
    assert changed == set(before)


def test_first_step_is_plain_sgd_with_two_learning_rates(encoder: Encoder) -> None:
    """Compare one epoch of one step with the same step in plain PyTorch."""
    dataset = open_dataset("digits", "test").subset(np.arange(64))
    settings = Settings(1, 64, head_lr=0.5, backbone_lr=0.01)
    reference = copy.deepcopy(encoder)
    classifier = fit(dataset, 10, encoder, settings, 3, 0, "test")
    torch.manual_seed(3)
    head = torch.nn.Linear(reference.num_features, 10)
    torch.nn.init.normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    (x,) = classifier.views(images, np.arange(64), 0)
    reference.train()
    loss = F.cross_entropy(head(reference(reference.normalize(x))), torch.from_numpy(np.asarray(dataset.labels)))
    loss.backward()
    with torch.no_grad():
        for p, lr in [(p, 0.5) for p in head.parameters()] + [(p, 0.01) for p in reference.parameters()]:
            p -= lr * 64 / 256 * p.grad
    torch.testing.assert_close(classifier.head[-1].weight, head.weight, rtol=1e-3, atol=1e-5)
    for (name, p), q in zip(encoder.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=name)


def test_finetuning_learns(encoder: Encoder) -> None:
    """Small mirrored crops of digits are hard to tell apart, but chance gives 0.1."""
    result = evaluate.finetune("digits", encoder, 1.0, trials=1, epochs=12, head_lr=2.0, backbone_lr=0.4)
    assert result.metric("top-1", "untrained").value > 0.3
    assert result.protocol.id == "finetune-short"
    assert result.protocol.includes({"labels": 1347, "label_fraction": 1.0, "epochs": 12, "steps": 264})


def test_result_is_the_mean_over_trials_and_the_encoder_is_unchanged(encoder: Encoder) -> None:
    before = state(encoder)
    options = {"shots": 5, "epochs": 2, "workers": 0}
    both = evaluate.finetune("digits", encoder, trials=2, **options).metric("top-1", "untrained")
    single = [
        evaluate.finetune("digits", encoder, trials=1, seed=s, **options).metric("top-1", "untrained") for s in (0, 1)
    ]
    assert single[0].std is None
    values = [metric.value for metric in single]
    np.testing.assert_allclose([both.value, both.std], [np.mean(values), np.std(values, ddof=1)])
    assert all(torch.equal(before[name], t) for name, t in state(encoder).items())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Dark images of one class and bright ones of the other, too large to be decoded into memory."""
    for name, tone in (("dark", 20), ("bright", 230)):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("RGB", (100, 120), (tone, tone, tone)).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


def test_replacement_of_a_corrupt_image_keeps_its_own_label(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(mixed, "train")
    Path(dataset.title(0)).write_bytes(b"")
    seen: list[tuple[float, int]] = []
    original = F.cross_entropy

    def recording(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend(zip(tones.pop(0), labels.tolist(), strict=True))
        return original(logits, labels)

    tones: list[list[float]] = []
    original_forward = Classifier.forward

    def forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        tones.append(images.mean(dim=(1, 2, 3)).tolist())
        return original_forward(self, images)

    monkeypatch.setattr(Classifier, "forward", forward)
    monkeypatch.setattr("mec.evaluate.supervised.F.cross_entropy", recording)
    color = untrained(create_encoder("resnet18", 32, 3, False, options=OPTIONS))
    fit(dataset, 2, color, Settings(6, 16, 0.1), 0, 0, "test")
    bright = dataset.classes.index("bright")
    assert len(seen) == 6 * 64
    assert {(tone > 0.5, label == bright) for tone, label in seen} == {(True, True), (False, False)}


def test_last_batch_of_an_epoch_is_kept_unless_it_has_one_image(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda s, x: (sizes.append(len(x)), original(s, x))[1])
    for size in (65, 70):
        fit(open_dataset("digits", "test").subset(np.arange(size)), 10, encoder, Settings(1, 32, 0.1), 0, 0, "")
    assert sizes == [32, 32, 32, 32, 6]  # BatchNorm cannot normalize a single image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "quick"}, "protocol: expected fast, paper or simsiam"),
        ({"epochs": 3}, "epochs, batch_size, head_lr: not used by the fast protocol"),
        ({"crops": "corner"}, "crops: expected central or random"),
        ({"protocol": "paper", "crops": "random"}, "crops: the paper protocol draws new crops"),
        ({"protocol": "paper", "epochs": 0}, "epochs: expected at least 1"),
        ({"protocol": "paper", "head_lr": -1}, "head_lr: expected a number of at least 0"),
        ({"protocol": "paper", "batch_size": 1}, "batch_size: expected at least 2"),
    ],
)
def test_bad_settings_of_a_probe_are_refused(encoder: Encoder, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.linear("digits", encoder, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "quick"}, "protocol: expected short, swav or barlow"),
        ({"trials": 0}, "trials: expected at least 1"),
        ({"backbone_lr": 0}, "backbone_lr: expected above 0"),
        ({"head_lr": -1}, "head_lr: expected a number of at least 0"),
        ({"head_lr": math.inf}, "head_lr: expected a number of at least 0"),
        ({"shots": 500}, "shots: expected at most"),
        ({"label_list": "nowhere.txt"}, "label_list: nowhere.txt cannot be read"),
        ({"shots": 10, "head_lr": 1e30, "trials": 1, "epochs": 2}, "head_lr, backbone_lr: training diverged"),
    ],
)
def test_bad_settings_of_finetuning_are_refused(encoder: Encoder, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.finetune("digits", encoder, **options)
