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
from mec.errors import InputError
from mec.evaluate.finetune import BARLOW, SWAV
from mec.evaluate.supervised import CROP, PAPER_PROBE, SIMSIAM_PROBE, Classifier, Settings, fit
from mec.models import Encoder, create_encoder, untrained

OPTIONS = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 32], "zero_init_last": False}


@pytest.fixture
def encoder() -> Encoder:
    return untrained(create_encoder("resnet18", 16, 1, False, [0.23], [0.36], OPTIONS))


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}


def test_settings_are_the_published_ones() -> None:
    """The paper's code (benchmarks/linearprob), SimSiam's paper, SwAV's and Barlow Twins' code."""
    assert Settings(100, 4096, 0.03, 0.0, "cosine", "lars", True, 0.0) == PAPER_PROBE
    assert Settings(90, 4096, 0.02, 0.0, "cosine", "lars", False, 0.0) == SIMSIAM_PROBE
    assert SWAV["1%"] == Settings(20, 256, 5.0, 0.02, "steps", "sgd", False, 0.0)
    assert SWAV["10%"] == Settings(20, 256, 0.2, 0.01, "steps", "sgd", False, 0.0)
    assert Settings(20, 256, 0.5, 0.005, "cosine", "sgd", False, 0.0) == BARLOW
    assert (CROP.crop_scale, CROP.crop_ratio, CROP.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)


def test_schedules_are_those_of_the_codes() -> None:
    """SwAV's MultiStepLR([12, 16], gamma=0.2) and the cosine by epoch of the others, from PyTorch's schedulers."""
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


def test_layer_wise_rates_are_apexs(encoder: Encoder) -> None:
    """LARC without clipping: rate x 0.001 ||w|| / ||g||, where both are above 0; written out in float64."""
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


def test_a_probe_leaves_the_encoder_as_it_was(encoder: Encoder) -> None:
    encoder(torch.randn(8, 1, 16, 16))
    before = state(encoder)
    settings = replace(PAPER_PROBE, epochs=2, batch_size=64)
    classifier = fit(open_dataset("digits", "test"), 10, encoder, settings, 0, 0, "test")
    after = state(encoder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # the BatchNorm of the head has learned the scale of the features, not of its weights
    norm = classifier.head[0]
    assert float(norm.running_var.mean()) != 1.0
    assert not list(norm.parameters())


def test_fine_tuning_moves_everything_and_its_statistics(encoder: Encoder) -> None:
    before = state(encoder)
    fit(open_dataset("digits", "test"), 10, encoder, replace(BARLOW, epochs=1, batch_size=64), 0, 0, "test")
    moved = {name for name, t in state(encoder).items() if not torch.equal(t, before[name])}
    assert moved == set(before)


def test_the_first_step_is_plain_sgd_with_two_rates(encoder: Encoder) -> None:
    """One epoch of one step, against the same step written out in PyTorch."""
    dataset = open_dataset("digits", "test").subset(np.arange(64))
    settings = Settings(1, 64, head_lr=0.5, backbone_lr=0.01)
    plain = copy.deepcopy(encoder)
    classifier = fit(dataset, 10, encoder, settings, 3, 0, "test")
    torch.manual_seed(3)
    head = torch.nn.Linear(plain.num_features, 10)
    torch.nn.init.normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2)
    (x,) = classifier.views(images, np.arange(64), 0)
    plain.train()
    loss = F.cross_entropy(head(plain(plain.normalize(x))), torch.from_numpy(np.asarray(dataset.labels)))
    loss.backward()
    with torch.no_grad():
        for p, rate in [(p, 0.5) for p in head.parameters()] + [(p, 0.01) for p in plain.parameters()]:
            p -= rate * 64 / 256 * p.grad
    torch.testing.assert_close(classifier.head[-1].weight, head.weight, rtol=1e-3, atol=1e-5)
    for (name, p), q in zip(encoder.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=name)


def test_it_learns(encoder: Encoder) -> None:
    """Digits with all labels, small crops and mirrored: hard, but far above the tenth that chance gives."""
    found = evaluate.finetune("digits", encoder, "100%", seeds=1, epochs=12, head_lr=2.0, backbone_lr=0.4)
    assert found.figures["untrained"]["top-1"] > 0.3
    assert "1,347 labeled images (100%)" in found.protocol
    assert "12 epochs = 264 steps" in found.protocol


