"""Every script imports; the loop that compares methods resumes exactly, and each method follows its published rules."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_script_finds_what_it_imports(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    try:
        importlib.import_module(script)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"mec", *(path.stem for path in BENCHMARKS.glob("*.py"))}:
            raise
        pytest.skip(f"{error.name} is not installed; benchmarks may need more than the package")


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("lightly", reason="lightly is not installed; it comes with the extra bench")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cifar10")


@pytest.mark.parametrize("name", ["MEC", "SimCLR", "SimSiam", "BYOL", "Barlow Twins", "VICReg"])
def test_resumed_training_ends_with_the_same_weights(cifar10: ModuleType, name: str, tmp_path: Path) -> None:
    tiny = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False}
    settings = cifar10.Settings(epochs=2, batch_size=16, max_width=16, small_stem=False, backbone_options=tiny)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = cifar10.Data(images, torch.zeros(32), images, torch.zeros(32), 2)
    method = cifar10.METHODS[name]
    expected, _, expected_loss = cifar10.train(method, data, settings, 0, tmp_path / "a.pt", cifar10.Clock(None))
    assert math.isfinite(expected_loss)
    with pytest.raises(cifar10.Deadline):  # the time limit has passed: training stops after the first epoch
        cifar10.train(method, data, settings, 0, tmp_path / "b.pt", cifar10.Clock(1e-9))
    resumed, _, loss = cifar10.train(method, data, settings, 0, tmp_path / "b.pt", cifar10.Clock(None))
    assert loss == expected_loss
    for key, value in expected.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_lars_limits_the_norm_of_a_step(cifar10: ModuleType) -> None:
    rng = np.random.default_rng(0)
    w, lr, weight_decay, trust_coefficient = rng.normal(size=(6, 5)), 0.6, 1e-4, 0.02
    for scale in (100.0, 1e-3):  # a clipped and an unclipped gradient
        g = scale * rng.normal(size=w.shape)
        weight = torch.nn.Parameter(torch.from_numpy(w))
        weight.grad = torch.from_numpy(g.copy())
        cifar10.apply_lars([weight], lr, weight_decay, trust_coefficient)
        norm = np.linalg.norm(w)
        factor = min(trust_coefficient * norm / (np.linalg.norm(g) + weight_decay * norm) / lr, 1)
        assert (factor == 1) == (scale < 1)
        np.testing.assert_allclose(weight.grad.numpy(), factor * (g + weight_decay * w), rtol=1e-6)


def test_targets_of_a_predictor_have_no_gradient(cifar10: ModuleType) -> None:
    torch.manual_seed(0)
    x1, x2 = torch.randn(2, 8, 4, dtype=torch.float64)
    encoder, projector, predictor = (torch.nn.Linear(4, 4).double() for _ in range(3))
    network = cifar10.Network(encoder, lambda p, z: (p - z).square().mean(), projector, predictor, momentum=0.9)
    old_weight = projector.weight.detach().clone()
    with torch.no_grad():
        projector.weight.mul_(3)
    network.update_teacher()
    expected = torch.nn.functional.linear(encoder(x2), 0.9 * old_weight + 0.1 * 3 * old_weight, projector.bias)
    (p1, z2), (_, z1) = network(x1, x2)
    torch.testing.assert_close(z2, expected)
    torch.testing.assert_close(p1, predictor(projector(encoder(x1))))
    without_teacher = cifar10.Network(encoder, network.criterion, projector, predictor)(x1, x2)  # as in SimSiam
    torch.testing.assert_close(without_teacher[0][1], projector(encoder(x2)))
    for p, z in ((p1, z2), (p1, z1), *without_teacher):
        assert p.requires_grad
        assert not z.requires_grad
