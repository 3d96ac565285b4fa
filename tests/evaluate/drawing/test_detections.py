"""What is drawn where, pixel by pixel."""

from collections.abc import Sequence

import numpy as np
import pytest
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.detection.datasets.annotations import Detections, Rle
from mec.evaluate.drawing.detections import GAP, color_of, draw, sheet

Pixels = NDArray[np.uint8]
NAMES = ["cat", "dog", "cow"]


def gray(height: int, width: int, value: int = 90) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def found(*objects: tuple[Sequence[float], int, float], masks: list[Rle] | None = None) -> Detections:
    """Each a box, a class and a score."""
    return Detections(
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int64),
        np.array([score for _, _, score in objects], np.float32),
        masks,
    )


def square(height: int, width: int, top: int, left: int, side: int) -> Rle:
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[top : top + side, left : left + side] = 1
    return rle.encode(mask)


def extent(where: NDArray[np.bool_]) -> tuple[int, int]:
    """Height and width of what is true."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def of_color(drawn: Pixels, label: int) -> NDArray[np.bool_]:
    return np.asarray((drawn == color_of(label)).all(axis=2))


def test_edges_of_a_box_are_its_first_and_last_pixels() -> None:
    """A box from 20 to 60 and from 40 to 80 is on pixels 20 ... 59 and 40 ... 79; its name is above."""
    drawn = np.asarray(draw(gray(120, 160), found(([20, 40, 60, 80], 1, 0.9)), NAMES))
    edge = np.zeros((120, 160), bool)
    edge[40:80, 20:60] = True
    edge[41:79, 21:59] = False
    assert (of_color(drawn, 1)[40:] == edge[40:]).all()
    assert (drawn[40:][~edge[40:]] == 90).all()
    assert of_color(drawn[:40], 1).any()


def test_masks_are_half_of_the_image_and_smaller_ones_lie_above() -> None:
    """The smaller object comes first and scores best; 90 // 2 = 45 of the image is left below both."""
    masks = [square(120, 160, 60, 60, 20), square(120, 160, 40, 40, 60)]
    objects = found(([60, 60, 80, 80], 0, 0.9), ([40, 40, 100, 100], 1, 0.8), masks=masks)
    drawn = np.asarray(draw(gray(120, 160), objects, NAMES))
    assert drawn[70, 70].tolist() == [45 + c // 2 for c in color_of(0)]
    assert drawn[95, 95].tolist() == [45 + c // 2 for c in color_of(1)]
    assert drawn[110, 110].tolist() == [90, 90, 90]
    assert of_color(drawn, 0)[60:80, 60].all()


@pytest.mark.parametrize("masks", [None, []])
def test_a_image_without_detections_is_unchanged(masks: list[Rle] | None) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    drawn = draw(image, found(masks=masks), NAMES)
    assert drawn.mode == "RGB"
    assert (np.asarray(drawn) == image).all()


def test_nothing_below_the_threshold() -> None:
    image = gray(100, 100)
    below = found(([20, 20, 60, 60], 0, 0.49), masks=[square(100, 100, 20, 20, 40)])
    assert (np.asarray(draw(image, below, NAMES)) == 90).all()
    assert (np.asarray(draw(image, below, NAMES, threshold=0.49)) != 90).any()
    assert (image == 90).all()


def test_a_gray_image_becomes_rgb() -> None:
    image = np.random.default_rng(1).integers(0, 256, (80, 80, 1), np.uint8)
    objects = found(([30, 40, 50, 60], 2, 0.9), masks=[square(80, 80, 40, 30, 20)])
    drawn = np.asarray(draw(image, objects, NAMES))
    assert (drawn[62:] == image[62:]).all()
    assert drawn[50, 40].tolist() == [image[50, 40, 0] // 2 + c // 2 for c in color_of(2)]


def test_a_name_without_room_is_left_out_of_a_tiny_image() -> None:
    box = ([0, 0, 20, 20], 0, 0.9)
    drawn = np.asarray(draw(gray(20, 20), found(box), ["a category with a long name"]))
    assert (drawn[1:19, 1:19] == 90).all()
    assert of_color(drawn, 0).sum() == 4 * 19
    assert (np.asarray(draw(gray(20, 20), found(box), ["a"]))[1:19, 1:19] != 90).any()


def test_a_name_of_two_lines_is_written_in_one() -> None:
    one, two = (draw(gray(99, 99), found(([40, 40, 60, 60], 0, 0.9)), [name]) for name in ("a b", "a\nb"))
    assert (np.asarray(one) == np.asarray(two)).all()


@pytest.mark.parametrize(
    "box", [[0, 0, 4, 4], [196, 0, 200, 4], [0, 96, 4, 100], [196, 96, 200, 100], [-9, -9, 300, 300]]
)
def test_names_are_whole_within_the_image(box: list[float]) -> None:
    """As large at the corners as in the middle, where a box of 4 x 4 lies below the name."""
    high, wide = extent((np.asarray(draw(gray(100, 200), found(([98, 50, 102, 54], 0, 0.9)), NAMES)) != 90).any(axis=2))
    drawn = np.asarray(draw(gray(100, 200), found((box, 0, 0.9)), NAMES))
    filled = of_color(drawn, 0)
    filled[[0, -1]] = filled[:, [0, -1]] = False
    assert extent(filled)[0] >= high - 4 - 1
    assert extent(filled)[1] >= wide - 1


def test_names_do_not_cover_each_other() -> None:
    """Of three in one place all are to be seen whole; of forty there is no room for all, and the best are written."""
    place = [40.0, 40.0, 44.0, 44.0]
    alone = of_color(np.asarray(draw(gray(100, 200), found((place, 0, 0.9)), NAMES)), 0).sum()
    three = np.asarray(draw(gray(100, 200), found(*[(place, 0, 0.9)] * 3), NAMES))
    box = 4 * 4 - 2 * 2
    assert of_color(three, 0).sum() == 3 * (alone - box) + box
    others = [(place, 1, 0.8)] * 40
    crowded = np.asarray(draw(gray(100, 200), found(*others, (place, 0, 0.9)), NAMES))
    assert of_color(crowded, 0).sum() >= alone - box
    assert of_color(crowded, 1).sum() < 40 * (alone - box)


def test_lines_and_letters_grow_with_the_image() -> None:
    widths, heights = [], []
    for scale in (1, 10, 40):
        box = [20 * scale, 40 * scale, 60 * scale, 70 * scale]
        drawn = np.asarray(draw(gray(80 * scale, 100 * scale), found((box, 0, 0.9)), NAMES))
        widths.append(int(of_color(drawn, 0)[55 * scale, : 40 * scale].sum()))
        heights.append(extent(of_color(drawn, 0)[: 40 * scale])[0])
    assert widths[0] == 1
    assert widths[1] >= 3
    assert widths[2] == pytest.approx(4 * widths[1], abs=2)
    assert heights[0] >= 9
    assert heights[2] == pytest.approx(4 * heights[1], abs=8)


def test_colors_of_neighbors_lie_apart_and_letters_stand_out() -> None:
    """At least 100 of 255 in a channel between neighbors; contrast as web pages measure it, where 3 is asked
    of large letters."""
    colors = np.array([color_of(i) for i in range(91)])
    assert (abs(np.diff(colors, axis=0)).max(axis=1) >= 100).all()
    assert len(np.unique(colors, axis=0)) == 91
    for label in range(91):
        drawn = np.asarray(draw(gray(400, 400), found(([90, 40, 94, 44], label, 0.9)), ["IIII"] * 91))
        inks = [ink for ink in (0, 255) if (drawn == ink).all(axis=2).any()]
        assert len(inks) == 1
        linear = np.where(colors[label] > 10, ((colors[label] / 255 + 0.055) / 1.055) ** 2.4, colors[label] / 3294.6)
        plate = float(linear @ (0.2126, 0.7152, 0.0722))
        assert (max(plate, inks[0] / 255) + 0.05) / (min(plate, inks[0] / 255) + 0.05) > 3.5


def test_a_sheet_has_rows_of_one_height() -> None:
    """Within 318: 300 for 1:1 and 2:1, so 100 high; alone 1:1 is as high as two of it in a row, 150."""
    assert GAP == 6
    images = [
        Image.new("RGB", size, name) for size, name in (((50, 50), "red"), ((400, 200), "lime"), ((9, 9), "blue"))
    ]
    page = sheet(images, columns=2, width=318)
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
