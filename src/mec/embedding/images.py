"""Images of an evaluation: small ones decoded once into memory, corrupt ones counted over all processes."""

from __future__ import annotations

import logging

import numpy as np

from mec.data.analysis import load_into_memory, sample_images
from mec.data.corrupt import CorruptImage, CorruptLog
from mec.data.dataset import DataLike, ImageDataset
from mec.data.pixels import PixelFormat
from mec.distributed import SINGLE_PROCESS, ProcessGroup
from mec.errors import InputError
from mec.models.encoder import Encoder

logger = logging.getLogger("mec")

MAX_CORRUPT = 0.05
"""Fraction of corrupt images above which an evaluation ends with an error."""
BATCH = 256
"""Images embedded at once."""


def pixel_format_of(encoder: Encoder) -> PixelFormat:
    """Return the pixel format that the encoder was trained on."""
    return PixelFormat(encoder.spec.channels, encoder.spec.value_range, encoder.spec.background)


def check_channels(dataset: ImageDataset, encoder: Encoder, data: DataLike) -> None:
    """Raise InputError if the images cannot be converted to the channels of the encoder."""
    expected = encoder.spec.channels
    channels = next(sample_images(dataset, 8, lambda opened: opened.raw(pixel_format_of(encoder)))).shape[2]
    if channels not in (expected, 1) and (channels, expected) != (3, 1):  # color to gray and gray to color convert
        raise InputError(
            f"encoder: {encoder.description} takes {expected} channels, the images of {data} have {channels}"
        )


def in_memory(dataset: ImageDataset, pixel_format: PixelFormat, group: ProcessGroup = SINGLE_PROCESS) -> ImageDataset:
    """Decode small images into memory and report corrupt ones, which the returned dataset no longer contains.

    Args:
        dataset: images of any size; large ones stay where they are.
        pixel_format: format of the decoded images.
        group: processes of which each keeps its slice of the images.
    """
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
    log_corrupt(merge_corrupt_logs(corrupt_log, group))
    return decoded


def new_corrupt_log(num_images: int, group: ProcessGroup) -> CorruptLog:
    """Return an empty log for ``num_images``, which one process or several read."""
    corrupt_log = CorruptLog(MAX_CORRUPT, num_images)
    if group.world_size > 1:
        # one process may read all corrupt images: the limit is a fraction of all images, not of this process's slice
        corrupt_log.add([], num_images)
    return corrupt_log


def merge_corrupt_logs(corrupt_log: CorruptLog, group: ProcessGroup) -> CorruptLog:
    """Add the corrupt images of all processes to the log of each. Raises InputError if there are too many in total."""
    if group.world_size > 1:
        for reasons in group.all_gather(corrupt_log.reasons):
            corrupt_log.add([CorruptImage(*item) for item in reasons.items()], corrupt_log.num_images)
    return corrupt_log


def log_corrupt(corrupt_log: CorruptLog) -> None:
    """Log the number of corrupt images and the first of them."""
    if len(corrupt_log):
        title, reason = next(iter(corrupt_log.reasons.items()))
        plural = "s" if len(corrupt_log) > 1 else ""
        logger.info(f"skipped {len(corrupt_log):,} corrupt image{plural}; the first: {title}: {reason}")
