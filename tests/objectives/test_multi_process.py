"""Two processes, with different numbers of rows, have the loss and the gradients of the joined batch in one."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mec.objectives import MEC, OBJECTIVES, Gathered, gather_codes
from tests.coding.processes import run_in_processes
from tests.processes import needs_gloo

from .cases import seeded

ROWS, INPUTS, D, VIEWS = (9, 7), 5, 6, 2
ORDERS = None, 4

pytestmark = needs_gloo


def of_user(codes, targets=None):
    """The square of a mean over the batch: not the mean of the processes' values, unlike the mean of a square."""
    return sum(z.tanh().mean(0).square().sum() for z in codes)


NAMES = [*OBJECTIVES, "of a user"]


def step(name: str, student: nn.Module, x: Tensor, joins: bool) -> tuple[Tensor, Tensor]:
    """Return the loss and the gradient of the weights. x: (views, m, inputs)."""
    objective = of_user if name == "of a user" else OBJECTIVES[name]()
    codes = student(x.flatten(0, 1)).unflatten(0, (VIEWS, -1)).unbind()
    targets = [z.detach().cos() for z in codes]
    has_targets = getattr(objective, "targets", None) is not None
    if joins and not getattr(objective, "joins_processes", False):
        objective = Gathered(objective)
    value = seeded(objective, codes, *([targets] if has_targets else []))
    value.backward()
    return value.detach(), next(student.parameters()).grad


def inputs() -> Tensor:
    return torch.randn(VIEWS, sum(ROWS), INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def create_student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, D, bias=False, dtype=torch.float64)


def worker(rank: int) -> dict:
    x = inputs().split(ROWS, dim=1)[rank]
    results = {name: step(name, DistributedDataParallel(create_student()), x, joins=True) for name in NAMES}
    codes = [view.detach() for view in create_student()(x)]
    results["health"] = [MEC(0.1, order).health(codes) for order in ORDERS]
    row = torch.full((ROWS[rank], 1), float(rank), dtype=torch.bfloat16)
    groups = [dist.new_group([i]) for i in range(len(ROWS))]
    return results | {"gathered": gather_codes(row), "alone": gather_codes(row, groups[rank])}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_processes(worker, len(ROWS), tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_the_joined_batch(results, name):
    value, gradient = step(name, create_student(), inputs(), joins=False)
    for rank in range(len(ROWS)):
        torch.testing.assert_close(results[rank][name], (value, gradient), rtol=1e-9, atol=1e-11)


def test_health_of_mec_is_that_of_the_joined_batch(results):
    codes = [view.detach() for view in create_student()(inputs())]
    for i, order in enumerate(ORDERS):
        expected = MEC(0.1, order).health(codes)
        for rank in range(len(ROWS)):
            assert results[rank]["health"][i] == pytest.approx(expected, rel=1e-4)  # of the power iteration


def test_rows_are_gathered_in_rank_order(results):
    for rank, rows in enumerate(ROWS):
        assert results[rank]["gathered"].dtype == torch.bfloat16
        assert results[rank]["gathered"].flatten().tolist() == [0.0] * ROWS[0] + [1.0] * ROWS[1]
        assert results[rank]["alone"].flatten().tolist() == [float(rank)] * rows
