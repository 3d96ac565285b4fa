"""Training schedules of detectors: the published ones, and a short one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mec.errors import InputError

MIN_WARMUP_STEPS = 50  # of shortened schedules: with fewer, detectors from a good encoder diverge


def _sides(smallest: int, largest: int) -> tuple[int, ...]:
    return tuple(range(smallest, largest + 1, 32))


@dataclass(frozen=True)
class Schedule:
    """Settings of a detector's training: SGD with momentum 0.9 and weight decay 1e-4, none on norms."""

    max_steps: int
    milestones: tuple[int, ...]  # steps at which the learning rate is divided by 10
    warmup_steps: int = 1000  # linear, from a thousandth of the learning rate
    batch_size: int = 16  # over all devices
    lr: float = 0.02
    train_short_sides: tuple[int, ...] = _sides(640, 800)  # in pixels; each image is resized to a random one
    test_short_side: int = 800
    max_long_side: int = 1333
    rpn_batch_size_per_image: int = 256  # anchors sampled for the loss of the RPN
    box_batch_size_per_image: int = 512  # proposals sampled for the heads, at most a quarter of them positive
    rpn_post_nms_top_n_train: int = 2000  # proposals kept after NMS, per image
    rpn_post_nms_top_n_test: int = 1000
    precise_bn_batches: int = 200  # batches that BatchNorm's statistics are recomputed from after training

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise InputError(f"lr: expected a number above 0, got {self.lr}")
        if (smallest := min(*self.train_short_sides, self.test_short_side)) < 32:
            raise InputError(f"short_side: expected at least 32 pixels in training and in testing, got {smallest}")
        if self.max_steps < 1:
            raise InputError(f"max_steps: expected at least 1, got {self.max_steps}")

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        warmup = min(1.0, 0.001 + 0.999 * step / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def with_overrides(
        self, max_steps: int | None, batch_size: int | None, lr: float | None, short_side: int | None
    ) -> Schedule:
        """Return the schedule with replaced settings. Another batch size scales the learning rate in proportion, the
        steps inversely; other steps scale milestones and warm-up (to at least 50); another short side in testing scales
        all sides."""
        batch_size = self.batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch_size}")
        if max_steps is None:
            max_steps = max(1, round(self.max_steps * self.batch_size / batch_size))
        short_side = self.test_short_side if short_side is None else short_side
        step_scale, size_scale = max_steps / self.max_steps, short_side / self.test_short_side
        return replace(
            self,
            max_steps=max_steps,
            milestones=tuple(round(milestone * step_scale) for milestone in self.milestones),
            warmup_steps=max(round(self.warmup_steps * step_scale), min(self.warmup_steps, MIN_WARMUP_STEPS)),
            batch_size=batch_size,
            lr=self.lr * batch_size / self.batch_size if lr is None else lr,
            train_short_sides=tuple(round(side * size_scale) for side in self.train_short_sides),
            test_short_side=short_side,
            max_long_side=round(self.max_long_side * size_scale),
        )

    def protocol_settings(self) -> dict[str, Any]:
        """Return the settings that must agree for two results to be comparable."""
        train_short_side = sorted({min(self.train_short_sides), max(self.train_short_sides)})
        settings = {"max_steps": self.max_steps, "batch_size": self.batch_size, "lr": self.lr}
        return settings | {"train_short_side": train_short_side, "test_short_side": self.test_short_side}


# The published ones are MoCo's detection/configs for detectron2; the milestones of voc07 are in proportion to those of
# voc07+12. On a CPU most of the time goes to the sampled proposals, so "short" has few per image and a larger batch.
SCHEDULES = {
    "short": Schedule(
        500, (375, 458), warmup_steps=50, batch_size=8, train_short_sides=(224, 256, 288), test_short_side=256,
        max_long_side=427, box_batch_size_per_image=16, rpn_post_nms_top_n_train=500, rpn_post_nms_top_n_test=300,
        precise_bn_batches=50,
    ),
    "voc07": Schedule(9_000, (6_750, 8_250), warmup_steps=100, train_short_sides=_sides(480, 800)),
    "voc07+12": Schedule(24_000, (18_000, 22_000), warmup_steps=100, train_short_sides=_sides(480, 800)),
    "coco-1x": Schedule(90_000, (60_000, 80_000)),
    "coco-2x": Schedule(180_000, (120_000, 160_000)),
}  # fmt: skip
VOC_TRAIN_YEARS = {"voc07": (2007,), "voc07+12": (2007, 2012)}
"""Schedule -> years of VOC to train on."""
