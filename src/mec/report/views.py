"""Training views of a few images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mec.data.pixels import resize_longer_side
from mec.errors import InputError
from mec.pretraining.contact_sheet import training_views
from mec.pretraining.run_folder import Run
from mec.report.images import embed_image, printable
from mec.report.inputs import find_data, missing_data, read_sampling
from mec.report.schema import EmbeddedImage, EmbeddedViews, Missing

NUM_IMAGES, NUM_PAIRS = 4, 3
SIDE = 96
"""Longer side of an image in the page, in pixels."""


def embed_views(
    run: Path, data: str | os.PathLike[str] | None, log: Callable[[str], object]
) -> list[EmbeddedViews] | Missing:
    """Return images of the dataset, and the pairs of views that training makes of each in the first epochs.

    Args:
        run: a run folder.
        data: any dataset; None: the one that the run was trained on.
        log: is called with a message before the images are read.

    Raises:
        InputError: ``data`` is given and cannot be opened.
    """
    dataset = find_data(run, data)
    if isinstance(dataset, Missing):
        return dataset
    try:
        recipe = replace(Run(run).recipe(), frame_stride=read_sampling(run, dataset).frame_stride)
    except (InputError, OSError) as error:
        return Missing(f"The run's recipe cannot be read: {error}")
    log(f"views: {NUM_PAIRS} pairs of each of {NUM_IMAGES} images of {printable(dataset)}")
    try:
        sampled = training_views(dataset, recipe, NUM_IMAGES, NUM_PAIRS)
    except InputError as error:
        return missing_data(data, error)
    rows = []
    for sample in sampled:
        title = printable(Path(sample.title).name)
        pairs = [
            (_embed_view(x1, f"view 1 of {title}, epoch {epoch}"), _embed_view(x2, f"view 2 of {title}, epoch {epoch}"))
            for epoch, (x1, x2) in enumerate(sample.pairs, 1)
        ]
        rows.append(EmbeddedViews(embed_image(resize_longer_side(sample.image, SIDE), title), pairs))
    return rows


def _embed_view(view: Tensor, alt: str) -> EmbeddedImage:
    return embed_image(resize_longer_side(view.permute(1, 2, 0).numpy(), SIDE), alt)
