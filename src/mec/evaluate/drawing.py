"""Drawings of detections, and of the objects and labels of a tracker, on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from math import ceil, sqrt
from typing import Any

import numpy as np
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mec.evaluate.detection.datasets.annotations import Detections
from mec.evaluate.tracking.sequences import JOINTS, LIMBS, VOID, Boxes, Frame, FrameObjects, Labels

Color = tuple[int, int, int]
PixelBox = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels; right and bottom are exclusive

GOLDEN_RATIO = (sqrt(5) - 1) / 2
TONES = ((0.9, 1.0), (0.55, 1.0), (1.0, 0.7))  # saturation and value of successive labels
LINE_SCALE, NAME_SCALE, ID_SCALE = 250, 30, 45  # the square root of the image's area, divided by widths and font sizes
MIN_FONT_SIZE = 9
NO_ID_COLOR: Color = (255, 200, 0)  # color of objects without ids
GROUND_TRUTH_COLOR: Color = (255, 255, 255)
SKELETON = [(JOINTS.index(a), JOINTS.index(b)) for a, b in (*LIMBS, ("left_hip", "right_hip"))]
OPAQUE, HALF_TRANSPARENT = 255, 128


def draw_detections(
    image: NDArray[np.uint8], detections: Detections, categories: Sequence[str], threshold: float = 0.5
) -> Image.Image:
    """Draw half-transparent masks, boxes, and class names with scores on an image (h, w, 3) or (h, w, 1).

    Smaller objects are drawn over larger ones. Names are placed by descending score, and left out without free space.
    """
    canvas = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    indices = np.flatnonzero(detections.scores >= threshold)
    sides = detections.boxes[indices, 2:] - detections.boxes[indices, :2]
    largest_first = indices[np.argsort(-sides.prod(axis=1), kind="stable")]
    if detections.masks is not None:
        for i in largest_first:
            inside = rle.decode(detections.masks[i]).astype(bool)
            canvas[inside] = image[inside] // 2 + np.array(label_color(detections.labels[i]), np.uint8) // 2
    drawing = Image.fromarray(canvas)
    pen, line_width = ImageDraw.Draw(drawing), _line_width(drawing)
    for i in largest_first:
        box = _to_pixels(detections.boxes[i], drawing.size)
        _draw_box(pen, box, label_color(detections.labels[i]), line_width)
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
    font_size = max(MIN_FONT_SIZE, round(sqrt(image.width * image.height) / NAME_SCALE))
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
            position = left + margin, top + margin - above_baseline
            pen.text(position, text, fill=_text_color(color), font=font, anchor="ls")


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


def draw_objects(frame: Frame, objects: FrameObjects, ground_truth_box: Boxes | None = None) -> Frame:
    """Draw objects into a copy of the frame: half-transparent masks, else skeletons, else boxes; and the ids. Smaller
    objects are drawn over larger ones, and ids over everything. ``ground_truth_box`` (4,) is drawn in white."""
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
    """Draw labels (h, w), except VOID, half-transparently into a copy of the frame, in colors of a palette (256, 3)."""
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
    # leave at least half of a small object visible
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


_font = lru_cache(maxsize=8)(ImageFont.load_default)


def draw_text(image: Image.Image, text: str, color: Color, x: float, bottom: int, centered: bool = False) -> None:
    """Draw text on a filled background above ``bottom``, beginning or centered at x, moved to lie within the image."""
    size = max(MIN_FONT_SIZE, round(sqrt(image.width * image.height) / ID_SCALE))
    font, margin = _font(size), max(1, size // 6)
    _, text_top, _, text_bottom = font.getbbox("0" if text.isdigit() else "Ag", anchor="ls")
    width, height = ceil(font.getlength(text)) + 2 * margin, ceil(text_bottom - text_top) + 2 * margin
    left = max(0, min(round(x - width / 2 if centered else x), image.width - width))
    top = max(0, min(bottom - height, image.height - height))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    canvas.text((left + margin, top + margin - text_top), text, fill=_text_color(color), font=font, anchor="ls")


def _text_color(background: Color) -> str:
    """Return black on light colors, white on others."""
    luminance = np.dot(np.divide(background, 255) ** 2.2, (0.2126, 0.7152, 0.0722))
    return "black" if luminance > 0.22 else "white"
