"""Two processes with half of the batch each return what one process returns for the whole batch."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from mec.coding import MECLoss, health
from tests.pairwise import pairwise
from tests.processes import needs_gloo

from . import reference
from .processes import run_in_processes

PROCESSES, INPUTS, EPS = 2, 7, 0.4
SIZES = [(12, 5), (8, 12), (8, 20)]  # global m and d: feature side; feature side in the stable forms only; batch side
LOSSES = {  # arguments of the loss, whether it has targets
    "cross, order 4": ({"order": 4}, True),
    "cross, exact": ({}, True),
    "cross, exact, no targets": ({"form": "cross"}, False),
    "pooled, exact": ({"form": "pooled"}, False),
    "pooled, order 3, targets": ({"form": "pooled", "order": 3}, True),
    "reduction, exact": ({}, False),
    "reduction, order 3, targets": ({"form": "reduction", "order": 3}, True),
}
# names of losses, and whether the targets get gradients
LOSS_CASES = [(name, True) for name in LOSSES] + [(name, False) for name, loss in LOSSES.items() if loss[1]]
CASES = [(*size, dtype, *loss) for size, dtype, loss in pairwise(SIZES, [torch.float32, torch.float64], LOSS_CASES)]

pytestmark = needs_gloo


class Student(nn.Module):
    """Linear encoder and predictor: returns predictions p and codes z."""

    def __init__(self, d: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(d)
        self.encoder, self.predictor = nn.Linear(INPUTS, d, dtype=dtype), nn.Linear(d, d, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predictor(z), z


def two_views(m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m)
    x1 = torch.randn(m, INPUTS, generator=generator, dtype=torch.float64)
    x2 = x1 + 0.5 * torch.randn(m, INPUTS, generator=generator, dtype=torch.float64)
    return x1.to(dtype), x2.to(dtype)


def local_rows(x: Tensor, rank: int) -> Tensor:
    return x.chunk(PROCESSES)[rank]


def one_step(student: nn.Module, x1: Tensor, x2: Tensor, target_gradients: bool, loss) -> tuple[Tensor, list[Tensor]]:
    (p1, p2), (z1, z2) = ([*both.chunk(2)] for both in student(torch.cat([x1, x2])))
    if not target_gradients:
        z1, z2 = z1.detach(), z2.detach()
    value = loss((p1, p2), (z1, z2))
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in student.parameters()]


def worker(rank: int) -> dict:
    result = {case: ddp_step(rank, *case) for case in CASES}
    result["health"] = global_health(rank)
    nan_cases = [(rank, *size, *case) for size in SIZES for case in NAN_CASES]
    result["errors"] = [error_of_nan_on_rank_one(*case) for case in nan_cases]
    result["unchecked"] = [loss_with_nan_on_rank_one(*case, check=False) for case in nan_cases]
    result["single-process group"] = loss_in_single_process_group(rank)
    return result


def ddp_step(rank: int, m: int, d: int, dtype: torch.dtype, name: str, target_gradients: bool):
    arguments, with_targets = LOSSES[name]
    student = DistributedDataParallel(Student(d, dtype))
    x1, x2 = (local_rows(x, rank) for x in two_views(m, dtype))
    loss = MECLoss(EPS, **arguments)
    return one_step(student, x1, x2, target_gradients, loss if with_targets else lambda p, z: loss(p))


def global_health(rank: int) -> list[dict[str, float]]:
    metrics = []
    for m, d in SIZES:
        p, z = (view.detach() for view in reference.random_codes(2, m, d, torch.float32))
        metrics.append(
            dataclasses.asdict(health(local_rows(p, rank), local_rows(z, rank), EPS, dist.group.WORLD, "cross"))
        )
    return metrics


NAN_CASES = [(4, "cross"), (None, "cross"), (None, "pooled"), (None, "reduction")]


def loss_with_nan_on_rank_one(rank: int, m: int, d: int, order: int | None, form: str, check: bool = True) -> Tensor:
    views = [local_rows(view.detach(), rank).clone() for view in reference.random_codes(4, m, d)]
    if rank == 1:
        views[1][0, 0] = torch.nan
    return MECLoss(EPS, order, form, check=check)(views[:2], views[2:])


def error_of_nan_on_rank_one(*case) -> str:
    try:
        loss_with_nan_on_rank_one(*case)
    except ValueError as error:
        return str(error)
    return "no error"


def loss_in_single_process_group(rank: int) -> Tensor:
    """Return the loss of the local half of the batch, in a group of this process alone."""
    groups = [dist.new_group([i]) for i in range(PROCESSES)]
    z1, z2 = (local_rows(view.detach(), rank) for view in reference.random_codes(2, 8, 5))
    return MECLoss(EPS, group=groups[rank])((z1, z2))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_processes(worker, PROCESSES, tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize(("m", "d", "dtype", "name", "target_gradients"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_batch(results, m, d, dtype, name, target_gradients):
    arguments, with_targets = LOSSES[name]
    student = Student(d, dtype).double()

    def reference_loss(p, z):
        return reference.mec_loss(p, z if with_targets else None, EPS, **arguments)

    value, gradients = one_step(student, *(x.double() for x in two_views(m, dtype)), target_gradients, reference_loss)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for rank in range(PROCESSES):
        ddp_value, ddp_gradients = results[rank][m, d, dtype, name, target_gradients]
        assert ddp_value.dtype == dtype
        torch.testing.assert_close(ddp_value.double(), value, rtol=tolerance, atol=tolerance)
        assert len(ddp_gradients) == len(gradients) == 4
        for ddp_gradient, gradient in zip(ddp_gradients, gradients, strict=True):
            torch.testing.assert_close(ddp_gradient.double(), gradient, rtol=tolerance, atol=tolerance)
        assert torch.equal(ddp_value, results[0][m, d, dtype, name, target_gradients][0])


def test_health_is_that_of_the_whole_batch(results):
    for i, (m, d) in enumerate(SIZES):
        p, z = (normalize(view.detach().float().double()).numpy() for view in reference.random_codes(2, m, d))
        eigenvalues = np.linalg.svd(z, compute_uv=False) ** 2 / m
        singular = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
        expected = {
            "coding_length": (m + d) / 2 * np.log1p(eigenvalues / EPS).sum(),
            "effective_rank": np.exp(-(eigenvalues * np.log(eigenvalues)).sum()),
            "rankme": np.exp(-(singular * np.log(singular)).sum()),
        }
        largest = np.linalg.norm(p @ z.T, 2) / (m * EPS)
        for rank in range(PROCESSES):
            metrics = results[rank]["health"][i]
            assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
            assert 0.9 * largest < metrics["spectral_norm"] < largest * (1 + 1e-6)
        assert results[0]["health"][i] == pytest.approx(results[1]["health"][i], rel=1e-9)


def test_nan_in_one_process_raises_in_both(results):
    assert len(results[0]["errors"]) == len(SIZES) * len(NAN_CASES)
    for message in results[0]["errors"]:
        assert "another process holds NaN" in message
    for message in results[1]["errors"]:
        assert message.startswith("predictions[1]: expected finite embeddings, got NaN or infinity in 1 of")


def test_unchecked_nan_in_one_process_is_returned_in_both(results):
    for rank in range(PROCESSES):
        assert len(results[rank]["unchecked"]) == len(SIZES) * len(NAN_CASES)
        assert torch.stack(results[rank]["unchecked"]).isnan().all()


def test_loss_uses_the_rows_of_its_group_only(results):
    z1, z2 = (view.detach() for view in reference.random_codes(2, 8, 5))
    for rank in range(PROCESSES):
        expected = reference.mec_loss([local_rows(z1, rank), local_rows(z2, rank)], None, EPS)
        torch.testing.assert_close(results[rank]["single-process group"], expected)
