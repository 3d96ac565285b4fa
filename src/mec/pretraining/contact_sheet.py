"""A contact sheet of what the network will see: images of a dataset, and pairs of views of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mec.data.analysis import infer_pixel_format, load_into_memory
from mec.data.dataset import DataLike, ImageDataset, evenly_spaced, read_image
from mec.data.datasets import open_dataset
from mec.data.datasets.folder import refuse_output_within
from mec.data.image_grid import Cell, image_grid
from mec.data.loaders import training_loader
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat, pad_to_square, to_pil
from mec.data.splits import log_splits
from mec.data.transforms.custom import ViewTransform
from mec.data.transforms.dry_run import create_custom_views
from mec.data.transforms.multi_view import Views
from mec.errors import InputError
from mec.files import atomic_write
from mec.pretraining.module import create_views
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import default_recipe, load_recipe

MIN_SIDE = 96
"""Side in pixels below which views are enlarged by a whole factor."""


class ImageViews(NamedTuple):
    """An image of a dataset (h, w, c), its title, and pairs (or more) of views of it, (c, s, s) each, in [0, 1]."""

    title: str
    image: ImageArray
    pairs: list[tuple[torch.Tensor, ...]]


def contact_sheet(
    data: DataLike,
    out: str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    images: int = 8,
    pairs: int = 6,
    *,
    view_transform: ViewTransform | None = None,
) -> Path:
    """Draw images of a dataset, one per row, and next to each the pairs of views that training would use.

    The views are those of the recipe's seed and the first epochs, one pair per epoch. They are drawn pixel by pixel:
    at their size, or if that is below 96 pixels enlarged by the whole factor in the captions.

    Args:
        data: any dataset (see ``mec.open_dataset``).
        out: the file to write; its suffix sets the format, such as .png or .jpg.
        recipe: a Recipe, the name of a packaged one or a path; None takes the one that fits the data.
        images: number of rows.
        pairs: pairs of views in a row; with more than two views of an image, all of them for each pair.
        view_transform: makes the views in place of the recipe's augmentations; see ``mec.pretrain``.

    Returns:
        The path of the contact sheet.

    Raises:
        InputError: the dataset or the recipe cannot be read, the suffix is not that of an image format, or the
            view_transform is refused.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"out: expected the suffix of an image format, such as .png, got {out}")
    refuse_output_within(data, out)
    if images < 1 or pairs < 1:
        raise InputError(f"images, pairs: expected at least 1 each, got {images} and {pairs}")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(default_recipe(data) if recipe is None else recipe)
    samples = training_views(data, recipe, images, pairs, view_transform)
    size = samples[0].pairs[0][0].shape[1]
    factor = -(-MIN_SIDE // size)
    side, enlarged = factor * size, f" ({factor}x)" if factor > 1 else ""
    cells: list[Cell] = []
    for title, image, views in samples:
        cells.append(Cell("image", [pad_to_square(image, side)], [Path(title).name]))
        for epoch, pair in enumerate(views, 1):
            names = ", ".join(
                f"view {number}" + (f" ({view.shape[1]} px)" if view.shape[1] != size else "")
                for number, view in enumerate(pair, 1)
            )
            cells.append(Cell(f"epoch {epoch}: {names}{enlarged}", [_view_to_pil(view, side) for view in pair]))
    sheet = image_grid(cells, 1 + pairs, side)
    with atomic_write(out) as path:
        sheet.save(path, format=Image.registered_extensions()[out.suffix.lower()])
    return out


def training_views(
    data: DataLike,
    recipe: Recipe,
    images: int,
    pairs: int,
    view_transform: ViewTransform | None = None,
) -> list[ImageViews]:
    """Return up to ``images`` evenly spaced images of a dataset, each with its views in the first ``pairs`` epochs."""
    dataset = open_dataset(data, "pretrain", subsample=recipe.subsample, frame_stride=recipe.frame_stride)
    log_splits(data, {"": dataset})
    pixel_format = infer_pixel_format(dataset, recipe.channels, recipe.background)
    indices = _readable_indices(dataset, pixel_format, images)
    if dataset.images is not None:
        dataset, _ = load_into_memory(dataset, pixel_format)
    if view_transform is None:
        views = create_views(recipe)
    else:
        views = create_custom_views(view_transform, dataset, pixel_format, recipe.global_size, recipe.seed)
    epochs = [[(epoch, index) for index in indices] for epoch in range(pairs)]
    loader = training_loader(dataset, views, epochs, pixel_format, torch.device("cpu"), workers=0)
    views_of_epochs = [denormalize(views, views(*batch[:3])) for batch in loader]
    return [
        ImageViews(
            dataset.title(index),
            read_image(dataset, index, pixel_format),
            [tuple(view[row] for view in views_of_epoch) for views_of_epoch in views_of_epochs],
        )
        for row, index in enumerate(indices)
    ]


def denormalize(views: Views, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return batches of views in [0, 1], without the normalization of their transform."""
    if views.statistics is not None:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in views.statistics)
        batches = [x * std + mean for x in batches]
    return [x.clamp(0, 1) for x in batches]


def _readable_indices(dataset: ImageDataset, pixel_format: PixelFormat, count: int) -> list[int]:
    readable = []
    for index in evenly_spaced(dataset, 2 * count).tolist():
        try:
            read_image(dataset, index, pixel_format)
        except CorruptImageError:
            continue
        readable.append(index)
    if not readable:
        raise InputError("data: none of the sampled images can be read")
    positions = np.linspace(0, len(readable) - 1, min(count, len(readable))).astype(int)
    return [readable[i] for i in np.unique(positions)]


def _view_to_pil(x: torch.Tensor, side: int) -> Image.Image:
    return to_pil(x.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.NEAREST)
