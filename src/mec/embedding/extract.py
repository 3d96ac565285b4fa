"""Extract features of a frozen encoder for every image of a dataset, in one process or several."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mec.data.analysis import infer_pixel_format, load_into_memory, sample_images
from mec.data.corrupt import CorruptLog, merge_corrupt_logs
from mec.data.dataset import DataLike, ImageDataset, data_name
from mec.data.loaders import evaluation_loader, training_loader
from mec.data.pixels import PixelFormat
from mec.data.transforms import ViewSettings
from mec.data.transforms.crop import Batch
from mec.data.transforms.multi_view import MultiView
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

BATCH = 256  # images embedded at once
CROP = ViewSettings(crop_scale=(0.08, 1.0), color_jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
"""RandomResizedCrop and flip with torchvision's defaults, on which the published protocols train classifiers."""
MAX_CORRUPT = 0.05  # fraction of corrupt images above which an evaluation ends with an error
MAX_RAM_BYTES = 4 * 2**30  # size of a feature table above which it is mapped from a temporary file
MOVED_ROWS = 8192


def best_device() -> torch.device:
    """Return the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pixel_format_of(encoder: Encoder) -> PixelFormat:
    """Return the pixel format that the encoder was trained on."""
    return PixelFormat(encoder.spec.channels, encoder.spec.value_range, encoder.spec.background)


def check_channels(dataset: ImageDataset, encoder: Encoder, data: DataLike) -> None:
    """Raise InputError if the images cannot be converted to the channels of the encoder."""
    expected = encoder.spec.channels
    name = data_name(data)
    channels = next(sample_images(dataset, 8, lambda opened: opened.raw(pixel_format_of(encoder)))).shape[2]
    if channels not in (expected, 1) and (channels, expected) != (3, 1):  # color to gray and gray to color convert
        raise InputError(
            f"encoder: {encoder.description} takes {expected} channels, the images of {name} have {channels}"
        )


def with_value_range(encoder: Encoder, dataset: ImageDataset, data: DataLike) -> Encoder:
    """Return the encoder with the value range of images of more than 8 bits if it was not trained on such images.

    Without a range their values would be scaled by that of their type: images of 12 bits in 16 would be almost black.
    The given encoder is not changed.
    """
    if encoder.spec.value_range is not None or not len(dataset):
        return encoder
    value_range = infer_pixel_format(dataset, encoder.spec.channels, encoder.spec.background).value_range
    if value_range is None:
        return encoder
    low, high = value_range
    logger.info(
        f"{data_name(data)}: values {low:g} to {high:g}, of a sample, are scaled to the 8-bit range of the encoder"
    )
    adapted = copy.copy(encoder)
    adapted.spec = replace(encoder.spec, value_range=value_range)
    return adapted


def in_memory(dataset: ImageDataset, pixel_format: PixelFormat, group: ProcessGroup = SINGLE_PROCESS) -> ImageDataset:
    """Decode this process's slice of small images into memory, without the corrupt ones, which are logged."""
    corrupt_log = new_corrupt_log(len(dataset), group)
    if group.world_size > 1:
        dataset = dataset.subset(np.arange(len(dataset))[group.slice(len(dataset), BATCH)])
    try:
        decoded, corrupt = load_into_memory(dataset, pixel_format) if len(dataset) else (dataset, [])
    except InputError:  # every image is corrupt: an error, unless other processes have readable ones
        if group.world_size == 1:
            raise
        decoded, corrupt = dataset, []
    corrupt_log.add(corrupt, len(dataset))
    log_corrupt(corrupt_log, group)
    return decoded


def new_corrupt_log(num_images: int, group: ProcessGroup) -> CorruptLog:
    """Return an empty log for ``num_images``, which one process or several read."""
    corrupt_log = CorruptLog(MAX_CORRUPT, num_images)
    if group.world_size > 1:
        # one process may read all corrupt images: the limit is a fraction of all images, not of this process's slice
        corrupt_log.add([], num_images)
    return corrupt_log


def log_corrupt(corrupt_log: CorruptLog, group: ProcessGroup = SINGLE_PROCESS) -> None:
    """Join the logs of all processes, and log the number of corrupt images; raise InputError if there are too many."""
    merge_corrupt_logs(corrupt_log, group)
    reasons = corrupt_log.reasons
    if reasons:
        title, reason = next(iter(reasons.items()))
        plural = "s" if len(reasons) > 1 else ""
        text = f"skipped {len(reasons):,} corrupt image{plural}; the first: {title}: {reason}"
        logger.warning(text, extra={"once": True})


