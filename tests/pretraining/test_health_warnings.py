from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from mec.pretraining import ObjectiveSettings
from mec.pretraining.health_warnings import PATIENCE, HealthWarnings
from mec.pretraining.module import Pretraining


def said(
    ranks: list[float], norms: list[float], objective: ObjectiveSettings, warmup: int = 0, skipped: int = 0
) -> str:
    console = Console(file=StringIO(), width=1000)
    warnings = HealthWarnings(console)
    module = Pretraining.__new__(Pretraining)
    module.__dict__ |= {"recipe": SimpleNamespace(objective=objective), "warmup_steps": warmup}
    for step, (rank, norm) in enumerate(zip(ranks, norms, strict=True), start=1):
        module.__dict__["step_metrics"] = {"effective_rank": rank, "spectral_norm": norm, "skipped_steps": skipped}
        trainer = SimpleNamespace(global_step=step, is_global_zero=True)
        warnings.on_train_batch_end(trainer, module, None, None, step)
    return console.file.getvalue()


POOLED, CROSS = ObjectiveSettings(), ObjectiveSettings("cross", 1 / 32, 4)


@pytest.mark.parametrize(
    ("ranks", "norms", "objective", "expected"),
    [
        ([30] * 9, [5] * 9, POOLED, None),
        ([1.2] * 9, [5] * 9, POOLED, "collapsed"),
        ([40] * 4 + [5] * 5, [5] * 9, POOLED, "fell from 40.0 to 5.0"),
        ([30] * 9, [5] * 9, CROSS, "outside its radius"),
        ([30] * 9, [0.9] * 9, CROSS, None),
        ([30] * 9, [5] * 9, ObjectiveSettings("cross", 1 / 32, None), None),
        ([30, 1.1, 30] * 3, [5] * 9, POOLED, None),
    ],
)
def test_trouble_is_said_once_and_only_when_it_lasts(
    ranks: list[float], norms: list[float], objective: ObjectiveSettings, expected: str | None
) -> None:
    text = said(ranks, norms, objective)
    assert text.count("warning:") == (expected is not None)
    assert expected is None or expected in text


def test_the_warm_up_is_let_pass() -> None:
    assert said([1.0] * 9, [1.0] * 9, POOLED, warmup=9) == ""
    assert PATIENCE == 3


def test_steps_left_out_are_said_at_once_and_once_in_the_warm_up_too() -> None:
    text = said([30.0] * 9, [1.0] * 9, POOLED, warmup=9, skipped=2)
    assert text.count("warning:") == 1
    assert "steps left out so far: 2" in text
