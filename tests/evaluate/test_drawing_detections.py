"""Drawings of detections, pixel by pixel."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.detection.datasets.annotations import Detections, Rle
from mec.evaluate.drawing import draw_detections, label_color

Pixels = NDArray[np.uint8]
CATEGORIES = ["cat", "dog", "cow"]


def gray_image(height: int, width: int, value: int = 90) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def make_detections(*objects: tuple[Sequence[float], int, float], masks: list[Rle] | None = None) -> Detections:
    """Create detections from a box, a label and a score each."""
    return Detections(
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int64),
        np.array([score for _, _, score in objects], np.float32),
        masks,
    )


def draw(image: Pixels, detections: Detections, categories: Sequence[str] = CATEGORIES) -> Pixels:
    return np.asarray(draw_detections(image, detections, categories))


def square_mask(height: int, width: int, top: int, left: int, side: int) -> Rle:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    return coco_mask.encode(mask)


def extent(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the height and width of the bounding box of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def has_label_color(drawing: Pixels, label: int) -> NDArray[np.bool_]:
    return np.asarray((drawing == label_color(label)).all(axis=2))


def test_a_box_is_drawn_on_its_first_and_last_pixels() -> None:
    """A box from 20 to 60 and from 40 to 80 is on pixels 20 ... 59 and 40 ... 79; its name is above."""
    drawing = draw(gray_image(120, 160), make_detections(([20, 40, 60, 80], 1, 0.9)))
    outline = np.zeros((120, 160), bool)
    outline[40:80, 20:60] = True
    outline[41:79, 21:59] = False
    assert (has_label_color(drawing, 1)[40:] == outline[40:]).all()
    assert (drawing[40:][~outline[40:]] == 90).all()
    assert has_label_color(drawing[:40], 1).any()


def test_masks_are_half_transparent_and_smaller_ones_are_on_top() -> None:
    """The smaller object comes first and has the higher score; each mask keeps 90 // 2 = 45 of the image."""
    masks = [square_mask(120, 160, 60, 60, 20), square_mask(120, 160, 40, 40, 60)]
    detections = make_detections(([60, 60, 80, 80], 0, 0.9), ([40, 40, 100, 100], 1, 0.8), masks=masks)
    drawing = draw(gray_image(120, 160), detections)
    assert drawing[70, 70].tolist() == [45 + c // 2 for c in label_color(0)]
    assert drawing[95, 95].tolist() == [45 + c // 2 for c in label_color(1)]
    assert drawing[110, 110].tolist() == [90, 90, 90]
    assert has_label_color(drawing, 0)[60:80, 60].all()


@pytest.mark.parametrize("masks", [None, []])
def test_an_image_without_detections_is_unchanged(masks: list[Rle] | None) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    drawing = draw_detections(image, make_detections(masks=masks), CATEGORIES)
    assert drawing.mode == "RGB"
    assert (np.asarray(drawing) == image).all()


def test_detections_below_the_threshold_are_not_drawn() -> None:
    image = gray_image(100, 100)
    detections = make_detections(([20, 20, 60, 60], 0, 0.49), masks=[square_mask(100, 100, 20, 20, 40)])
    assert (draw(image, detections) == 90).all()
    assert (np.asarray(draw_detections(image, detections, CATEGORIES, threshold=0.49)) != 90).any()


def test_a_grayscale_image_becomes_rgb() -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 1), np.uint8)
    detections = make_detections(([30, 40, 50, 60], 2, 0.9), masks=[square_mask(80, 80, 40, 30, 20)])
    drawing = draw(image, detections)
    assert (drawing[62:] == image[62:]).all()
    assert drawing[50, 40].tolist() == [image[50, 40, 0] // 2 + c // 2 for c in label_color(2)]


def test_a_name_larger_than_the_image_is_left_out() -> None:
    detections = make_detections(([0, 0, 20, 20], 0, 0.9))
    drawing = draw(gray_image(20, 20), detections, ["a category with a long name"])
    assert (drawing[1:19, 1:19] == 90).all()
    assert has_label_color(drawing, 0).sum() == 4 * 19
    assert (draw(gray_image(20, 20), detections, ["a"])[1:19, 1:19] != 90).any()


def test_a_line_break_in_a_name_is_drawn_as_a_space() -> None:
    detections = make_detections(([40, 40, 60, 60], 0, 0.9))
    space, line_break = (draw(gray_image(99, 99), detections, [name]) for name in ("a b", "a\nb"))
    assert (space == line_break).all()


@pytest.mark.parametrize(
    "box", [[0, 0, 4, 4], [196, 0, 200, 4], [0, 96, 4, 100], [196, 96, 200, 100], [-9, -9, 300, 300]]
)
def test_names_are_not_cut_at_the_edges_of_the_image(box: list[float]) -> None:
    """A name is as large in the corners as in the middle, where a box of 4 x 4 lies below the name."""
    centered = draw(gray_image(100, 200), make_detections(([98, 50, 102, 54], 0, 0.9)))
    height, width = extent((centered != 90).any(axis=2))
    filled = has_label_color(draw(gray_image(100, 200), make_detections((box, 0, 0.9))), 0)
    filled[[0, -1]] = filled[:, [0, -1]] = False
    assert extent(filled)[0] >= height - 4 - 1
    assert extent(filled)[1] >= width - 1


def test_names_do_not_overlap() -> None:
    """Three names at one box are all complete. Forty do not fit, and those of the highest scores are drawn."""
    box = [40.0, 40.0, 44.0, 44.0]
    single_area = has_label_color(draw(gray_image(100, 200), make_detections((box, 0, 0.9))), 0).sum()
    three = draw(gray_image(100, 200), make_detections(*[(box, 0, 0.9)] * 3))
    outline_area = 4 * 4 - 2 * 2
    assert has_label_color(three, 0).sum() == 3 * (single_area - outline_area) + outline_area
    others = [(box, 1, 0.8)] * 40
    crowded = draw(gray_image(100, 200), make_detections(*others, (box, 0, 0.9)))
    assert has_label_color(crowded, 0).sum() >= single_area - outline_area
    assert has_label_color(crowded, 1).sum() < 40 * (single_area - outline_area)


def test_line_width_and_font_size_are_proportional_to_the_image() -> None:
    line_widths, text_heights = [], []
    for scale in (1, 10, 20):
        box = [20 * scale, 40 * scale, 60 * scale, 70 * scale]
        drawing = draw(gray_image(80 * scale, 100 * scale), make_detections((box, 0, 0.9)))
        line_widths.append(int(has_label_color(drawing, 0)[55 * scale, : 40 * scale].sum()))
        text_heights.append(extent(has_label_color(drawing, 0)[: 40 * scale])[0])
    assert line_widths[0] == 1
    assert line_widths[1] >= 3
    assert line_widths[2] == pytest.approx(2 * line_widths[1], abs=1)
    assert text_heights[0] >= 9
    assert text_heights[2] == pytest.approx(2 * text_heights[1], abs=4)


def test_successive_label_colors_differ_and_text_is_readable() -> None:
    """Successive colors differ by at least 100 of 255 in a channel. The contrast ratio of web
    pages (WCAG) is above the 3 required of large text."""
    colors = np.array([label_color(i) for i in range(91)])
    assert (abs(np.diff(colors, axis=0)).max(axis=1) >= 100).all()
    assert len(np.unique(colors, axis=0)) == 91
    for label in range(0, 91, 4):
        drawing = draw(gray_image(400, 400), make_detections(([90, 40, 94, 44], label, 0.9)), ["IIII"] * 91)
        text_colors = [value for value in (0, 255) if (drawing == value).all(axis=2).any()]
        assert len(text_colors) == 1
        linear = np.where(colors[label] > 10, ((colors[label] / 255 + 0.055) / 1.055) ** 2.4, colors[label] / 3294.6)
        luminance = float(linear @ (0.2126, 0.7152, 0.0722))
        text_luminance = text_colors[0] / 255
        assert (max(luminance, text_luminance) + 0.05) / (min(luminance, text_luminance) + 0.05) > 3.5


def test_rows_of_a_grid_have_one_height(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the width 318, 300 are left for 1:1 and 2:1, so the height is 100. The single 1:1 image of the last row is as
    high as two of them in a row, 150."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from image_grid import GRID_GAP, image_grid

    assert GRID_GAP == 6
    sizes = (((50, 50), "red"), ((400, 200), "lime"), ((9, 9), "blue"))
    page = image_grid([Image.new("RGB", size, color) for size, color in sizes], columns=2, width=318)
    assert page.size == (318, 6 + 100 + 6 + 150 + 6)
    pixels = np.asarray(page)
    for color, rows, columns in (
        ((255, 0, 0), slice(6, 106), slice(6, 106)),
        ((0, 255, 0), slice(6, 106), slice(112, 312)),
        ((0, 0, 255), slice(112, 262), slice(6, 156)),
    ):
        expected = np.zeros(pixels.shape[:2], bool)
        expected[rows, columns] = True
        assert ((pixels == color).all(axis=2) == expected).all()