def extract(
    dataset: ImageDataset,
    encoder: Encoder,
    workers: int | None = None,
    label: str = "features",
    device: torch.device | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Return features (n, d) float32 on the CPU of every readable image, and the indices (n,) of these, ascending.

    ``dataset`` is this process's slice of the images of ``group``; ``with_labels`` joins the slices. Features above
    4 GiB are mapped from a temporary file.
    """
    loader = evaluation_loader(dataset, pixel_format_of(encoder), encoder.image_size, BATCH, workers)
    return apply_to_images(dataset, loader, label, feature_function(encoder, device or best_device()), group)


def extract_crops(
    dataset: ImageDataset,
    encoder: Encoder,
    seed: int,
    workers: int | None = None,
    label: str = "features",
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Return features (n, d) of a random crop and flip of each labeled image, and labels (n,); rank 0 gets all rows."""
    views, pixel_format, device = MultiView(encoder.image_size, [CROP], seed), pixel_format_of(encoder), best_device()
    features = feature_function(encoder, device)
    own = group.slice(len(dataset), BATCH)
    corrupt_log = new_corrupt_log(len(dataset), group)
    # keyed by the index in the whole dataset: the crops do not depend on the number of processes
    keys = [[(0, i) for i in range(s, min(s + BATCH, own.stop))] for s in range(own.start, own.stop, BATCH)]
    loader = training_loader(dataset, views, keys, pixel_format, device, workers)
    table = feature_table(own.stop - own.start, encoder.num_features, torch.float32)
    sources = torch.empty(len(table), dtype=torch.int64)
    with ProgressBar(label, len(dataset)) as progress:
        for batch in loader:
            corrupt_log.add(batch.corrupt, len(batch.indices))
            (x,) = views(batch.images, batch.indices, batch.epoch)
            rows = torch.from_numpy(batch.indices) - own.start
            table[rows], sources[rows] = features(x).cpu(), torch.from_numpy(batch.source_indices)
            progress.advance(len(x) * group.world_size)
    log_corrupt(corrupt_log, group)
    return with_labels(dataset, table, sources, group)


def with_labels(dataset: ImageDataset, features: Tensor, indices: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return features (n, d) of the images ``indices`` (n,) and their labels; rank 0 gets those of all processes."""
    labels = labels_of(dataset)[indices, None]
    features = group.gather_rows(features, lambda n, d: feature_table(n, d, torch.float32))
    return features, group.gather_rows(labels, lambda n, d: torch.empty(n, d, dtype=torch.int64))[:, 0]


def labels_of(dataset: ImageDataset) -> Tensor:
    """Return the labels (n,) of a labeled dataset as a tensor."""
    assert dataset.labels is not None
    return torch.from_numpy(np.asarray(dataset.labels))


def feature_function(encoder: Encoder, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the frozen encoder on ``device`` as a function: images (n, c, s, s) -> features (n, d) float32."""
    encoder = encoder.eval().to(device).to(memory_format=encoder.memory_format)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        x = encoder.normalize(images.to(device, non_blocking=True))
        output: Tensor = encoder(x.contiguous(memory_format=encoder.memory_format))
        return output.float()

    return features


@torch.no_grad()
def apply_to_images(
    dataset: ImageDataset,
    loader: Iterable[Batch],
    label: str,
    function: Callable[[Tensor], Tensor],
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Tensor, Tensor]:
    """Return outputs (n, ...) of ``function`` and indices (n,) of the readable images, on the CPU, in dataset order."""
    corrupt_log = new_corrupt_log(sum(group.all_gather(len(dataset))), group)
    table: Tensor | None = None
    readable = torch.zeros(len(dataset), dtype=torch.bool)
    with ProgressBar(label, corrupt_log.num_images) as progress:
        for batch in loader:
            corrupt_log.add(batch.corrupt, len(batch.indices) + len(batch.corrupt))
            if len(batch.indices):
                outputs, indices = function(batch.images).cpu(), torch.from_numpy(batch.indices)
                if table is None:
                    table = feature_table(len(dataset), outputs.shape[1], outputs.dtype)
                table[indices], readable[indices] = outputs, True
            # assumes that the other processes are about as far
            progress.advance((len(batch.indices) + len(batch.corrupt)) * group.world_size)
    log_corrupt(corrupt_log, group)
    if table is None:  # no readable image in this process's slice
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    indices = readable.nonzero()[:, 0]
    if len(indices) < len(dataset):
        for start in range(0, len(indices), MOVED_ROWS):  # close the gaps in place
            rows = indices[start : start + MOVED_ROWS]
            table[start : start + len(rows)] = table[rows]
    return table[: len(indices)], indices


def feature_table(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Allocate a table (rows, width): in memory, or if large mapped from a temporary file that is deleted with it."""
    size = dtype.itemsize * rows * width
    if size <= MAX_RAM_BYTES or dtype != torch.float32:
        return torch.empty(rows, width, dtype=dtype)
    with tempfile.TemporaryFile(prefix="mec-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                # reserve the space: writing to a full disk through a memory map would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(rows, width)))
        except OSError as error:
            raise InputError(
                f"TMPDIR: {tempfile.gettempdir()} has no room for {size / 2**30:.0f} GiB of features ({error.strerror})"
            ) from error
