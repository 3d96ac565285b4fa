"""Did a run help? One sentence at its end, where the images have labels."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mec.data.dataset import ImageDataset
from mec.distributed import SINGLE_PROCESS
from mec.embedding.extract import BATCH, extract, in_memory, labels_of, pixel_format_of, with_labels
from mec.embedding.thumbnails import CORRELATION, MIN_SIDE, standardized, thumbnails
from mec.errors import InputError
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.task import Features, raw_pixels
from mec.files import atomic_write
from mec.models.baseline import find_baseline
from mec.models.encoder import Encoder
from mec.pretraining.online_probe import OnlineProbe

logger = logging.getLogger("mec")
OUTCOME_FILE = "outcome.json"
RAW_PIXELS = "raw pixels"
SHOTS, TRIALS = 5, 50
MIN_TEST_IMAGES = 50
"""Test images below which there is no verdict: one image in 50 is two points."""


@dataclass(frozen=True)
class Outcome:
    """What few labels show about a run. Accuracies are means and standard deviations over choices of the labels, as
    fractions: of the encoder, of its start, of raw pixels."""

    level: Literal["ok", "note", "warning"]
    shots: int
    accuracies: dict[str, tuple[float, float]]
    verdict: str
    copies: int  # test images that are near-duplicates of train images

    @property
    def method(self) -> str:
        """How the accuracies were measured, in sentences."""
        text = (
            f"Accuracy on held-out images with {_labels(self.shots)} per class, by the nearest class mean: mean and "
            f"standard deviation over {TRIALS} choices of the labels."
        )
        return f"{text} {_copies(self.copies).capitalize()}." if self.copies else text

    def __str__(self) -> str:
        own, *others = (f"{name} {100 * mean:.1f} ± {100 * std:.1f} %" for name, (mean, std) in self.accuracies.items())
        rows = ", ".join([own.removeprefix("encoder "), *others])
        copies = f"; {_copies(self.copies)}" if self.copies else ""
        return f"{_labels(self.shots)} per class: {rows}: {self.verdict}{copies}"


def _labels(shots: int) -> str:
    return f"{shots} label{'s' if shots > 1 else ''}"


def _copies(count: int) -> str:
    return f"test images that are near-duplicates of train images: {count:,}"


def measure_outcome(probe: OnlineProbe, encoder: Encoder) -> Outcome | None:
    """Return how many test images few labels classify, compared with the start of the run and with raw pixels: "5
    labels per class: 61.0 ± 2.0 %, start 58.0 ± 2.0 %, raw pixels 39.0 ± 3.0 %: helped by 3.0 ± 1.5 points".

    Numbers are means and standard deviations over 50 choices of the labels, which are the same for every row, and for
    every run on the same images. A difference counts if its mean is larger than its standard deviation; with fewer
    than 50 test images there is no verdict. None if a class has a single train image.
    """
    smallest = int(labels_of(probe.sampled[0]).bincount(minlength=probe.num_classes).min())
    shots = min(SHOTS, smallest - 1)
    if shots < 1:
        return None
    scores: dict[str, NDArray[np.float64]] = {}
    copies = 0
    for features in _features(probe, encoder):
        scores[features.name] = _scores(features, probe.num_classes, shots)
        if features.name == RAW_PIXELS:
            copies = count_copies(features, encoder.spec.channels)
    accuracies = {name: (float(values.mean()), float(values.std())) for name, values in scores.items()}
    own = scores.pop("encoder")
    differences = {name: 100 * (own - other) for name, other in scores.items()}
    (start, difference), *others = differences.items()
    better = [f"but {name} are better by {_points(-d)}" for name, d in others if -d.mean() > d.std()]
    is_clear = abs(difference.mean()) > difference.std()
    if not is_clear:
        verdict = f"no clear difference from {start} ({_points(difference)})"
    else:
        verdict = f"helped by {_points(difference)}" if difference.mean() > 0 else f"hurt by {_points(-difference)}"
    if (count := len(probe.sampled[1])) < MIN_TEST_IMAGES:
        return Outcome("note", shots, accuracies, f"no verdict, because {count} test images are too few", copies)
    is_worse = better or (is_clear and difference.mean() < 0)
    level: Literal["ok", "note", "warning"] = "warning" if is_worse else "ok" if is_clear else "note"
    return Outcome(level, shots, accuracies, ", ".join([verdict, *better]), copies)


def count_copies(pixels: Features, channels: int) -> int:
    """Return how many test images are near-duplicates of a train image, by thumbnails of the raw pixels, which are
    those of square images. 0 for images of few pixels, which are alike without being copies."""
    side = math.isqrt(pixels.train.shape[1] // channels)
    if side < MIN_SIDE:
        return 0
    train, test = (
        standardized([thumbnails(rows.view(-1, channels, side, side))], len(rows)).float()
        for rows in (pixels.train, pixels.test)
    )
    nearest = torch.cat([(block @ train.T).amax(dim=1) for block in torch.split(test, BATCH)])
    return int((nearest >= CORRELATION).sum())


def _points(difference: NDArray[np.float64]) -> str:
    return f"{difference.mean():.1f} ± {difference.std():.1f} points"


def log_outcome(probe: OnlineProbe, encoder: Encoder, run: Path) -> None:
    """Log the outcome of a run, and write it to outcome.json for the report. Images that cannot be read do not fail the
    run, which has ended."""
    try:
        outcome = measure_outcome(probe, encoder)
    except InputError as error:
        logger.info(f"the outcome of the run is not measured: {error}")
        return
    if outcome is not None:
        logger.info(str(outcome))
        with atomic_write(run / OUTCOME_FILE) as path:
            path.write_text(json.dumps(asdict(outcome), indent=2) + "\n")


def read_outcome(values: dict[str, Any]) -> Outcome | None:
    """Return the outcome of the contents of outcome.json; None if they are none."""
    try:
        rows = {str(name): (float(mean), float(std)) for name, (mean, std) in values["accuracies"].items()}
        return Outcome(values["level"], int(values["shots"]), rows, str(values["verdict"]), int(values["copies"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _features(probe: OnlineProbe, encoder: Encoder) -> Iterator[Features]:
    pixel_format, workers = pixel_format_of(encoder), probe.workers
    splits = [in_memory(dataset, pixel_format) for dataset in probe.sampled]
    for name, other in {"encoder": encoder, **find_baseline(encoder)}.items():
        extracted = [extract(dataset, other, workers, name) for dataset in splits]
        yield _with_labels(name, splits, extracted)
    extracted = [raw_pixels(dataset, pixel_format, workers, SINGLE_PROCESS) for dataset in splits]
    yield _with_labels(RAW_PIXELS, splits, extracted)


def _with_labels(name: str, splits: Sequence[ImageDataset], extracted: Sequence[tuple[Tensor, Tensor]]) -> Features:
    train, test = (with_labels(d, *e, SINGLE_PROCESS) for d, e in zip(splits, extracted, strict=True))
    return Features(name, *train, *test)


def _scores(features: Features, classes: int, shots: int) -> NDArray[np.float64]:
    return class_mean_scores(features, classes, shots, TRIALS, seed=0)["top-1"]
