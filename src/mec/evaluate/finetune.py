"""Semi-supervised classification: finetune the whole network on a fraction of the labels."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mec.data.dataset import DataLike, ImageDataset
from mec.data.rng import Stream, uniforms
from mec.embedding.extract import in_memory
from mec.errors import InputError
from mec.evaluate.supervised import Settings, overridden, protocol_settings, train_and_test, training_folder
from mec.evaluate.task import log_encoder, open_task
from mec.models.encoder import EncoderLike
from mec.results import Protocol, Result, mean_metrics
from mec.text_files import TextError, read_lines

MAX_LOW_FRACTION = 0.03
"""Up to this fraction of the labels SwAV's settings for 1 % apply, beyond it those for 10 %."""
# eval_semisup.py and README of SwAV; evaluate.py and README of Barlow Twins, which has one recipe
SWAV = {
    "1%": Settings(20, 256, head_lr=5.0, backbone_lr=0.02, schedule="steps"),
    "10%": Settings(20, 256, head_lr=0.2, backbone_lr=0.01, schedule="steps"),
}
BARLOW = Settings(20, 256, head_lr=0.5, backbone_lr=0.005)
Indices = NDArray[np.int64]
SHORT_STEPS, SHORT_BATCH, MIN_EPOCHS, MAX_EPOCHS = 1000, 64, 20, 200


def finetune(
    data: DataLike,
    encoder: EncoderLike,
    label_fraction: float | None = None,
    shots: int | None = None,
    label_list: str | None = None,
    protocol: Literal["short", "swav", "barlow"] = "short",
    trials: int = 3,
    seed: int = 0,
    baselines: bool | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    backbone_lr: float | None = None,
    head_lr: float | None = None,
    workers: int | None = None,
    labels_csv: str | None = None,
    out: str | None = None,
    resume: bool = False,
) -> Result:
    """Finetune the encoder with a classifier on some of the labels: mean and standard deviation over trials.

    swav: 20 epochs, batch 256, SGD, all learning rates divided by 5 after 12 and 16 epochs; (backbone, head) 0.02 and 5
    up to 3 % of the labels, 0.01 and 0.2 beyond. barlow: 20 epochs, batch 256, cosine by epoch, 0.005 and 0.5. Both are
    made for the 12,811 and 128,116 labels of ImageNet. short, for any number: learning rates and schedule of barlow,
    batch 64, and as many epochs as 1,000 steps take, between 20 and 200.
    All train with RandomResizedCrop and flips, without weight decay, and test the last epoch on central crops.

    Args:
        data: labeled dataset (see ``mec.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        label_fraction: fraction of the labels of each class, at least one image; null, without shots and label_list:
            0.1.
        shots: labels of each class, in place of a fraction.
        label_list: text file that names a labeled image per line, by its path or the end of it (SimCLR's ImageNet
            lists), in place of a fraction.
        protocol: short, swav or barlow.
        trials: trainings, each with another choice of labels, classifier and order.
        seed: seed of the first trial.
        baselines: also finetune the untrained encoder; null: only if there are at most 100,000 train
            images.
        epochs: number of epochs, in place of the protocol's.
        batch_size: images in a step, in place of the protocol's; learning rates are scaled by batch / 256.
        backbone_lr: learning rate of the encoder for a batch of 256, in place of the protocol's.
        head_lr: learning rate of the classifier for a batch of 256, in place of the protocol's.
        workers: loader processes; null: one per core.
        labels_csv: .csv with columns path and label for the images of a folder, in place of its sub-folders.
        out: folder for the checkpoints of the trainings, deleted at the end; null: none are saved.
        resume: continue the trainings in ``out``.
    """
    if protocol not in ("short", "swav", "barlow"):
        raise InputError(f"protocol: expected short, swav or barlow, got {protocol!r}")
    if trials < 1:
        raise InputError(f"trials: expected at least 1, got {trials}")
    changes = {"epochs": epochs, "batch_size": batch_size, "backbone_lr": backbone_lr, "head_lr": head_lr}
    overridden(BARLOW, **changes)  # refuse bad values before anything is read
    if backbone_lr == 0:
        raise InputError("backbone_lr: expected above 0; for a frozen encoder use mec evaluate linear")
    if label_fraction is None and shots is None and label_list is None:
        label_fraction = 0.1
    task = open_task(data, encoder, baselines, workers, labels_csv)
    subsets = [
        label_subset(task.train, trial_seed, label_fraction, shots, label_list)
        for trial_seed in range(seed, seed + trials)
    ]
    settings = overridden(_settings(protocol, len(subsets[0]), len(task.train)), **changes)
    details = {
        "labels": len(subsets[0]),
        "label_fraction": label_fraction,
        "shots": shots,
        "label_list": None if label_list is None else Path(label_list).name,
        **protocol_settings(settings, len(subsets[0])),
        "seed": seed,
        "trials": trials,
    }
    log_encoder(task)
    accuracy: dict[str, list[dict[str, float]]] = {name: [] for name in task.encoders}
    with training_folder(out, {"task": "finetune", **task.identity(), **details}, resume) as folder:
        task = task.with_test_in_memory()
        for trial_seed, subset in enumerate(subsets, seed):
            train = in_memory(task.train.subset(subset), task.pixel_format)
            for name, row_encoder in task.encoders.items():
                label = f"{name}, seed {trial_seed}" if trials > 1 else name
                trial_folder = folder and folder / f"{name}-{trial_seed}"
                result = train_and_test(task, train, row_encoder, settings, trial_seed, label, trial_folder)
                accuracy[name].append(result)
    rows = {name: mean_metrics(trials) for name, trials in accuracy.items()}
    return task.result("finetune", Protocol(f"finetune-{protocol}", details), rows)