def test_every_seed_counts_and_the_encoder_is_not_used_up(encoder: Encoder) -> None:
    before = state(encoder)
    options = {"labels": "5", "epochs": 2, "workers": 0}
    both = evaluate.finetune("digits", encoder, seeds=2, **options).figures["untrained"]
    each = [evaluate.finetune("digits", encoder, seeds=1, seed=s, **options).figures["untrained"] for s in (0, 1)]
    assert "top-1 std" not in each[0]
    values = [f["top-1"] for f in each]
    np.testing.assert_allclose([both["top-1"], both["top-1 std"]], [np.mean(values), np.std(values, ddof=1)])
    assert all(torch.equal(before[name], t) for name, t in state(encoder).items())


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Dark images of one class, bright ones of the other, too large for memory; one dark one is broken."""
    for name, tone in (("dark", 20), ("bright", 230)):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("RGB", (100, 120), (tone, tone, tone)).save(tmp_path / name / f"{i:02}.png")
    return tmp_path


def test_a_image_in_place_of_a_broken_one_keeps_its_own_label(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(mixed, "train")
    Path(dataset.title(0)).write_bytes(b"")
    seen: list[tuple[float, int]] = []
    original = F.cross_entropy

    def watched(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend(zip(tones.pop(0), labels.tolist(), strict=True))
        return original(logits, labels)

    tones: list[list[float]] = []
    plain = Classifier.forward

    def forward(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        tones.append(images.mean(dim=(1, 2, 3)).tolist())
        return plain(self, images)

    monkeypatch.setattr(Classifier, "forward", forward)
    monkeypatch.setattr("mec.evaluate.supervised.F.cross_entropy", watched)
    color = untrained(create_encoder("resnet18", 32, 3, False, options=OPTIONS))
    fit(dataset, 2, color, Settings(6, 16, 0.1), 0, 0, "test")
    bright = dataset.classes.index("bright")
    assert len(seen) == 6 * 64
    assert {(tone > 0.5, label == bright) for tone, label in seen} == {(True, True), (False, False)}


def test_the_last_batch_of_an_epoch_may_be_smaller(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda s, x: (sizes.append(len(x)), plain(s, x))[1])
    for images in (65, 70):
        fit(open_dataset("digits", "test").subset(np.arange(images)), 10, encoder, Settings(1, 32, 0.1), 0, 0, "")
    assert sizes == [32, 32, 32, 32, 6]  # one image alone has no variance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "quick"}, "protocol: expected fast, paper or simsiam"),
        ({"epochs": 3}, "epochs, batch_size, head_lr: the fast protocol has none"),
        ({"crops": "corner"}, "crops: expected central or random"),
        ({"protocol": "paper", "crops": "random"}, "crops: the paper protocol has its own"),
        ({"protocol": "paper", "epochs": 0}, "epochs: expected at least 1"),
        ({"protocol": "paper", "head_lr": -1}, "head_lr: expected a number of at least 0"),
        ({"protocol": "paper", "batch_size": 1}, "batch_size: expected at least 2"),
    ],
)
def test_bad_settings_of_a_probe(encoder: Encoder, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.linear("digits", encoder, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "quick"}, "protocol: expected short, swav or barlow"),
        ({"seeds": 0}, "seeds: expected at least 1"),
        ({"backbone_lr": 0}, "backbone_lr: expected above 0"),
        ({"head_lr": -1}, "head_lr: expected a number of at least 0"),
        ({"head_lr": math.inf}, "head_lr: expected a number of at least 0"),
        ({"labels": "500"}, "labels: expected at most"),
        ({"labels": "nowhere.txt"}, "labels: expected 1%"),
        ({"labels": "10", "head_lr": 1e30, "seeds": 1, "epochs": 2}, "head_lr, backbone_lr: training diverged"),
    ],
)
def test_bad_settings_of_fine_tuning(encoder: Encoder, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.finetune("digits", encoder, **options)
