from dataclasses import replace
from typing import Any

import pytest

from mec.errors import InputError
from mec.evaluate.detection.schedules import SCHEDULES, Schedule
from mec.evaluate.detection.trainer import period

ONE = Schedule(90_000, (60_000, 80_000))


def test_the_rate_rises_from_a_thousandth_and_falls_by_ten_at_each_milestone() -> None:
    expected = {
        0: 0.001,
        500: 0.5005,
        999: 0.999001,
        1000: 1,
        59_999: 1,
        60_000: 0.1,
        79_999: 0.1,
        80_000: 0.01,
        89_999: 0.01,
    }
    assert {step: ONE.factor(step) for step in expected} == pytest.approx(expected)
    assert replace(ONE, warmup=0).factor(0) == 1


def test_the_published_schedules() -> None:
    """MoCo's detection/configs: base rate, steps, warm-up and sides."""
    coco, voc = SCHEDULES["coco-1x"], SCHEDULES["voc07+12"]
    assert (coco.iterations, coco.milestones, coco.warmup, coco.batch_size, coco.rate) == (
        90_000, (60_000, 80_000), 1000, 16, 0.02,
    )  # fmt: skip
    assert coco.sides == (640, 672, 704, 736, 768, 800)
    assert SCHEDULES["coco-2x"].milestones == (120_000, 160_000)
    assert (voc.iterations, voc.milestones, voc.warmup) == (24_000, (18_000, 22_000), 100)
    assert voc.sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert {(s.side_at_test, s.longest, s.precise) for n, s in SCHEDULES.items() if n != "short"} == {(800, 1333, 200)}


def test_a_smaller_batch_sees_as_many_images() -> None:
    small = SCHEDULES["coco-1x"].adapted(None, 4, None, None)
    assert small == replace(
        ONE, iterations=360_000, milestones=(240_000, 320_000), warmup=4000, batch_size=4, rate=0.005
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"iterations": 9000}, {"iterations": 9000, "milestones": (6000, 8000), "warmup": 100}),
        ({"rate": 0.1}, {"rate": 0.1}),
        ({"batch_size": 8, "rate": 0.1, "iterations": 90_000}, {"batch_size": 8, "rate": 0.1}),
        ({"side": 400}, {"sides": (320, 336, 352, 368, 384, 400), "side_at_test": 400, "longest": 666}),
        ({}, {}),
    ],
)
def test_other_settings_take_what_depends_on_them_along(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("iterations", "batch_size", "rate", "side"))
    assert SCHEDULES["coco-1x"].adapted(**(nothing | asked)) == replace(ONE, **expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("iterations", 0, "iterations: expected at least 1, got 0"),
        ("iterations", -5, "iterations: expected at least 1, got -5"),
        ("batch_size", 0, "batch_size: expected at least 1, got 0"),
        ("batch_size", -4, "batch_size: expected at least 1, got -4"),
        ("rate", 0.0, "rate: expected a number above 0, got 0.0"),
        ("rate", -0.1, "rate: expected a number above 0, got -0.1"),
        ("rate", float("nan"), "rate: expected a number above 0, got nan"),
        ("rate", float("inf"), "rate: expected a number above 0, got inf"),
        ("side", 0, "side: expected at least 32 pixels in training and in testing, got 0"),
        ("side", -64, "side: expected at least 32 pixels in training and in testing, got -64"),
        ("side", 36, "side: expected at least 32 pixels in training and in testing, got 29"),  # 640 of 800
    ],
)
def test_what_cannot_be_is_refused_by_its_name(name: str, value: float, message: str) -> None:
    settings: dict[str, Any] = dict.fromkeys(("iterations", "batch_size", "rate", "side")) | {name: value}
    with pytest.raises(InputError) as refusal:
        SCHEDULES["coco-1x"].adapted(**settings)
    assert str(refusal.value) == message


def test_it_is_told_in_words() -> None:
    assert SCHEDULES["voc07"].in_words() == (
        "9,000 iterations of 16, learning rate 0.02, short side 480 to 800 px, 800 in testing"
    )
    assert "short side 600 px, 800" in replace(ONE, sides=(600,)).in_words()


@pytest.mark.parametrize(("iterations", "steps"), [(1, 1), (10, 1), (25, 3), (500, 50), (24_000, 1000)])
def test_ten_checkpoints_or_one_every_thousand_steps(iterations: int, steps: int) -> None:
    assert period(replace(ONE, iterations=iterations)) == steps
