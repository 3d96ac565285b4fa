"""An image of what the network will see: images of a source, and pairs of views of each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mec.data.analysis import infer_pixel_format, load_into_memory
from mec.data.dataset import ArrayDataset, ImageDataset, evenly_spaced, read_image
from mec.data.datasets import open_dataset
from mec.data.loaders import training_loader
from mec.data.pixels import CorruptImageError, ImageArray, PixelFormat, pad_to_square, to_pil
from mec.errors import InputError
from mec.files import atomic_write
from mec.pretraining.module import views_of
from mec.pretraining.recipe import Recipe
from mec.pretraining.recipe_files import load_recipe
from mec.pretraining.run import default_recipe

CELL, GAP, MARGIN, LINE = 112, 4, 16, 20
INK, PAPER = "#222222", "#ffffff"


class Seen(NamedTuple):
    """An image of a source (h, w, c), where it comes from, and pairs of views of it, (c, s, s) each."""

    title: str
    image: ImageArray
    pairs: list[tuple[torch.Tensor, torch.Tensor]]


def contact_sheet(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str] | None = None,
    images: int = 8,
    pairs: int = 6,
) -> Path:
    """Draw images of a source, a row each, and beside each the pairs of views that training would show.

    The views are those of the recipe's seed, of the first epochs: one pair an epoch.

    Args:
        data: any source (see ``mec.open_dataset``).
        out: the file to write; its suffix says the format, such as .png or .jpg.
        recipe: a Recipe, the name of a packaged one or a path; None takes the one that fits the data.
        images: rows.
        pairs: pairs of views in a row.

    Returns:
        The path of the sheet.

    Raises:
        InputError: what is wrong with the source, the recipe or the file's name.
    """
    out = Path(out).expanduser()
    if out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"out: {out} has no suffix of an image, expected such as .png")
    if images < 1 or pairs < 1:
        raise InputError(f"images, pairs: expected at least 1 each, got {images} and {pairs}")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(default_recipe(data) if recipe is None else recipe)
    seen = training_views(data, recipe, images, pairs)
    rows = [[pad_to_square(one.image, CELL), *(_view(x) for pair in one.pairs for x in pair)] for one in seen]
    sheet = _drawn(rows, [Path(one.title).name for one in seen])
    with atomic_write(out) as path:
        sheet.save(path, format=Image.registered_extensions()[out.suffix.lower()])
    return out


def training_views(data: str | os.PathLike[str], recipe: Recipe, images: int, pairs: int) -> list[Seen]:
    """Images from all over a source, at most so many, and the pair of views that each of the first epochs shows.

    Raises:
        InputError: what is wrong with the source.
    """
    dataset = open_dataset(data, "pretrain", every=recipe.every)
    reading = infer_pixel_format(dataset, recipe.channels, recipe.background)
    chosen = _readable(dataset, reading, images)
    if isinstance(dataset, ArrayDataset):
        dataset, _ = load_into_memory(dataset, reading)
    views = views_of(recipe, recipe.image_size)
    epochs = [[(epoch, index) for index in chosen] for epoch in range(pairs)]
    loader = training_loader(dataset, views, epochs, reading, torch.device("cpu"), workers=0)
    shown_in = [views(*batch[:3]) for batch in loader]
    return [
        Seen(
            dataset.title(index),
            read_image(dataset, index, reading),
            [(first[row], second[row]) for first, second in shown_in],
        )
        for row, index in enumerate(chosen)
    ]


def _readable(dataset: ImageDataset, reading: PixelFormat, count: int) -> list[int]:
    found = []
    for index in evenly_spaced(dataset, 2 * count).tolist():
        try:
            read_image(dataset, index, reading)
        except CorruptImageError:
            continue
        found.append(index)
    if not found:
        raise InputError("data: not one of the images looked at can be read")
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))]


def _view(x: torch.Tensor) -> Image.Image:
    return to_pil(x.permute(1, 2, 0).numpy()).resize((CELL, CELL), Image.Resampling.BICUBIC)


def _drawn(rows: list[list[Image.Image]], names: list[str]) -> Image.Image:
    columns = len(rows[0])
    # the two views of a pair stand close, pairs apart
    lefts = [MARGIN + c * (CELL + GAP) + ((c + 1) // 2) * 3 * GAP for c in range(columns)]
    width, height = lefts[-1] + CELL + MARGIN, 2 * MARGIN + LINE + len(rows) * (CELL + LINE)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((lefts[0], MARGIN), "image", INK, font)
    for pair in range((columns - 1) // 2):
        draw.text((lefts[1 + 2 * pair], MARGIN), f"epoch {pair + 1}: view 1, view 2", INK, font)
    for r, (cells, name) in enumerate(zip(rows, names, strict=True)):
        top = MARGIN + LINE + r * (CELL + LINE)
        for left, cell in zip(lefts, cells, strict=True):
            sheet.paste(cell, (left, top))
        to_pil = name if len(name) <= 20 else f"{name[:9]}...{name[-8:]}"
        draw.text((lefts[0], top + CELL + 2), to_pil.encode("latin-1", "replace").decode("latin-1"), INK, font)
    return sheet
