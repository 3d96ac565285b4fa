"""Detections drawn on their image: boxes, names with scores, masks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mec.evaluate.detection.datasets.annotations import Detections

Color = tuple[int, int, int]
Place = tuple[int, int, int, int]
"""Left, top, right, bottom, the last two beyond."""

GOLDEN = (sqrt(5) - 1) / 2
TONES = ((0.9, 1.0), (0.55, 1.0), (1.0, 0.7))
"""Saturation and value, in turn."""
LINE, LETTERS, SMALLEST = 250, 30, 9
"""Widths of lines and heights of letters in the root of the image's area, and the least height in pixels."""
LUMINANCE, LIGHT = (0.2126, 0.7152, 0.0722), 0.22
"""Shares of red, green and blue in how light a color is, and from where on letters on it are black."""
GAP, PAPER = 6, "#ffffff"


def draw(image: NDArray[np.uint8], found: Detections, categories: Sequence[str], threshold: float = 0.5) -> Image.Image:
    """The image with what was found in it: half-transparent masks, boxes, and names with scores.

    Lines and letters grow with the image. Larger objects lie below smaller ones. Names do not cover each other: the
    best scores choose first, and one that finds no room is left out.

    Args:
        image: (h, w, 3), or (h, w, 1) of grays.
        found: in its pixels.
        categories: names of the classes; a class has the same color in all images.
        threshold: the least score that is drawn.

    Returns:
        RGB, of the same size.
    """
    canvas = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    height, width = canvas.shape[:2]
    shown = np.flatnonzero(found.scores >= threshold)
    sides = found.boxes[shown, 2:] - found.boxes[shown, :2]
    largest_first = shown[np.argsort(-sides.prod(axis=1), kind="stable")]
    if found.masks is not None:
        for i in largest_first:
            inside = rle.decode(found.masks[i]).astype(bool)
            canvas[inside] = image[inside] // 2 + np.array(color_of(found.labels[i]), np.uint8) // 2
    overlay = Image.fromarray(canvas)
    pencil = ImageDraw.Draw(overlay)
    for i in largest_first:
        left, top, right, bottom = _place(found.boxes[i], overlay.size)
        # no wider than leaves half of a small object to be seen
        line = max(1, min(round(sqrt(height * width) / LINE), (right - left) // 4, (bottom - top) // 4))
        pencil.rectangle((left, top, right - 1, bottom - 1), outline=color_of(found.labels[i]), width=line)
    best_first = shown[np.argsort(-found.scores[shown], kind="stable")]
    _write(overlay, found, best_first, categories)
    return overlay


def color_of(label: int) -> Color:
    """Of a class: hues in golden steps, which lie far apart for neighbors and never meet."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, *TONES[label % len(TONES)])
    return round(255 * red), round(255 * green), round(255 * blue)


def _place(box: NDArray[np.float32], size: tuple[int, int]) -> Place:
    """In whole pixels, at least one, within the image."""
    x1, y1, x2, y2 = (round(edge) for edge in box.tolist())
    left, top = min(max(x1, 0), size[0] - 1), min(max(y1, 0), size[1] - 1)
    return left, top, max(min(x2, size[0]), left + 1), max(min(y2, size[1]), top + 1)


def _write(image: Image.Image, found: Detections, best_first: NDArray[np.int64], categories: Sequence[str]) -> None:
    """Names with scores, or without where there is less room, each at the first place that no other has."""
    letters = max(SMALLEST, round(sqrt(image.width * image.height) / LETTERS))
    pencil, font, margin = ImageDraw.Draw(image), ImageFont.load_default(letters), max(1, letters // 6)
    _, above, _, below = font.getbbox("Ag", anchor="ls")
    high = ceil(below - above) + 2 * margin
    taken: list[Place] = []
    for i in best_first:
        color, box = color_of(found.labels[i]), _place(found.boxes[i], image.size)
        name = " ".join(categories[found.labels[i]].split())  # a name of two lines cannot be measured
        for text in (f"{name} {found.scores[i]:.2f}", name):
            places = _places(box, ceil(font.getlength(text)) + 2 * margin, high, image.size)
            place = next((p for p in places if not any(_meet(p, other) for other in taken)), None)
            if place is None:
                continue
            taken.append(place)
            left, top, right, bottom = place
            pencil.rectangle((left, top, right - 1, bottom - 1), fill=color)
            ink = "black" if np.dot(np.divide(color, 255) ** 2.2, LUMINANCE) > LIGHT else "white"
            pencil.text((left + margin, top + margin - above), text, fill=ink, font=font, anchor="ls")
            break


def _places(box: Place, wide: int, high: int, size: tuple[int, int]) -> list[Place]:
    """Where a name may be, within the image: above a box, below, in it; from its left or to its right; beside it."""
    left, top, right, bottom = box
    corners = [(x, y) for x in (left, right - wide) for y in (top - high, bottom, top, bottom - high)]
    corners += [(right, top), (left - wide, top), (right, bottom - high), (left - wide, bottom - high)]
    most_left, most_top = size[0] - wide, size[1] - high
    if most_left < 0 or most_top < 0:
        return []
    within = [(min(max(x, 0), most_left), min(max(y, 0), most_top)) for x, y in corners]
    return [(x, y, x + wide, y + high) for x, y in within]


def _meet(a: Place, b: Place) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def sheet(images: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Images in rows of ``columns``, those of a row of one height, on a sheet of so many pixels in width.

    A last row of fewer is as high as if it were full of such images.
    """
    rows = []
    for start in range(0, len(images), columns):
        row = images[start : start + columns]
        shapes = sum(image.width / image.height for image in row) * columns / len(row)
        height = max(1, round((width - (columns + 1) * GAP) / shapes))
        rows.append([image.resize((max(1, round(height * image.width / image.height)), height)) for image in row])
    page = Image.new("RGB", (width, GAP + sum(row[0].height + GAP for row in rows)), PAPER)
    top = GAP
    for row in rows:
        left = GAP
        for image in row:
            page.paste(image, (left, top))
            left += image.width + GAP
        top += row[0].height + GAP
    return page
