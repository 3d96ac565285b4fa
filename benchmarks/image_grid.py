"""Grids of images, for the figures of the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

GRID_GAP, GRID_BACKGROUND = 6, "#ffffff"


def image_grid(images: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Arrange images in rows of ``columns`` on a page of ``width`` pixels. The images of a row have one height.

    An incomplete last row is scaled as if it were filled with images of its average aspect ratio.
    """
    rows = []
    for start in range(0, len(images), columns):
        row = images[start : start + columns]
        aspect_ratio = sum(image.width / image.height for image in row) * columns / len(row)
        height = max(1, round((width - (columns + 1) * GRID_GAP) / aspect_ratio))
        rows.append([image.resize((max(1, round(height * image.width / image.height)), height)) for image in row])
    page = Image.new("RGB", (width, GRID_GAP + sum(row[0].height + GRID_GAP for row in rows)), GRID_BACKGROUND)
    top = GRID_GAP
    for row in rows:
        left = GRID_GAP
        for image in row:
            page.paste(image, (left, top))
            left += image.width + GRID_GAP
        top += row[0].height + GRID_GAP
    return page
