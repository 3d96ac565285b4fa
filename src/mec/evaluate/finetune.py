"""Semi-supervised classification: the whole network is trained further with few labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from mec.errors import InputError
from mec.evaluate.accuracy import spread_of
from mec.evaluate.label_subset import labeled
from mec.evaluate.supervised import Settings, in_words, overridden, train_and_test
from mec.evaluate.task import EncoderLike, Source, in_memory, log_encoder, open_task, pixel_format_of
from mec.results import Result, Stopwatch

FEW = 0.03
"""Up to this share of labels the recipe for 1 % is taken, beyond it that for 10 %."""
# eval_semisup.py and README of SwAV; evaluate.py and README of Barlow Twins, which has one recipe
SWAV = {
    "1%": Settings(20, 256, head_lr=5.0, backbone_lr=0.02, schedule="steps"),
    "10%": Settings(20, 256, head_lr=0.2, backbone_lr=0.01, schedule="steps"),
}
BARLOW = Settings(20, 256, head_lr=0.5, backbone_lr=0.005)
STEPS, SMALL_BATCH, MOST_EPOCHS = 1000, 64, 200


def finetune(
    data: Source,
    encoder: EncoderLike,
    labels: str = "10%",
    protocol: Literal["short", "swav", "barlow"] = "short",
    seeds: int = 3,
    seed: int = 0,
    baselines: bool | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    backbone_lr: float | None = None,
    head_lr: float | None = None,
    workers: int | None = None,
) -> Result:
    """Train the encoder and a classifier on it with some of the labels: mean and spread over seeds.

    swav: 20 epochs of batch 256, SGD, all rates divided by 5 after 12 and 16 epochs; (backbone, head) 0.02 and 5 up to
    3 % of the labels, 0.01 and 0.2 beyond. barlow: 20 epochs of batch 256, cosine by epoch, 0.005 and 0.5. Both are
    made for ImageNet's 12,811 and 128,116 images. short, for any number: barlow's rates and schedule, batch 64, and
    as many epochs as 1,000 steps take, between 20 and 200.
    All train with RandomResizedCrop and flips, without weight decay, and measure the last epoch on central crops.

    Args:
        data: a labeled source (see ``mec.data.open_dataset``).
        encoder: an Encoder, a run folder, a file of weights or a timm name.
        labels: 1%, 10%, 100% ... of each class, at least one image; a number of images of each class; or a
            list file with the path, or its end, of an image a line (SimCLR's ImageNet lists).
        protocol: short, swav or barlow.
        seeds: how many times, each with another choice of labels, classifier and order.
        seed: the first of them.
        baselines: train the untrained encoder in the same way too; null: up to 100,000 train images.
        epochs: in place of the protocol's.
        batch_size: in place of the protocol's; learning rates are scaled by batch / 256.
        backbone_lr: learning rate of the encoder for a batch of 256, in place of the protocol's.
        head_lr: that of the classifier.
        workers: loader processes; null is one per core.
    """
    labels = str(labels)
    if protocol not in ("short", "swav", "barlow"):
        raise InputError(f"protocol: expected short, swav or barlow, got {protocol!r}")
    if seeds < 1:
        raise InputError(f"seeds: expected at least 1, got {seeds}")
    changes = {"epochs": epochs, "batch_size": batch_size, "backbone_lr": backbone_lr, "head_lr": head_lr}
    overridden(BARLOW, **changes)  # what is wrong with them is said before anything is read
    if backbone_lr == 0:
        raise InputError("backbone_lr: expected above 0; for a frozen encoder take mec evaluate linear")
    clock = Stopwatch()
    task = open_task(data, encoder, baselines, workers)
    choices = [labeled(task.train, labels, number) for number in range(seed, seed + seeds)]
    log_encoder(task)
    reading = pixel_format_of(next(iter(task.encoders.values())))
    task = replace(task, test=in_memory(task.test, reading))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in task.encoders}
    for number, chosen in enumerate(choices, seed):
        train = in_memory(task.train.subset(chosen), reading)
        settings = overridden(_settings(protocol, len(chosen), len(task.train)), **changes)
        for name, of in task.encoders.items():
            label = f"{name}, seed {number}" if seeds > 1 else name
            rows[name].append(train_and_test(task, train, of, settings, number, label))
    spread = f"mean ± std of {seeds} seeds" if seeds > 1 else f"seed {seed}"
    shown = f"{labels} per class" if labels.isdigit() else Path(labels).name
    how = in_words(settings, len(chosen))
    return Result(
        task="finetune",
        protocol=f"{len(chosen):,} labeled images ({shown}), {protocol}: {how}, {spread}, %",
        data=task.data,
        encoder=task.encoder,
        figures={name: spread_of(found) for name, found in rows.items()},
        seconds=clock(),
    )


def _settings(protocol: str, images: int, of: int) -> Settings:
    if protocol == "swav":
        return SWAV["1%" if images <= FEW * of else "10%"]
    if protocol == "barlow":
        return BARLOW
    steps_an_epoch = max(1, -(-images // SMALL_BATCH))
    return replace(BARLOW, batch_size=SMALL_BATCH, epochs=max(20, min(MOST_EPOCHS, round(STEPS / steps_an_epoch))))
