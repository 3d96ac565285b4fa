"""Objects and labels of a tracker drawn into frames."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, sqrt
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mec.evaluate.drawing.detections import (
    LIGHT_LUMINANCE,
    LINE_SCALE,
    LUMINANCE_WEIGHTS,
    MIN_FONT_SIZE,
    Color,
    PixelBox,
    label_color,
)
from mec.evaluate.tracking.sequences import VOID, Boxes, Frame, FrameObjects, Labels
from mec.evaluate.tracking.skeletons import JOINTS, LIMBS

TEXT_SCALE = 45
"""The square root of the image's area divided by this is the font size. Ids are short, but there are many of them."""
NO_ID_COLOR: Color = (255, 200, 0)  # color of objects without ids
GROUND_TRUTH_COLOR: Color = (255, 255, 255)
SKELETON = [(JOINTS.index(a), JOINTS.index(b)) for a, b in (*LIMBS, ("left_hip", "right_hip"))]
OPAQUE, HALF_TRANSPARENT = 255, 128


def draw_objects(frame: Frame, objects: FrameObjects, ground_truth_box: Boxes | None = None) -> Frame:
    """Draw objects into a copy of the frame: half-transparent masks, else skeletons, else boxes; and the ids.

    An id has the same color in all frames. The widths of lines and the size of text grow with the frame. Smaller
    objects are drawn over larger ones, and ids over everything.

    Args:
        frame: (h, w, 3).
        objects: objects to draw, in pixels of the frame. Boxes that are NaN or outside of the frame are not drawn.
        ground_truth_box: (4,) box to draw in white, or NaN where the target is not visible.
    """
    colors = [NO_ID_COLOR] * len(objects) if objects.ids is None else [label_color(i) for i in objects.ids.tolist()]
    largest_first = np.argsort(-objects.boxes[:, 2:].prod(axis=1), kind="stable").tolist()
    image = Image.fromarray(frame)
    if objects.masks is not None:
        numbers = np.zeros(frame.shape[:2], np.uint16, order="F")  # the layout of decoded masks
        for i in largest_first:
            np.copyto(numbers, i + 1, where=rle.decode(objects.masks[i]).view(bool))
        _paint(image, np.ascontiguousarray(numbers), np.array([(0, 0, 0), *colors], np.uint8))
    canvas, width = ImageDraw.Draw(image), _line_width(image)
    if ground_truth_box is not None and (box := _pixel_box(ground_truth_box, image.size)):
        _draw_box(canvas, box, GROUND_TRUTH_COLOR, width)
    draw_boxes = objects.masks is None and objects.poses is None
    boxes = [_pixel_box(box, image.size) for box in objects.boxes]
    for i in largest_first:
        if objects.poses is not None and objects.masks is None:
            _draw_skeleton(canvas, objects.poses[i], colors[i], width, image.size)
        elif draw_boxes and (box := boxes[i]):
            _draw_box(canvas, box, colors[i], width)
    if objects.ids is not None:
        for i in largest_first:
            if box := boxes[i]:
                x = box[0] if draw_boxes else (box[0] + box[2]) / 2
                draw_text(image, str(objects.ids[i]), colors[i], x, box[1], centered=not draw_boxes)
    return np.array(image)


def draw_labels(frame: Frame, labels: Labels, palette: NDArray[np.uint8]) -> Frame:
    """Draw labels (h, w) half-transparently into a copy of the frame (h, w, 3), in the colors of a palette (256, 3).

    Background and VOID are not drawn.
    """
    image = Image.fromarray(frame)
    _paint(image, np.where(labels == VOID, 0, labels), palette)
    return np.array(image)


def _paint(image: Image.Image, numbers: NDArray[Any], colors: NDArray[np.uint8]) -> None:
    """Paint each region of equal numbers in its color, half-transparent with an opaque outline; 0 is not painted."""
    rows, columns = np.flatnonzero(numbers.any(axis=1)), np.flatnonzero(numbers.any(axis=0))
    if not len(rows):
        return
    numbers = numbers[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, width = numbers > 0, _line_width(image)
    # the outline has a pixel of another region within its width, above, below, left or right
    padded, (height, length) = np.pad(numbers, width), numbers.shape
    outline = np.zeros_like(inside)
    for y, x in ((0, width), (2 * width, width), (width, 0), (width, 2 * width)):
        outline |= padded[y : y + height, x : x + length] != numbers
    opacity = inside.view(np.uint8) * np.uint8(HALF_TRANSPARENT)
    opacity += (inside & outline).view(np.uint8) * np.uint8(OPAQUE - HALF_TRANSPARENT)
    colored = Image.fromarray(np.take(colors, numbers, axis=0))
    image.paste(colored, (int(columns[0]), int(rows[0])), Image.fromarray(opacity))


def _line_width(image: Image.Image) -> int:
    return max(1, round(sqrt(image.width * image.height) / LINE_SCALE))


def _pixel_box(box: Boxes, size: tuple[int, int]) -> PixelBox | None:
    """Round a box to pixels, at least one, and clip it to the image; None if it is outside or not finite."""
    if not np.isfinite(box).all():
        return None
    left, top, width, height = box.tolist()
    if left >= size[0] or top >= size[1] or left + width <= 0 or top + height <= 0:
        return None
    x, y = min(max(round(left), 0), size[0] - 1), min(max(round(top), 0), size[1] - 1)
    return x, y, max(min(round(left + width), size[0]), x + 1), max(min(round(top + height), size[1]), y + 1)


def _draw_box(canvas: ImageDraw.ImageDraw, box: PixelBox, color: Color, width: int) -> None:
    left, top, right, bottom = box
    # the lines cover at most half of a small object
    width = max(1, min(width, (right - left) // 4, (bottom - top) // 4))
    canvas.rectangle((left, top, right - 1, bottom - 1), outline=color, width=width)


def _draw_skeleton(
    canvas: ImageDraw.ImageDraw, pose: NDArray[np.float64], color: Color, width: int, size: tuple[int, int]
) -> None:
    """Draw the visible joints of a pose (15, 3), and the limbs between visible joints."""
    points, limits = pose[:, :2], np.array(size)
    # Pillow's time grows with the distance of points outside; the comparisons also exclude NaN
    visible = (pose[:, 2] > 0) & ((points > -limits) & (points < 2 * limits)).all(axis=1)
    for a, b in SKELETON:
        if visible[a] and visible[b]:
            canvas.line([tuple(points[a].tolist()), tuple(points[b].tolist())], fill=color, width=width)
    for x, y in points[visible].tolist():
        canvas.ellipse((x - width, y - width, x + width, y + width), fill=color)


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def draw_text(image: Image.Image, text: str, color: Color, x: float, bottom: int, centered: bool = False) -> None:
    """Draw text on a filled background above ``bottom``, beginning or centered at x, moved to lie within the image."""
    size = max(MIN_FONT_SIZE, round(sqrt(image.width * image.height) / TEXT_SCALE))
    font, margin = _font(size), max(1, size // 6)
    _, text_top, _, text_bottom = font.getbbox("0" if text.isdigit() else "Ag", anchor="ls")
    width, height = ceil(font.getlength(text)) + 2 * margin, ceil(text_bottom - text_top) + 2 * margin
    left = max(0, min(round(x - width / 2 if centered else x), image.width - width))
    top = max(0, min(bottom - height, image.height - height))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    text_color = "black" if np.dot(np.divide(color, 255) ** 2.2, LUMINANCE_WEIGHTS) > LIGHT_LUMINANCE else "white"
    canvas.text((left + margin, top + margin - text_top), text, fill=text_color, font=font, anchor="ls")
