from types import SimpleNamespace

import pytest

from mec.pretraining import ObjectiveSettings
from mec.pretraining.health_warnings import PATIENCE, HealthWarnings
from mec.pretraining.module import Pretraining


def printed_warnings(
    ranks: list[float], norms: list[float], objective: ObjectiveSettings, warmup_steps: int = 0, skipped_steps: int = 0
) -> str:
    warnings = HealthWarnings()
    module = Pretraining.__new__(Pretraining)
    module.__dict__ |= {"recipe": SimpleNamespace(objective=objective), "warmup_steps": warmup_steps}
    for step, (rank, norm) in enumerate(zip(ranks, norms, strict=True), start=1):
        metrics = {"effective_rank": rank, "spectral_norm": norm, "skipped_steps": skipped_steps}
        module.__dict__["step_metrics"] = metrics
        trainer = SimpleNamespace(global_step=step, is_global_zero=True)
        warnings.on_train_batch_end(trainer, module, None, None, step)
    return "".join(f"{record.levelname.lower()}: {record.getMessage()}\n" for record in records)


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
def test_trouble_that_lasts_is_warned_of_once(
    ranks: list[float], norms: list[float], objective: ObjectiveSettings, expected: str | None
) -> None:
    text = printed_warnings(ranks, norms, objective)
    assert text.count("warning:") == (expected is not None)
    assert expected is None or expected in text


def test_collapse_in_the_warmup_is_not_warned_of() -> None:
    assert printed_warnings([1.0] * 9, [1.0] * 9, POOLED, warmup_steps=9) == ""
    assert PATIENCE == 3


def test_skipped_steps_are_warned_of_once_also_in_the_warmup() -> None:
    text = printed_warnings([30.0] * 9, [1.0] * 9, POOLED, warmup_steps=9, skipped_steps=2)
    assert text.count("warning:") == 1
    assert "skipped steps so far: 2" in text
