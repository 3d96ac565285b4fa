"""Draw images with captions in a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, MARGIN, LINE = 128, 4, 16, 17
"""Sizes in pixels: default side of an image, gap between two, margin of the grid, height of a line of text."""
CHARACTER_WIDTH = 6.4  # pixels
TEXT_COLOR, BACKGROUND = "#222222", "#ffffff"


class Cell(NamedTuple):
    """Square images side by side, the caption above them, and the names below the first of them."""

    caption: str
    images: Sequence[Image.Image]
    names: Sequence[str] = ()


def row_height(side: int) -> int:
    """Return the height of a row of images of ``side`` pixels: a caption, images, their names, and a larger gap."""
    return side + 2 * LINE + 3 * GAP


def image_grid(cells: Sequence[Cell], columns: int, side: int = SIDE) -> Image.Image:
    """Draw cells of images of ``side`` x ``side`` pixels row by row. The first row has the most images per column."""
    row, max_characters = row_height(side), int(side / CHARACTER_WIDTH)
    widths = [len(cell.images) * (side + GAP) + 3 * GAP for cell in cells[:columns]]
    lefts = list(itertools.accumulate(widths, initial=MARGIN))
    grid = Image.new("RGB", (lefts[-1] + MARGIN, 2 * MARGIN + -(-len(cells) // columns) * row), BACKGROUND)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(12)
    for number, cell in enumerate(cells):
        left, top = lefts[number % columns], MARGIN + number // columns * row
        draw.text((left, top), _shorten(cell.caption, max_characters * len(cell.images)), TEXT_COLOR, font)
        for position, image in enumerate(cell.images):
            grid.paste(image, (left + position * (side + GAP), top + LINE))
        for position, name in enumerate(cell.names):
            corner = (left + position * (side + GAP), top + LINE + side + 2)
            draw.text(corner, _shorten(name, max_characters), TEXT_COLOR, font)
    return grid


def _shorten(text: str, max_length: int) -> str:
    short = text if len(text) <= max_length else f"...{text[3 - max_length :]}"
    return short.encode("latin-1", "replace").decode("latin-1")  # the default font has Latin-1 only
