"""What the comparison of methods stands on: one loop that goes on where it stopped, and the rules of each method."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("lightly", reason="lightly is not installed; it comes with the extra bench")


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import cifar10

    return cifar10


@pytest.mark.parametrize("name", ["MEC", "SimCLR", "SimSiam", "BYOL", "Barlow Twins", "VICReg"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(cifar10: ModuleType, name: str, tmp_path: Path) -> None:
    tiny = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "zero_init_last": False}
    setting = cifar10.Setting(epochs=2, batch=16, widest=16, small_stem=False, encoder=tiny)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = cifar10.Data(images, torch.zeros(32), images, torch.zeros(32), 2)
    method = cifar10.METHODS[name]
    whole, _, loss = cifar10.train(method, data, setting, 0, tmp_path / "whole.pt", cifar10.Clock(None))
    assert math.isfinite(loss)
    with pytest.raises(cifar10.Deadline):  # a limit that has passed: it stops after the first epoch
        cifar10.train(method, data, setting, 0, tmp_path / "halves.pt", cifar10.Clock(1e-9))
    halves, _, again = cifar10.train(method, data, setting, 0, tmp_path / "halves.pt", cifar10.Clock(None))
    assert again == loss
    for key, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[key]), key


def test_no_step_is_longer_than_trusted(cifar10: ModuleType) -> None:
    rng = np.random.default_rng(0)
    w, rate, decay, trust = rng.normal(size=(6, 5)), 0.6, 1e-4, 0.02
    for scale in (100.0, 1e-3):  # a gradient that is clipped, and one that is not
        g = scale * rng.normal(size=w.shape)
        weight = torch.nn.Parameter(torch.from_numpy(w))
        weight.grad = torch.from_numpy(g.copy())
        cifar10.shorten([weight], rate, decay, trust)
        norm = np.linalg.norm(w)
        factor = min(trust * norm / (np.linalg.norm(g) + decay * norm) / rate, 1)
        assert (factor == 1) == (scale < 1)
        np.testing.assert_allclose(weight.grad.numpy(), factor * (g + decay * w), rtol=1e-6)


def test_pairs_of_a_predictor_stop_the_gradient(cifar10: ModuleType) -> None:
    torch.manual_seed(0)
    x1, x2 = torch.randn(2, 8, 4, dtype=torch.float64)
    encoder, projector, predictor = (torch.nn.Linear(4, 4).double() for _ in range(3))
    network = cifar10.Network(encoder, lambda p, z: (p - z).square().mean(), projector, predictor, momentum=0.9)
    before = projector.weight.detach().clone()
    with torch.no_grad():
        projector.weight.mul_(3)
    network.follow()  # the teacher goes a tenth of the way
    teacher = torch.nn.functional.linear(encoder(x2), 0.9 * before + 0.1 * 3 * before, projector.bias)
    (p1, z2), (_, z1) = network(x1, x2)
    torch.testing.assert_close(z2, teacher)
    torch.testing.assert_close(p1, predictor(projector(encoder(x1))))
    own = cifar10.Network(encoder, network.criterion, projector, predictor)(x1, x2)  # SimSiam's: no teacher
    torch.testing.assert_close(own[0][1], projector(encoder(x2)))
    for p, z in ((p1, z2), (p1, z1), *own):
        assert p.requires_grad
        assert not z.requires_grad
