"""Descriptions of the objects passed to ``pretrain``."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

import mec
from mec.errors import InputError
from mec.objectives import MEC, SimCLR
from mec.pretraining.parts import MAX_LENGTH, describe_part, with_parts
from tests.processes import FORKSERVER, exit_status


def function(codes: Any, weight: float = 1.0) -> Any:
    """An objective."""


class Loss:
    """An object with arguments of several kinds, and an attribute that is no argument."""

    def __init__(self, weight: float, names: Any = (), inner: Any = None, unseen: float = 0.5) -> None:
        self.weight, self.names, self.inner, self._unseen, self.steps = weight, names, inner, unseen, 0

    def __call__(self, codes: Any) -> None: ...

    def method(self, codes: Any) -> None: ...

    @classmethod
    def of_class(cls, codes: Any) -> None: ...


@dataclass
class Settings:
    rate: float = 0.1
    layers: list[int] = field(default_factory=lambda: [1, 2])

    def __call__(self, codes: Any) -> None: ...


class Kind(enum.Enum):
    SLOW = "slow"


class Learned(nn.Module):
    """A module with a parameter under the name of an argument, layers, and a loss without parameters."""

    def __init__(self, scale: float, dim: int, criterion: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.scale, self.dim, self.criterion, self.head = nn.Parameter(torch.tensor(scale)), dim, criterion, head


HERE = __name__
V2 = "torchvision.transforms.v2"
COMPOSE = v2.Compose([v2.RandomHorizontalFlip(0.1), v2.ToDtype(torch.float32, scale=True)])
DESCRIBED: dict[str, tuple[Any, str]] = {
    "function": (function, f"{HERE}.function"),
    "lambda": (lambda codes: 0, f"{HERE}.<lambda>"),
    "partial": (functools.partial(function, weight=2), f"{HERE}.function(weight=2)"),
    "nested partial": (functools.partial(functools.partial(function, 1), weight=2), f"{HERE}.function(1, weight=2)"),
    "class": (Loss, f"{HERE}.Loss"),
    "object": (Loss(2.0), f"{HERE}.Loss(weight=2.0, names=[], inner=None)"),
    "method": (Loss(2.0, "ab").method, f"{HERE}.Loss(weight=2.0, names='ab', inner=None).method"),
    "class method": (Loss.of_class, f"{HERE}.Loss.of_class"),
    "nested": (
        Loss(1, {"a": [2, None]}, Settings()),
        f"{HERE}.Loss(weight=1, names={{'a': [2, None]}}, inner={HERE}.Settings(rate=0.1, layers=[1, 2]))",
    ),
    "objects as keys": (Loss(1, {object(): 1}), f"{HERE}.Loss(weight=1, names={{...: 1}}, inner=None)"),
    "an object without arguments": (Loss(1, object()), f"{HERE}.Loss(weight=1, names=builtins.object(), inner=None)"),
    "dataclass": (Settings(0.5), f"{HERE}.Settings(rate=0.5, layers=[1, 2])"),
    "enum and dtype": (
        Loss(1, Kind.SLOW, torch.float16),
        f"{HERE}.Loss(weight=1, names={HERE}.Kind(value='slow'), inner=torch.float16)",
    ),
    "tensors": (Loss(1, torch.zeros(2), torch.device("cpu")), f"{HERE}.Loss(weight=1)"),
    "lines": (Loss(1, "a\nb"), f"{HERE}.Loss(weight=1, names='a\\nb', inner=None)"),
    "module": (
        Learned(2.0, 3, nn.MSELoss(), nn.Linear(1, 1)),
        f"{HERE}.Learned(dim=3, criterion=torch.nn.modules.loss.MSELoss(reduction='mean'))",
    ),
    "built-in": (SimCLR(0.2), "mec.objectives.simclr.SimCLR(temperature=0.2)"),
    "mec": (
        MEC((0.25, 1)),
        "mec.objectives.mec.MEC(distortion=[0.25, 1], order=None, form='reduction', warmup_factor=1.0, "
        "rate_weight=1.0, global_views=None, rate_views='all')",
    ),
    "torchvision": (
        COMPOSE,
        f"{V2}._container.Compose(transforms=[{V2}._geometry.RandomHorizontalFlip(p=0.1), "
        f"{V2}._misc.ToDtype(dtype=torch.float32, scale=True)])",
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_parts_are_described_by_name_and_arguments(name: str) -> None:
    part, expected = DESCRIBED[name]
    assert describe_part(part) == expected


def test_losses_of_lightly_are_described() -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly comes with the extra bench")
    text = describe_part(loss.VICRegLoss(lambda_param=10.0))
    assert text.startswith("lightly.loss.vicreg_loss.VICRegLoss(lambda_param=10.0")
    assert "temperature=0.3" in describe_part(loss.NTXentLoss(temperature=0.3))


def describe_all(out: Path) -> None:
    out.write_text("\n".join(describe_part(part) for part, _ in DESCRIBED.values()))


def test_descriptions_are_equal_in_another_process(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=describe_all, args=(tmp_path / "other.txt",))
    process.start()
    assert exit_status(process) == 0
    describe_all(tmp_path / "here.txt")
    assert (tmp_path / "other.txt").read_text() == (tmp_path / "here.txt").read_text()


def test_long_and_recursive_descriptions_are_cut() -> None:
    loss = Loss(1, "x" * 3000)
    loss.inner = loss
    text = describe_part(loss)
    assert len(text) == MAX_LENGTH
    assert text.endswith("...")


def scaled(codes: Any) -> Tensor: ...


def test_recipes_record_parts_and_drop_what_they_replace() -> None:
    recipe = mec.Recipe(objective=mec.pretraining.ObjectiveSettings(name="simclr"))
    recorded = with_parts(recipe, objective=scaled, encoder=None)
    assert recorded.parts == {"objective": f"{HERE}.scaled"}
    assert recorded.as_dict()["parts"] == recorded.parts
    assert "objective" not in recorded.as_dict()
    assert recorded.setting("objective.distortion") is None
    assert with_parts(recorded, objective=SimCLR()).parts == {"objective": describe_part(SimCLR())}
    with pytest.raises(InputError, match=rf"^objective: the recipe is that of a run with {HERE}.scaled; pass it"):
        with_parts(recorded, objective=None)
