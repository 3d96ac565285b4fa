"""Parity with values computed by the paper's own code in float64. tests/golden/README.md explains the keys.

The subset in tests/golden is always tested, and also the file MEC_REFERENCE, by default the whole set in shared/golden.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mec.coding import MECLoss, cross_coding_rate, spectral_norm
from mec.models import Predictor, Projector, Siamese
from mec.objectives import MEC
from mec.pretraining.module import lr_factor, teacher_momentum
from tests.conftest import GOLDEN, SHARED

Reference = dict[str, np.ndarray]
FILES = [GOLDEN / "mec_reference.npz"]
WHOLE = Path(os.environ.get("MEC_REFERENCE", SHARED / "golden" / "mec_reference.npz"))
if WHOLE.exists() or "MEC_REFERENCE" in os.environ:
    FILES.append(WHOLE)


@pytest.fixture(scope="module", params=FILES, ids=["subset", "whole"][: len(FILES)])
def reference(request: pytest.FixtureRequest) -> Reference:
    with np.load(request.param) as file:
        return {key: file[key] for key in file.files}


def loss_cases(reference: Reference) -> list[int]:
    return sorted(int(key[4:-2]) for key in reference if key.startswith("loss") and key.endswith("_m"))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_values_and_gradients_match_the_official_code(
    reference: Reference, dtype: torch.dtype, tolerance: float
) -> None:
    assert loss_cases(reference)
    for i in loss_cases(reference):
        m, order = int(reference[f"loss{i}_m"]), int(reference[f"loss{i}_order"])
        lamda_inv = float(reference[f"loss{i}_lamda_inv"])
        p = torch.tensor(reference[f"loss{i}_p"], dtype=dtype, requires_grad=True)
        z = torch.tensor(reference[f"loss{i}_z"], dtype=dtype)

        trace = cross_coding_rate(p, z, lamda_inv / m, order)
        trace.backward()
        assert trace.item() == pytest.approx(float(reference[f"loss{i}_trace"]), rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(p.grad.numpy(), reference[f"loss{i}_grad_p"], rtol=tolerance, atol=tolerance)

        exact = cross_coding_rate(p.detach(), z, lamda_inv / m)
        assert exact.item() == pytest.approx(float(reference[f"loss{i}_logdet"]), rel=tolerance, abs=tolerance)

        loss = MECLoss(lamda_inv / m, order)((p.detach(), p.detach()), (z, z))
        expected = -lamda_inv / m * float(reference[f"loss{i}_trace"])
        assert loss.item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_spectral_norm_matches_the_official_code(reference: Reference) -> None:
    for i in loss_cases(reference):
        m, lamda_inv = int(reference[f"loss{i}_m"]), float(reference[f"loss{i}_lamda_inv"])
        p, z = torch.tensor(reference[f"loss{i}_p"]), torch.tensor(reference[f"loss{i}_z"])
        norm = spectral_norm(p, z, lamda_inv / m, steps=2000)
        assert norm == pytest.approx(float(reference[f"loss{i}_specnorm"]), rel=1e-6)


def official_name(key: str) -> str:
    """Translate a key of our state dict: encoder.conv, encoder.bn, encoder.fc.*, predictor.*, and likewise teacher.*"""
    for prefix, official_prefix in (
        ("teacher.0.0.", "teacher.conv."),
        ("teacher.0.1.", "teacher.bn."),
        ("teacher.1.", "teacher.fc."),
        ("encoder.0.", "encoder.conv."),
        ("encoder.1.", "encoder.bn."),
        ("projector.", "encoder.fc."),
    ):
        if key.startswith(prefix):
            return official_prefix + key.removeprefix(prefix)
    return key


def test_training_reproduces_the_official_run(reference: Reference) -> None:
    """Every loss, coding length, weight and buffer, with our networks, loss, teacher and schedules.

    The subset has the images of the first steps only, hence no final weights.
    """
    steps, steps_with_images, m = len(reference["trace_lr"]), *reference["trace_x1"].shape[:2]
    warmup = steps // 2
    features, channels = reference["trace_init/encoder.conv.weight"].shape[:2]
    hidden = len(reference["trace_init/encoder.fc.0.weight"])
    bottleneck, d = reference["trace_init/predictor.0.weight"].shape
    encoder = nn.Sequential(
        nn.Conv2d(channels, features, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    network = Siamese(encoder, Projector(features, hidden, d), Predictor(d, bottleneck)).double()
    names = {key: official_name(key) for key in network.state_dict()}
    assert sorted(names.values()) == sorted(k.removeprefix("trace_init/") for k in reference if "trace_init/" in k)
    network.load_state_dict({k: torch.tensor(reference[f"trace_init/{v}"]) for k, v in names.items()})

    base_lr = 0.5 * m / 256
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, base_lr, momentum=0.9, weight_decay=1e-5)
    target = float(reference["trace_eps_d"])
    objective = MEC(target, 4, "cross", warmup_factor=8)
    for t in range(steps):
        lr = base_lr * lr_factor(t, steps, warmup)
        objective.warmup(1.0 if t >= warmup else t / (warmup - 1))
        distortion = objective.current_distortion
        momentum = teacher_momentum(t, steps, 0.996)
        assert lr == pytest.approx(float(reference["trace_lr"][t]), abs=1e-15)
        assert distortion * m == pytest.approx(float(reference["trace_lamda_inv"][t]), rel=1e-13)
        assert momentum == pytest.approx(float(reference["trace_momentum"][t]), rel=1e-13)
        if t >= steps_with_images:
            continue

        optimizer.param_groups[0]["lr"] = lr
        codes = network(torch.tensor(reference["trace_x1"][t]), torch.tensor(reference["trace_x2"][t]))
        loss = objective(*codes)
        # the official code reports mu / m times the mean log det, with mu = (m + d) / 2
        length = -loss.item() / distortion * (m + d) / (2 * m)
        assert loss.item() == pytest.approx(float(reference["trace_loss"][t]), abs=1e-8)
        assert length == pytest.approx(float(reference["trace_coding_length"][t]), abs=1e-8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.update_teacher(momentum)

    if steps_with_images < steps:
        return
    for key, tensor in network.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), reference[f"trace_final/{names[key]}"], atol=1e-8, err_msg=key)
