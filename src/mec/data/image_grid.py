"""Draw images with captions in a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, MARGIN, LINE = 128, 4, 16, 17
"""Sizes in pixels: side of an image, gap between two, margin of the grid, height of a line of text."""
ROW = SIDE + 2 * LINE + 3 * GAP  # height of a row: a caption, images, their names, and a larger gap
MAX_CHARACTERS = 20  # that fit above or below an image
TEXT_COLOR, BACKGROUND = "#222222", "#ffffff"


class Cell(NamedTuple):
    """Images of SIDE x SIDE pixels side by side, the caption above them, and the names below the first of them."""

    caption: str
    images: Sequence[Image.Image]
    names: Sequence[str] = ()


def image_grid(cells: Sequence[Cell], columns: int) -> Image.Image:
    """Draw cells row by row. The first row has the most images in each column."""
    widths = [len(cell.images) * (SIDE + GAP) + 3 * GAP for cell in cells[:columns]]
    lefts = list(itertools.accumulate(widths, initial=MARGIN))
    grid = Image.new("RGB", (lefts[-1] + MARGIN, 2 * MARGIN + -(-len(cells) // columns) * ROW), BACKGROUND)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    for number, cell in enumerate(cells):
        left, top = lefts[number % columns], MARGIN + number // columns * ROW
        draw.text((left, top), _shorten(cell.caption, MAX_CHARACTERS * len(cell.images)), TEXT_COLOR, font)
        for position, image in enumerate(cell.images):
            grid.paste(image, (left + position * (SIDE + GAP), top + LINE))
        for position, name in enumerate(cell.names):
            corner = (left + position * (SIDE + GAP), top + LINE + SIDE + 2)
            draw.text(corner, _shorten(name, MAX_CHARACTERS), TEXT_COLOR, font)
    return grid


def _shorten(text: str, max_length: int) -> str:
    short = text if len(text) <= max_length else f"...{text[3 - max_length :]}"
    return short.encode("latin-1", "replace").decode("latin-1")  # the default font has Latin-1 only
