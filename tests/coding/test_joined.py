"""Two processes with half the batch each give what one with the whole batch gives."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from mec.coding import MECLoss, health

from . import plain
from .processes import in_processes, needs_gloo

PROCESSES, INPUTS, EPS = 2, 7, 0.4
SIZES = [(12, 5), (8, 12), (8, 20)]  # m of all and d: feature side; the pooled form alone on it; batch side
LOSSES = {  # order, form, with targets
    "cross, order 4": (4, "cross", True),
    "cross, exact": (None, "cross", True),
    "pooled, exact": (None, "pooled", False),
    "pooled, order 3, targets": (3, "pooled", True),
    "cross, exact, own targets": (None, "cross", False),
}
TARGET_GRADIENTS = [True, False]

pytestmark = needs_gloo


class Student(nn.Module):
    """Linear encoder and predictor: both views through each, codes z and predictions p."""

    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(d)
        self.encoder, self.predictor = nn.Linear(INPUTS, d, dtype=dtype), nn.Linear(d, d, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z


def images(m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m)
    x1 = torch.randn(m, INPUTS, generator=generator, dtype=torch.float64)
    x2 = x1 + 0.5 * torch.randn(m, INPUTS, generator=generator, dtype=torch.float64)
    return x1.to(dtype), x2.to(dtype)


def own_part(x: Tensor, rank: int) -> Tensor:
    return x.chunk(PROCESSES)[rank]


def one_step(student: nn.Module, x1: Tensor, x2: Tensor, target_gradients: bool, loss) -> tuple[Tensor, list[Tensor]]:
    (p1, p2), (z1, z2) = ([*both.chunk(2)] for both in student(torch.cat([x1, x2])))
    if not target_gradients:
        z1, z2 = z1.detach(), z2.detach()
    value = loss((p1, p2), (z1, z2))
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in student.parameters()]


def cases():
    for m, d in SIZES:
        for dtype in (torch.float32, torch.float64):
            for name, (_, _, targets) in LOSSES.items():
                for target_gradients in TARGET_GRADIENTS if targets else [True]:
                    yield m, d, dtype, name, target_gradients


def worker(rank: int) -> dict:
    found = {case: joined_step(rank, *case) for case in cases()}
    found["health"] = joined_health(rank)
    found["errors"] = [message_of_nan_in_one(rank, m, d, order, form) for m, d in SIZES for order, form in NAN_CASES]
    found["unchecked"] = [nan_in_one(rank, m, d, *case, check=False) for m, d in SIZES for case in NAN_CASES]
    found["group of one"] = own_group(rank)
    return found


def joined_step(rank: int, m: int, d: int, dtype: torch.dtype, name: str, target_gradients: bool):
    order, form, targets = LOSSES[name]
    student = DistributedDataParallel(Student(d, dtype))
    x1, x2 = (own_part(x, rank) for x in images(m, dtype))
    loss = MECLoss(EPS, order, form)
    return one_step(student, x1, x2, target_gradients, loss if targets else lambda p, z: loss(p))


def joined_health(rank: int) -> list[dict[str, float]]:
    found = []
    for m, d in SIZES:
        p, z = (view.detach() for view in plain.codes(2, m, d, torch.float32))
        found.append(dataclasses.asdict(health(own_part(p, rank), own_part(z, rank), EPS, dist.group.WORLD)))
    return found


NAN_CASES = [(4, "cross"), (None, "cross"), (None, "pooled")]


def nan_in_one(rank: int, m: int, d: int, order: int | None, form: str, check: bool = True) -> Tensor:
    views = [own_part(view.detach(), rank).clone() for view in plain.codes(4, m, d)]
    if rank == 1:
        views[1][0, 0] = torch.nan
    return MECLoss(EPS, order, form, check=check)(views[:2], views[2:])


def message_of_nan_in_one(*case) -> str:
    try:
        nan_in_one(*case)
    except ValueError as error:
        return str(error)
    return "no error"


def own_group(rank: int) -> Tensor:
    """A group that holds this process alone: the loss of its own half."""
    groups = [dist.new_group([i]) for i in range(PROCESSES)]
    z1, z2 = (own_part(view.detach(), rank) for view in plain.codes(2, 8, 5))
    return MECLoss(EPS, group=groups[rank])((z1, z2))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return in_processes(worker, PROCESSES, tmp_path_factory.mktemp("joined"))


@pytest.mark.parametrize(("m", "d", "dtype", "name", "target_gradients"), list(cases()))
def test_loss_and_gradients_are_those_of_the_whole_batch(found, m, d, dtype, name, target_gradients):
    order, form, targets = LOSSES[name]
    student = Student(d, dtype).double()

    def whole(p, z):
        if form == "pooled":
            pairs = [(p[0], z[1]), (p[1], z[0])] if targets else [p]
            return sum(plain.pooled_loss(a, b, EPS, order) for a, b in pairs) / len(pairs)
        return plain.cross_loss(p, z, EPS, order) if targets else -EPS * plain.rate(p[0], p[1], EPS, order)

    value, gradients = one_step(student, *(x.double() for x in images(m, dtype)), target_gradients, whole)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for rank in range(PROCESSES):
        joined_value, joined_gradients = found[rank][m, d, dtype, name, target_gradients]
        assert joined_value.dtype == dtype
        torch.testing.assert_close(joined_value.double(), value, rtol=tolerance, atol=tolerance)
        assert len(joined_gradients) == len(gradients) == 4
        for joined, single in zip(joined_gradients, gradients, strict=True):
            torch.testing.assert_close(joined.double(), single, rtol=tolerance, atol=tolerance)
        assert torch.equal(joined_value, found[0][m, d, dtype, name, target_gradients][0])


def test_health_is_that_of_the_whole_batch(found):
    for i, (m, d) in enumerate(SIZES):
        p, z = (normalize(view.detach().float().double()).numpy() for view in plain.codes(2, m, d))
        eigenvalues = np.linalg.svd(z, compute_uv=False) ** 2 / m
        singular = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
        expected = {
            "coding_length": (m + d) / 2 * np.log1p(eigenvalues / EPS).sum(),
            "effective_rank": np.exp(-(eigenvalues * np.log(eigenvalues)).sum()),
            "rankme": np.exp(-(singular * np.log(singular)).sum()),
        }
        largest = np.linalg.norm(p @ z.T, 2) / (m * EPS)
        for rank in range(PROCESSES):
            joined = found[rank]["health"][i]
            assert {name: joined[name] for name in expected} == pytest.approx(expected, rel=1e-5)
            assert 0.9 * largest < joined["spectral_norm"] < largest * (1 + 1e-6)
        assert found[0]["health"][i] == pytest.approx(found[1]["health"][i], rel=1e-9)


def test_nan_in_one_process_is_an_error_in_both(found):
    assert len(found[0]["errors"]) == len(SIZES) * len(NAN_CASES)
    for message in found[0]["errors"]:
        assert "another process holds NaN" in message
    for message in found[1]["errors"]:
        assert message.startswith("predictions[1]: expected finite embeddings, got NaN or infinity in 1 of")


def test_without_the_check_it_is_a_nan_in_both(found):
    for rank in range(PROCESSES):
        assert len(found[rank]["unchecked"]) == len(SIZES) * len(NAN_CASES)
        assert torch.stack(found[rank]["unchecked"]).isnan().all()


def test_a_group_limits_what_is_joined(found):
    z1, z2 = (view.detach() for view in plain.codes(2, 8, 5))
    for rank in range(PROCESSES):
        expected = plain.pooled_loss(own_part(z1, rank), own_part(z2, rank), EPS)
        torch.testing.assert_close(found[rank]["group of one"], expected)