def _settings(protocol: str, num_labeled: int, num_train: int) -> Settings:
    if protocol == "swav":
        return SWAV["1%" if num_labeled <= MAX_LOW_FRACTION * num_train else "10%"]
    if protocol == "barlow":
        return BARLOW
    steps_per_epoch = max(1, -(-num_labeled // SHORT_BATCH))
    epochs = max(MIN_EPOCHS, min(MAX_EPOCHS, round(SHORT_STEPS / steps_per_epoch)))
    return replace(BARLOW, batch_size=SHORT_BATCH, epochs=epochs)


def label_subset(
    dataset: ImageDataset,
    seed: int,
    label_fraction: float | None = None,
    shots: int | None = None,
    label_list: str | os.PathLike[str] | None = None,
) -> Indices:
    """Return the indices (k,) of the train images whose labels are used, ascending; arguments as in ``finetune``.

    Every encoder sees the same images, and those of 1 % are among those of 10 %.
    """
    choices = {"label_fraction": label_fraction, "shots": shots, "label_list": label_list}
    chosen = [name for name, value in choices.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"label_fraction, shots, label_list: expected one of the three, got {' and '.join(chosen)}")
    assert dataset.labels is not None
    labels = np.asarray(dataset.labels)
    if label_list is not None:
        return _from_list(dataset, Path(label_list).expanduser())
    class_sizes = np.bincount(labels)
    if shots is not None:
        if shots < 1:
            raise InputError(f"shots: expected at least 1, got {shots}")
        if shots > class_sizes.min():
            raise InputError(
                f"shots: expected at most {class_sizes.min()}, the train images of the smallest class "
                f"{dataset.classes[class_sizes.argmin()]!r} ({dataset.layout}), got {shots}"
            )
        return _per_class(labels, np.full(len(class_sizes), shots), seed)
    assert label_fraction is not None
    if not 0 < label_fraction <= 1:
        raise InputError(f"label_fraction: expected a number above 0 and up to 1, got {label_fraction:g}")
    return _per_class(labels, np.maximum(1, np.rint(class_sizes * label_fraction)).astype(int), seed)


def _per_class(labels: Indices, counts: Indices, seed: int) -> Indices:
    order = uniforms(seed, 0, np.arange(len(labels)), 1, Stream.LABEL_SUBSET)[:, 0].argsort(kind="stable")
    return np.sort(np.concatenate([order[labels[order] == c][:count] for c, count in enumerate(counts)]))


def _from_list(dataset: ImageDataset, path: Path) -> Indices:
    try:
        names = [line for _, line in read_lines(path)]
    except TextError as error:
        raise InputError(f"label_list: {error}") from error
    if not names:
        raise InputError(f"label_list: {path} is empty")
    max_depth = max(len(Path(name).parts) for name in names)
    matches: dict[str, list[int]] = {name: [] for name in names}
    for index in range(len(dataset)):
        parts = Path(dataset.title(index)).parts
        for depth in range(1, min(max_depth, len(parts)) + 1):
            suffix = str(Path(*parts[-depth:]))
            if suffix in matches:
                matches[suffix].append(index)
    absent = [name for name, indices in matches.items() if not indices]
    if absent:
        raise InputError(
            f"label_list: {path} names {absent[0]}, which is not among the train images "
            f"({len(absent)} of {len(names)} names)"
        )
    ambiguous = next((name for name, indices in matches.items() if len(indices) > 1), None)
    if ambiguous is not None:
        titles = " and ".join(dataset.title(i) for i in matches[ambiguous][:2])
        raise InputError(f"label_list: {ambiguous} in {path} matches {titles}; write more of the path")
    indices = np.unique([index for (index,) in matches.values()])
    assert dataset.labels is not None
    empty = np.setdiff1d(np.arange(len(dataset.classes)), dataset.labels[indices])
    if len(empty):
        raise InputError(f"label_list: {path} names no image of class {dataset.classes[empty[0]]!r}")
    return indices
