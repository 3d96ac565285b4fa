from dataclasses import replace
from typing import Any

import pytest

from mec.errors import InputError
from mec.evaluate.detection.schedules import SCHEDULES, Schedule

COCO_1X = Schedule(90_000, (60_000, 80_000))
NO_OVERRIDES: dict[str, Any] = dict.fromkeys(("max_steps", "batch_size", "lr", "short_side"))


def test_lr_warms_up_from_a_thousandth_and_is_divided_by_ten_at_each_milestone() -> None:
    expected = {0: 0.001, 500: 0.5005, 999: 0.999001, 1000: 1, 59_999: 1, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01}
    assert {step: COCO_1X.lr_factor(step) for step in expected} == pytest.approx(expected)
    assert replace(COCO_1X, warmup_steps=0).lr_factor(0) == 1


def test_published_schedules_match_mocos_configs() -> None:
    """MoCo's detection/configs: learning rate, steps, warm-up and sizes."""
    coco, voc = SCHEDULES["coco-1x"], SCHEDULES["voc07+12"]
    assert (coco.max_steps, coco.milestones, coco.warmup_steps, coco.batch_size, coco.lr) == (
        90_000, (60_000, 80_000), 1000, 16, 0.02,
    )  # fmt: skip
    assert coco.train_short_sides == (640, 672, 704, 736, 768, 800)
    assert SCHEDULES["coco-2x"].milestones == (120_000, 160_000)
    assert (voc.max_steps, voc.milestones, voc.warmup_steps) == (24_000, (18_000, 22_000), 100)
    assert voc.train_short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    published = [schedule for name, schedule in SCHEDULES.items() if name != "short"]
    assert {(s.test_short_side, s.max_long_side, s.precise_bn_batches) for s in published} == {(800, 1333, 200)}


def test_a_smaller_batch_keeps_the_number_of_images() -> None:
    overrides = NO_OVERRIDES | {"batch_size": 4}
    assert SCHEDULES["coco-1x"].with_overrides(**overrides) == replace(
        COCO_1X, max_steps=360_000, milestones=(240_000, 320_000), warmup_steps=4000, batch_size=4, lr=0.005
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"max_steps": 9000}, {"max_steps": 9000, "milestones": (6000, 8000), "warmup_steps": 100}),
        ({"max_steps": 10}, {"max_steps": 10, "milestones": (7, 9), "warmup_steps": 50}),
        ({"lr": 0.1}, {"lr": 0.1}),
        ({"batch_size": 8, "lr": 0.1, "max_steps": 90_000}, {"batch_size": 8, "lr": 0.1}),
        (
            {"short_side": 400},
            {"train_short_sides": (320, 336, 352, 368, 384, 400), "test_short_side": 400, "max_long_side": 666},
        ),
        ({}, {}),
    ],
)
def test_overrides_adjust_dependent_settings(overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    assert SCHEDULES["coco-1x"].with_overrides(**(NO_OVERRIDES | overrides)) == replace(COCO_1X, **expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_dry_run_of_ten_steps_stays_below_a_fifth_of_the_learning_rate(name: str) -> None:
    """A detector from an EfficientNet of ImageNet diverged in ten steps at the full learning rate."""
    schedule = SCHEDULES[name].with_overrides(**(NO_OVERRIDES | {"max_steps": 10}))
    assert max(schedule.lr_factor(step) for step in range(10)) < 0.2
    assert replace(SCHEDULES[name], warmup_steps=20).with_overrides(**NO_OVERRIDES).warmup_steps == 20


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_steps", 0, "max_steps: expected at least 1, got 0"),
        ("batch_size", -4, "batch_size: expected at least 1, got -4"),
        ("lr", 0.0, "lr: expected a number above 0, got 0.0"),
        ("lr", float("nan"), "lr: expected a number above 0, got nan"),
        ("lr", float("inf"), "lr: expected a number above 0, got inf"),
        # the smallest side in training: 640 / 800 of 36
        ("short_side", 36, "short_side: expected at least 32 pixels in training and in testing, got 29"),
    ],
)
def test_invalid_settings_are_rejected_by_name(name: str, value: float, message: str) -> None:
    with pytest.raises(InputError) as error:
        SCHEDULES["coco-1x"].with_overrides(**(NO_OVERRIDES | {name: value}))
    assert str(error.value) == message


def test_protocol_settings() -> None:
    assert SCHEDULES["voc07"].protocol_settings() == {
        "max_steps": 9_000, "batch_size": 16, "lr": 0.02, "train_short_side": [480, 800], "test_short_side": 800,
    }  # fmt: skip
    assert replace(COCO_1X, train_short_sides=(600,)).protocol_settings()["train_short_side"] == [600]
