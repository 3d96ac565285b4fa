"""``classify``: labels with probabilities for the images of a folder, from a few labeled ones."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mec.classification.fit import Fit, Method, choose_method, fit_classifier, wilson_interval
from mec.data.dataset import DataLike, ImageDataset, data_name, read_image
from mec.data.datasets import open_dataset
from mec.data.datasets.folder import refuse_output_within
from mec.data.image_grid import SIDE, Cell, image_grid
from mec.data.pixels import CorruptImageError, pad_to_square
from mec.data.splits import log_splits
from mec.embedding.extract import check_channels, extract, labels_of, pixel_format_of, with_value_range
from mec.embedding.parts import open_csv, write_output
from mec.errors import InputError
from mec.models.encoder import Encoder, EncoderLike
from mec.models.head import ClassifierHead, load_head, weights_digest
from mec.models.io import load_encoder

logger = logging.getLogger("mec")

COLUMNS = ("path", "label", "probability", "second", "second_probability", "status")
NUM_EXAMPLES = 4
"""Surest and least sure images of each class on the page of examples."""


@dataclass(frozen=True)
class Classification:
    """What ``classify`` found.

    Attributes:
        file: the .csv.
        classes: names of the k classes.
        titles: paths of the n images, without the corrupt ones.
        probabilities: (n, k).
        given: (n,) class numbers of images that are labeled already, -1 for the others.
        fit: the classifier, with its predictions for held-out labeled images; None if a saved one was used.
    """

    file: Path
    classes: list[str]
    titles: list[str]
    probabilities: Tensor
    given: Tensor
    fit: Fit | None


def classify(
    labeled: DataLike,
    unlabeled: DataLike,
    encoder: EncoderLike,
    out: str | os.PathLike[str],
    method: Method | None = None,
    unsure: float = 0.5,
    save: str | os.PathLike[str] | None = None,
    labels_csv: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> Classification:
    """Label all images of a dataset from a few labeled ones, with probabilities, in a .csv.

    Frozen features are classified by the nearest class mean for up to 5 labels per class (median), by logistic
    regression beyond. Held-out labeled images, leave-one-out for up to 100, 10-fold cross-validation beyond, give the
    accuracy, its 95 % interval, and the temperature of the probabilities. STEM.png shows the surest and the least sure
    images of each class.

    Args:
        labeled: the labeled images: a folder with a sub-folder per class, a .csv of path and label, or any other
            labeled dataset (see ``mec.open_dataset``); or a classifier, FILE.safetensors, that was saved with ``save``.
        unlabeled: the images to label. Those that ``labeled`` contains too keep their labels.
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        out: the .csv to write, which must not exist: path, label, probability, the second label and its probability,
            and a status: sure, unsure or given.
        method: nearest-mean or logistic; null: chosen by the number of labels.
        unsure: probability below which a label is unsure.
        save: FILE.safetensors to keep the classifier in, for other images or for ``mec export --head``.
        labels_csv: .csv with columns path and label for the images of the folder ``labeled``, in place of its
            sub-folders.
        workers: loader processes; null: one per core.

    Raises:
        InputError: an argument is invalid, a file exists already, or the images have fewer than two classes.
    """
    out = Path(out).expanduser()
    save = None if save is None else Path(save).expanduser()
    head = _saved_head(labeled)
    _check(out, save, unsure, unlabeled, head)
    encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
    logger.info(f"encoder: {encoder.description}")
    images = open_dataset(unlabeled, "pretrain")
    log_splits(unlabeled, {"unlabeled": images})
    check_channels(images, encoder, unlabeled)
    encoder = with_value_range(encoder, images, unlabeled)
    features, indices = extract(images, encoder, workers, "images to label")
    titles = [images.title(int(index)) for index in indices]
    fit: Fit | None = None
    known: dict[str, int] = {}
    if head is None:
        fit, known = _fit(labeled, labels_csv, encoder, features, method, unsure, workers)
        head = fit.head
        head.encoder = weights_digest(encoder.backbone)
    elif head.encoder != weights_digest(encoder.backbone):
        raise InputError(f"encoder: expected the one that {labeled} was fitted to, got other weights")
    with torch.no_grad():
        probabilities = head(features)
    given = torch.tensor([known.get(os.path.realpath(title), -1) for title in titles], dtype=torch.int64)
    result = Classification(out, head.classes, titles, probabilities, given, fit)
    _write(result, unsure)
    _draw_examples(result, images, indices, encoder)
    if save is not None:
        try:
            head.save(save)
        except OSError as error:
            raise InputError(f"save: {save} cannot be written ({error.strerror or error})") from error
    _log(result, unsure, save)
    return result


def _saved_head(labeled: DataLike) -> ClassifierHead | None:
    is_file = isinstance(labeled, str | os.PathLike) and str(labeled).endswith(".safetensors")
    return load_head(labeled) if is_file else None  # type: ignore[arg-type]


def _check(out: Path, save: Path | None, unsure: float, unlabeled: DataLike, head: ClassifierHead | None) -> None:
    if out.suffix.lower() != ".csv":
        raise InputError(f"out: expected a name that ends with .csv, got {out}")
    if save is not None and save.suffix != ".safetensors":
        raise InputError(f"save: expected a name that ends with .safetensors, got {save}")
    if save is not None and head is not None:
        raise InputError(f"save: expected none with a classifier that is saved already, got {save}")
    for name, path in (("out", out), ("out", out.with_suffix(".png")), ("save", save)):
        if path is not None and path.exists():
            raise InputError(f"{name}: expected a new file, got {path}, which exists")
    if not 0 <= unsure <= 1:
        raise InputError(f"unsure: expected a probability in [0, 1], got {unsure}")
    refuse_output_within(unlabeled, out.with_suffix(".png"))


def _fit(
    labeled: DataLike,
    labels_csv: str | os.PathLike[str] | None,
    encoder: Encoder,
    unlabeled: Tensor,
    method: Method | None,
    unsure: float,
    workers: int | None,
) -> tuple[Fit, dict[str, int]]:
    """Return the classifier, and the class numbers of the labeled images by absolute path."""
    dataset = open_dataset(labeled, "all", labels_csv)
    log_splits(labeled, {"labeled": dataset})
    name = data_name(labeled)
    if dataset.labels is None:
        raise InputError(f"labeled: expected labels in {name}: a sub-folder per class, or a .csv of path and label")
    dataset = dataset.subset(np.flatnonzero(np.asarray(dataset.labels) >= 0))
    check_channels(dataset, encoder, labeled)
    features, indices = extract(dataset, encoder, workers, "labeled images")
    numbers = labels_of(dataset)[indices]
    present = numbers.bincount().nonzero()[:, 0].tolist()
    if len(present) < 2:
        raise InputError(f"labeled: expected images of at least 2 classes in {name}, got {len(present)}")
    classes = [dataset.classes[number] for number in present]
    labels = torch.searchsorted(torch.tensor(present), numbers)
    chosen = method or choose_method(labels)
    counts = [f"{count:,}" for count in sorted({*labels.bincount().tolist()})]
    each = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = "nearest class mean" if chosen == "nearest-mean" else "logistic regression"
    logger.info(f"{title} of {len(labels):,} labeled images of {len(classes)} classes ({each} per class)")
    fit = fit_classifier(features, labels, classes, unlabeled, chosen)
    _log_held_out(fit, labels, unsure)
    titles = (dataset.title(int(index)) for index in indices)
    return fit, {os.path.realpath(title): int(label) for title, label in zip(titles, labels, strict=True)}


def _log_held_out(fit: Fit, labels: Tensor, unsure: float) -> None:
    total = len(fit.held_out)
    if not total:
        logger.warning("one label per class: accuracy cannot be estimated, and probabilities are not calibrated")
        return
    values, predicted = fit.probabilities.max(dim=1)
    is_correct = predicted == labels[fit.held_out]
    low, high = wilson_interval(int(is_correct.sum()), total)
    is_sure = values >= unsure
    sure = f"; {int(is_sure.sum()):,} of them are sure (probability of at least {unsure:g})"
    sure += f", of which {100 * float(is_correct[is_sure].double().mean()):.1f} % are right" if is_sure.any() else ""
    logger.info(
        f"{fit.protocol} accuracy {100 * float(is_correct.double().mean()):.1f} % (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %) of {total:,} labeled images{sure}"
    )


def _status(result: Classification, unsure: float) -> list[str]:
    values = result.probabilities.max(dim=1).values
    return [
        "given" if given >= 0 else "sure" if value >= unsure else "unsure"
        for given, value in zip(result.given.tolist(), values.tolist(), strict=True)
    ]


def _labels(result: Classification) -> tuple[Tensor, Tensor]:
    """Return the class numbers (n,) and probabilities (n,) of the labels: given ones have probability 1."""
    values, predicted = result.probabilities.max(dim=1)
    is_given = result.given >= 0
    return torch.where(is_given, result.given, predicted), torch.where(is_given, 1.0, values)


def _write(result: Classification, unsure: float) -> None:
    labels, values = _labels(result)
    others = result.probabilities.scatter(1, labels[:, None], -1.0)
    seconds, second_labels = others.max(dim=1)
    seconds = torch.where(result.given >= 0, 0.0, seconds)
    rows = zip(
        result.titles,
        (result.classes[label] for label in labels.tolist()),
        (f"{value:.4f}" for value in values.tolist()),
        (result.classes[label] for label in second_labels.tolist()),
        (f"{value:.4f}" for value in seconds.tolist()),
        _status(result, unsure),
        strict=True,
    )
    with write_output(result.file) as temporary, open_csv(temporary) as add:
        add(COLUMNS)
        for row in rows:
            add(row)


def _draw_examples(result: Classification, images: ImageDataset, indices: Tensor, encoder: Encoder) -> None:
    """Draw a row for each class: the surest and the least sure images."""
    labels, _ = _labels(result)
    cells = []
    for number, name in enumerate(result.classes):
        rows = ((labels == number) & (result.given < 0)).nonzero()[:, 0]
        order = rows[result.probabilities[rows, number].argsort(descending=True, stable=True)].tolist()
        shown = order if len(order) <= 2 * NUM_EXAMPLES else order[:NUM_EXAMPLES] + order[-NUM_EXAMPLES:]
        squares = [_square(images, int(indices[row]), encoder) for row in shown]
        # a row has the width of the first one, which must be the widest
        squares += [Image.new("RGB", (SIDE, SIDE), "white")] * (2 * NUM_EXAMPLES - len(shown))
        captions = [f"{100 * result.probabilities[row, number]:.0f} %" for row in shown]
        cells.append(Cell(f"{name}: {len(order):,} images, the surest and the least sure", squares, captions))
    with write_output(result.file.with_suffix(".png")) as temporary:
        image_grid(cells, 1).save(temporary, format="PNG")


def _square(images: ImageDataset, index: int, encoder: Encoder) -> Image.Image:
    try:
        return pad_to_square(read_image(images, index, pixel_format_of(encoder)), SIDE)
    except CorruptImageError:  # it has changed since its features were extracted
        return Image.new("RGB", (SIDE, SIDE), "white")


def _log(result: Classification, unsure: float, save: Path | None) -> None:
    status = _status(result, unsure)
    counts = {name: status.count(name) for name in ("sure", "unsure", "given")}
    logger.info(
        f"{counts['sure'] + counts['unsure']:,} images labeled, {counts['unsure']:,} of them unsure (probability below "
        f"{unsure:g}); {counts['given']:,} had a label; {result.file.with_suffix('.png')} shows examples"
    )
    if save is not None:
        logger.info(f"classifier saved as {save}")
