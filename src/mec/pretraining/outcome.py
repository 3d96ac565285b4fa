"""Did a run help? One sentence at its end, where the images have labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mec.data.dataset import ImageDataset
from mec.distributed import SINGLE_PROCESS
from mec.embedding.extract import extract, in_memory, labels_of, pixel_format_of, with_labels
from mec.errors import InputError
from mec.evaluate.few_shot import class_mean_scores
from mec.evaluate.task import Features, raw_pixels
from mec.models.baseline import find_baseline
from mec.models.encoder import Encoder
from mec.pretraining.online_probe import OnlineProbe

logger = logging.getLogger("mec")
SHOTS, TRIALS = 5, 50


def describe_outcome(probe: OnlineProbe, encoder: Encoder) -> str | None:
    """Return how many test images few labels classify, compared with the start of the run and with raw pixels: "5
    labels per class: 61.0 ± 2.0 %, start 58.0 ± 2.0 %, raw pixels 39.0 ± 3.0 %: helped by 3.0 ± 1.5 points".

    Numbers are means and standard deviations over 50 choices of the labels, which are the same for every row, and for
    every run on the same images. A difference counts if its mean is larger than its standard deviation. None if a class
    has a single train image.
    """
    smallest = int(labels_of(probe.sampled[0]).bincount(minlength=probe.num_classes).min())
    shots = min(SHOTS, smallest - 1)
    if shots < 1:
        return None
    scores = {f.name: _scores(f, probe.num_classes, shots) for f in _features(probe, encoder)}
    own = scores.pop("encoder")
    differences = {name: 100 * (own - other) for name, other in scores.items()}
    first, *others = differences.items()
    verdicts = [_verdict(*first)]
    verdicts += [f"but {name} are better by {_points(-d)}" for name, d in others if -d.mean() > d.std()]
    rows = ", ".join([_percent(own), *(f"{name} {_percent(values)}" for name, values in scores.items())])
    return f"{shots} label{'s' if shots > 1 else ''} per class: {rows}: {', '.join(verdicts)}"


def _verdict(name: str, difference: NDArray[np.float64]) -> str:
    if abs(difference.mean()) <= difference.std():
        return f"no clear difference from {name} ({_points(difference)})"
    return f"helped by {_points(difference)}" if difference.mean() > 0 else f"hurt by {_points(-difference)}"


def _points(difference: NDArray[np.float64]) -> str:
    return f"{difference.mean():.1f} ± {difference.std():.1f} points"


def log_outcome(probe: OnlineProbe, encoder: Encoder) -> None:
    """Log the outcome of a run. Images that cannot be read do not fail the run, which has ended."""
    try:
        outcome = describe_outcome(probe, encoder)
    except InputError as error:
        outcome = f"the outcome of the run is not measured: {error}"
    if outcome is not None:
        logger.info(outcome)


def _features(probe: OnlineProbe, encoder: Encoder) -> Iterator[Features]:
    pixel_format, workers = pixel_format_of(encoder), probe.workers
    splits = [in_memory(dataset, pixel_format) for dataset in probe.sampled]
    for name, other in {"encoder": encoder, **find_baseline(encoder)}.items():
        extracted = [extract(dataset, other, workers, name) for dataset in splits]
        yield _with_labels(name, splits, extracted)
    extracted = [raw_pixels(dataset, pixel_format, workers, SINGLE_PROCESS) for dataset in splits]
    yield _with_labels("raw pixels", splits, extracted)


def _with_labels(name: str, splits: Sequence[ImageDataset], extracted: Sequence[tuple[Tensor, Tensor]]) -> Features:
    train, test = (with_labels(d, *e, SINGLE_PROCESS) for d, e in zip(splits, extracted, strict=True))
    return Features(name, *train, *test)


def _scores(features: Features, classes: int, shots: int) -> NDArray[np.float64]:
    return class_mean_scores(features, classes, shots, TRIALS, seed=0)["top-1"]


def _percent(values: NDArray[np.float64]) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std():.1f} %"
