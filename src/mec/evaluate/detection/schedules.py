"""How a detector is trained: the published schedules, and one for a trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mec.errors import InputError


def _sides(least: int, most: int) -> tuple[int, ...]:
    return tuple(range(least, most + 1, 32))


@dataclass(frozen=True)
class Schedule:
    """Settings of one training.

    Attributes:
        max_steps: optimizer steps.
        milestones: steps at which the learning rate is divided by 10.
        warmup: steps in which it rises, from a thousandth of it.
        batch_size: images in a step, over all devices.
        lr: learning rate of SGD with momentum 0.9 and weight decay 1e-4, none on norms.
        sides: short sides in pixels, one of which is drawn for each image.
        side_at_test: short side in pixels.
        longest: the long side is at most this many pixels.
        anchors: of each image for the loss of the proposals.
        regions: of each image for the losses of the heads, a quarter of them objects.
        proposals: of each image, after NMS, in training.
        proposals_at_test: the same in testing.
        precise: batches over which BatchNorm's statistics are measured anew after training (precise BN).
    """

    max_steps: int
    milestones: tuple[int, ...]
    warmup: int = 1000
    batch_size: int = 16
    lr: float = 0.02
    sides: tuple[int, ...] = _sides(640, 800)
    side_at_test: int = 800
    longest: int = 1333
    anchors: int = 256
    regions: int = 512
    proposals: int = 2000
    proposals_at_test: int = 1000
    precise: int = 200

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise InputError(f"lr: expected a number above 0, got {self.lr}")
        if min(self.sides) < 32 or self.side_at_test < 32:
            least = min(*self.sides, self.side_at_test)
            raise InputError(f"short_side: expected at least 32 pixels in training and in testing, got {least}")
        for name in ("max_steps", "batch_size", "longest", "anchors", "regions", "proposals"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def factor(self, step: int) -> float:
        """Of the learning rate at a step."""
        warm = min(1.0, 0.001 + 0.999 * step / self.warmup) if self.warmup else 1.0
        return warm * 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def adapted(
        self, max_steps: int | None, batch_size: int | None, lr: float | None, short_side: int | None
    ) -> Schedule:
        """With other settings, and all that depends on them.

        Batches of another size change the lr in proportion and the steps inversely: the same number of images is
        seen. Another number of steps moves the milestones and the warm-up in proportion, another side of the images those
        of training.
        """
        batch = self.batch_size if batch_size is None else batch_size
        if batch < 1:
            raise InputError(f"batch_size: expected at least 1, got {batch}")
        steps = max(1, round(self.max_steps * self.batch_size / batch)) if max_steps is None else max_steps
        short = self.side_at_test if short_side is None else short_side
        share, larger = steps / self.max_steps, short / self.side_at_test
        return replace(
            self,
            max_steps=steps,
            milestones=tuple(round(milestone * share) for milestone in self.milestones),
            warmup=round(self.warmup * share),
            batch_size=batch,
            lr=self.lr * batch / self.batch_size if lr is None else lr,
            sides=tuple(round(side * larger) for side in self.sides),
            side_at_test=short,
            longest=round(self.longest * larger),
        )

    def protocol_settings(self) -> dict[str, Any]:
        """Settings that decide whether two results compare."""
        return {
            "max_steps": self.max_steps,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "train_short_side": sorted({min(self.sides), max(self.sides)}),
            "test_short_side": self.side_at_test,
        }


# MoCo's detection/configs, of detectron2; voc07's milestones are in the proportion of its other schedule. On a CPU most
# of the time goes to the regions, so that short has few of each image, and more images in a step.
SCHEDULES = {
    "short": Schedule(
        500, (375, 458), warmup=50, batch_size=8, lr=0.02, sides=(224, 256, 288), side_at_test=256, longest=427,
        regions=16, proposals=500, proposals_at_test=300, precise=50,
    ),
    "voc07": Schedule(9_000, (6_750, 8_250), warmup=100, sides=_sides(480, 800)),
    "voc07+12": Schedule(24_000, (18_000, 22_000), warmup=100, sides=_sides(480, 800)),
    "coco-1x": Schedule(90_000, (60_000, 80_000)),
    "coco-2x": Schedule(180_000, (120_000, 160_000)),
}  # fmt: skip
YEARS = {"voc07": (2007,), "voc07+12": (2007, 2012)}
"""Of VOC, from whose images is learned."""
