"""The dry run of a user's objective leaves its buffers as they are."""

import torch
from torch import Tensor, nn

from mec.pretraining.objective import Objective


class Centered(nn.Module):
    """Subtracts a running mean of the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(4))

    def forward(self, codes: tuple[Tensor, ...]) -> Tensor:
        self.center = 0.9 * self.center + 0.1 * codes[0].detach().mean(0)
        return ((codes[0] - self.center) * (codes[1] - self.center)).mean()


def test_the_dry_run_does_not_change_buffers() -> None:
    function = Centered()
    Objective(function).check(views=2, rows=8, dim=4, has_targets=False)
    assert torch.equal(function.center, torch.zeros(4))
