"""Drawings of detections: boxes, class names with scores, masks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mec.evaluate.detection.datasets.annotations import Detections

Color = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels; right and bottom are exclusive

GOLDEN_RATIO = (sqrt(5) - 1) / 2
TONES = ((0.9, 1.0), (0.55, 1.0), (1.0, 0.7))  # saturation and value of successive labels
LINE_SCALE, FONT_SCALE = 250, 30  # the square root of the image's area, divided by the line width and by the font size
MIN_FONT_SIZE = 9
LUMINANCE_WEIGHTS, LIGHT_LUMINANCE = (0.2126, 0.7152, 0.0722), 0.22
"""Weights of red, green and blue in the luminance, and the luminance above which text on a color is black."""


def draw_detections(
    image: NDArray[np.uint8], detections: Detections, categories: Sequence[str], threshold: float = 0.5
) -> Image.Image:
    """Draw half-transparent masks, boxes, and class names with scores, in sizes proportional to the image.

    Smaller objects are drawn over larger ones. Names do not overlap: they are placed by descending score, and a name
    without free space is left out.

    Args:
        image: (h, w, 3), or (h, w, 1) grayscale.
        detections: in pixels of the image.
        categories: class names; a class has the same color in all images.
        threshold: minimum score.

    Returns:
        RGB image of the same size.
    """
    canvas = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    height, width = canvas.shape[:2]
    indices = np.flatnonzero(detections.scores >= threshold)
    sides = detections.boxes[indices, 2:] - detections.boxes[indices, :2]
    largest_first = indices[np.argsort(-sides.prod(axis=1), kind="stable")]
    if detections.masks is not None:
        for i in largest_first:
            inside = coco_mask.decode(detections.masks[i]).astype(bool)
            canvas[inside] = image[inside] // 2 + np.array(label_color(detections.labels[i]), np.uint8) // 2
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    for i in largest_first:
        left, top, right, bottom = _to_pixels(detections.boxes[i], drawing.size)
        # leave at least half of a small object visible
        line_width = max(1, min(round(sqrt(height * width) / LINE_SCALE), (right - left) // 4, (bottom - top) // 4))
        pen.rectangle((left, top, right - 1, bottom - 1), outline=label_color(detections.labels[i]), width=line_width)
    best_first = indices[np.argsort(-detections.scores[indices], kind="stable")]
    _draw_names(drawing, detections, best_first, categories)
    return drawing


def label_color(label: int) -> Color:
    """Return the color of a label. Hues in golden-ratio steps are far apart for successive labels and never repeat."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, *TONES[label % len(TONES)])
    return round(255 * red), round(255 * green), round(255 * blue)


def _to_pixels(box: NDArray[np.float32], image_size: tuple[int, int]) -> PixelBox:
    """Round a box to whole pixels and clip it to the image, keeping at least one pixel."""
    x1, y1, x2, y2 = (round(edge) for edge in box.tolist())
    left, top = min(max(x1, 0), image_size[0] - 1), min(max(y1, 0), image_size[1] - 1)
    return left, top, max(min(x2, image_size[0]), left + 1), max(min(y2, image_size[1]), top + 1)


def _draw_names(
    image: Image.Image, detections: Detections, best_first: NDArray[np.int64], categories: Sequence[str]
) -> None:
    """Draw each name at its first free position, with the score or, if there is less space, without."""
    font_size = max(MIN_FONT_SIZE, round(sqrt(image.width * image.height) / FONT_SCALE))
    pen, font, margin = ImageDraw.Draw(image), ImageFont.load_default(font_size), max(1, font_size // 6)
    _, above_baseline, _, below_baseline = font.getbbox("Ag", anchor="ls")
    height = ceil(below_baseline - above_baseline) + 2 * margin
    occupied: list[PixelBox] = []
    for i in best_first:
        color, box = label_color(detections.labels[i]), _to_pixels(detections.boxes[i], image.size)
        name = " ".join(categories[detections.labels[i]].split())  # Pillow cannot measure text of several lines
        free_positions = (
            (text, position)
            for text in (f"{name} {detections.scores[i]:.2f}", name)
            for position in _name_positions(box, ceil(font.getlength(text)) + 2 * margin, height, image.size)
            if not any(_overlap(position, other) for other in occupied)
        )
        if first_free := next(free_positions, None):
            text, (left, top, right, bottom) = first_free
            occupied.append((left, top, right, bottom))
            pen.rectangle((left, top, right - 1, bottom - 1), fill=color)
            luminance = np.dot(np.divide(color, 255) ** 2.2, LUMINANCE_WEIGHTS)
            text_color = "black" if luminance > LIGHT_LUMINANCE else "white"
            pen.text((left + margin, top + margin - above_baseline), text, fill=text_color, font=font, anchor="ls")


def _name_positions(box: PixelBox, width: int, height: int, image_size: tuple[int, int]) -> list[PixelBox]:
    """Return positions of a name around a box, moved into the image: above, below, inside and beside the box."""
    left, top, right, bottom = box
    corners = [(x, y) for x in (left, right - width) for y in (top - height, bottom, top, bottom - height)]
    corners += [(right, top), (left - width, top), (right, bottom - height), (left - width, bottom - height)]
    max_left, max_top = image_size[0] - width, image_size[1] - height
    if max_left < 0 or max_top < 0:
        return []
    clipped = [(min(max(x, 0), max_left), min(max(y, 0), max_top)) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in clipped]


def _overlap(a: PixelBox, b: PixelBox) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
