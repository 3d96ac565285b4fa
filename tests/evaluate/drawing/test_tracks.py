"""What is drawn is where it should be, and nothing elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.drawing.detections import color_of
from mec.evaluate.drawing.tracks import NOBODY, TRUTH, draw_found, draw_labels
from mec.evaluate.tracking.sequences import RLE, VOID, Frame, FrameObjects, read_frame

GRAY = 90


def gray(height: int = 120, width: int = 160) -> Frame:
    return np.full((height, width, 3), GRAY, np.uint8)


def found(
    boxes: Sequence[Sequence[float]], ids: Sequence[int] | None, masks: list[RLE] | None = None, poses: Any = None
) -> FrameObjects:
    return FrameObjects(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.ones(len(boxes)),
        None if ids is None else np.array(ids, np.int64),
        masks,
        poses,
    )


def inside(left: int, top: int, width: int, height: int, shape: tuple[int, int] = (120, 160)) -> NDArray[np.bool_]:
    there = np.zeros(shape, bool)
    there[top : top + height, left : left + width] = True
    return there


def encoded(mask: NDArray[np.bool_]) -> RLE:
    return dict(rle.encode(np.asfortranarray(mask.astype(np.uint8))))


def of_color(drawn: Frame, color: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((drawn == color).all(axis=2))


def changed(drawn: Frame) -> NDArray[np.bool_]:
    return np.asarray((drawn != GRAY).any(axis=2))


def test_a_box_is_its_first_and_last_pixels() -> None:
    """From column 20 and row 40, 50 wide and 60 high; lines are one pixel in 120 x 160; the frame is kept."""
    frame = gray()
    drawn = draw_found(frame, found([[20, 40, 50, 60]], None))
    edge = inside(20, 40, 50, 60) & ~inside(21, 41, 48, 58)
    assert (of_color(drawn, NOBODY) == edge).all()
    assert (changed(drawn) == edge).all()
    assert (frame == GRAY).all()


def test_an_id_keeps_its_color_wherever_it_is() -> None:
    """The plate with the number lies above the box, from its left."""
    for boxes, ids in (
        ([[20, 40, 50, 60], [90, 30, 40, 40]], [7, 2007]),
        ([[60, 20, 30, 30], [10, 60, 50, 50]], [2007, 7]),
    ):
        drawn = draw_found(gray(), found(boxes, ids))
        for (left, top, width, height), number in zip(boxes, ids, strict=True):
            edge = inside(left, top, width, height) & ~inside(left + 1, top + 1, width - 2, height - 2)
            assert of_color(drawn, color_of(number))[edge].all()
            assert of_color(drawn, color_of(number))[top - 4, left]
        assert not of_color(drawn, NOBODY).any()


@pytest.mark.parametrize(
    "box",
    [[np.nan] * 4, [200, 10, 20, 20], [-50, 10, 50, 20], [10, 1e30, 5, 5], [10, 10, np.inf, 5], [-9, 10, 4, 4]],
)
def test_what_is_not_in_the_image_is_not_drawn(box: list[float]) -> None:
    assert not changed(draw_found(gray(), found([box], [3], None), np.array(box))).any()


def test_a_box_that_reaches_out_is_closed_at_the_edge() -> None:
    drawn = draw_found(gray(), found([[-30, -1e9, 60, 2e9], [150.2, 60.4, 2, 2]], None))
    edge = inside(0, 0, 30, 120) & ~inside(1, 1, 28, 118)
    assert (changed(drawn) == edge | inside(150, 60, 2, 2)).all()


def test_the_truth_is_white_and_below() -> None:
    box = np.array([20.0, 40, 50, 60])
    drawn = draw_found(gray(), found([[20, 40, 30, 60]], [0]), box)
    edge = inside(20, 40, 50, 60) & ~inside(21, 41, 48, 58)
    assert of_color(drawn, TRUTH)[edge & ~inside(20, 40, 30, 60)].all()
    assert of_color(drawn, color_of(0))[40:100, 20].all()
    assert not changed(draw_found(gray(), found([], []), np.full(4, np.nan))).any()


SMALL, LARGE = (60, 60, 20, 20), (40, 40, 70, 70)


def halved(color: tuple[int, int, int]) -> NDArray[np.float64]:
    return (np.array(color) + GRAY) / 2


def test_masks_are_half_transparent_and_rimmed() -> None:
    """The smaller one, given first, lies above; a rim is one pixel, also around the other."""
    small, large = inside(*SMALL), inside(*LARGE)
    drawn = draw_found(gray(), found([SMALL, LARGE], None, [encoded(small), encoded(large)]))
    rims = (small & ~inside(61, 61, 18, 18)) | (large & ~inside(41, 41, 68, 68))
    rims |= inside(59, 60, 22, 20) ^ small | inside(60, 59, 20, 22) ^ small
    assert (of_color(drawn, NOBODY) == rims).all()
    assert (changed(drawn) == large).all()
    assert abs(drawn[large & ~rims] - halved(NOBODY)).max() <= 1.5


def test_masks_have_the_colors_of_their_ids_and_numbers_above() -> None:
    masks = [encoded(inside(*place)) for place in (SMALL, LARGE)]
    for ids in ([4, 5], [5, 4]):
        drawn = draw_found(gray(), found([SMALL, LARGE], ids, masks))
        assert abs(drawn[72, 72] - halved(color_of(ids[0]))).max() <= 1.5
        assert abs(drawn[100, 100] - halved(color_of(ids[1]))).max() <= 1.5
        plate = changed(drawn)[:40]
        assert of_color(drawn[:40], color_of(ids[1]))[plate].mean() > 0.5
        assert abs(np.flatnonzero(plate.any(axis=0)).mean() - 75) <= 1
        assert not changed(drawn)[40:][~inside(*LARGE)[40:]].any()


@pytest.mark.parametrize("masks", [None, []])
def test_nobody_found(masks: list[RLE] | None) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    drawn = draw_found(frame, found([], [], masks))
    assert (drawn == frame).all()
    assert not np.shares_memory(drawn, frame)


def pose(seen: Sequence[int]) -> NDArray[np.float64]:
    """Standing upright and seen from the front: right ankle at (60, 110) ... top of the head at (80, 10)."""
    places = [(60, 110), (62, 90), (65, 70), (95, 70), (98, 90), (100, 110), (40, 70), (45, 50), (55, 30), (105, 30),
              (115, 50), (120, 70), (80, 28), (80, 20), (80, 10)]  # fmt: skip
    joints = np.zeros((15, 3))
    joints[:, :2] = places
    joints[seen, 2] = 1
    return joints


def test_skeletons_have_joints_and_limbs() -> None:
    """Lines are one pixel, joints 3 x 3; what is half-way between two joined joints is drawn, and nothing elsewhere."""
    body = pose(range(15))
    drawn = draw_found(gray(), found([[40, 10, 80, 100]], None, None, body[None]))
    assert all(of_color(drawn, NOBODY)[y - 1 : y + 2, x].all() for x, y in body[:, :2].astype(int))
    # thighs, shins, arms, the sides, the hips, the shoulders to the neck, the neck to the head
    pairs = [(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11), (2, 8), (3, 9), (2, 3), (8, 12),
             (9, 12), (12, 14)]  # fmt: skip
    middles = [(body[a, :2] + body[b, :2]) / 2 for a, b in pairs]
    for x, y in middles:
        assert of_color(drawn, NOBODY)[int(y) : int(y) + 2, int(x) : int(x) + 2].any()
    assert (changed(drawn) == of_color(drawn, NOBODY)).all()
    assert not changed(drawn)[75:, 70:90].any()
    assert not changed(drawn)[35:65, 70:90].any()


def test_joints_that_are_not_seen_are_not_drawn() -> None:
    """Nor their limbs; a place far away, or that is no number, is not seen."""
    body = pose([0, 1, 3, 4, 5])
    body[3, 0], body[4, :2] = 1e12, np.nan
    drawn = draw_found(gray(), found([[60, 90, 40, 20]], None, None, body[None]))
    expected = inside(59, 89, 5, 23) | inside(99, 109, 3, 3)
    assert not changed(drawn)[~expected].any()
    assert changed(drawn)[90:111, 59:64].any(axis=1).all()
    assert changed(drawn)[110, 100]
    numbered = draw_found(gray(), found([[60, 90, 40, 20]], [3], None, body[None]))
    assert of_color(numbered, color_of(3))[80:90, 70:90].sum() > 20
    assert (of_color(numbered, color_of(3))[90:] == changed(drawn)[90:]).all()


def test_labels_in_colors_of_the_palette() -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2, VOID]] = (200, 0, 0), (0, 100, 250), (255, 255, 255)
    one, two = inside(10, 20, 60, 50), inside(100, 50, 60, 70)
    labels = one.astype(np.uint8) + np.uint8(2) * two
    labels[80:110, 20:60] = VOID
    frame = gray()
    drawn = draw_labels(frame, labels, palette)
    assert (changed(drawn) == (one | two)).all()
    for label, place, core in ((1, one, inside(11, 21, 58, 48)), (2, two, inside(101, 51, 58, 68))):
        assert (drawn[place & ~core] == palette[label]).all()
        assert abs(drawn[core] - (palette[label].astype(float) + GRAY) / 2).max() <= 1.5
    assert (frame == GRAY).all()
    assert (draw_labels(frame, np.zeros_like(labels), palette) == GRAY).all()


def test_lines_and_numbers_grow_with_the_frame() -> None:
    widths, plates = [], []
    for scale in (5, 20):
        box = [20 * scale, 50 * scale, 60 * scale, 40 * scale]
        drawn = of_color(draw_found(gray(100 * scale, 100 * scale), found([box], [1])), color_of(1))
        widths.append(int(drawn[70 * scale, : 50 * scale].sum()))
        plates.append(int(drawn[: 50 * scale, 20 * scale].sum()))
    assert widths == [2, 8]
    assert plates[1] == pytest.approx(4 * plates[0], abs=8)


def test_numbers_are_whole_at_the_edges() -> None:
    """Of a box in a corner, the plate is as large as elsewhere."""
    sizes = []
    for x, y in ((60, 60), (0, 0), (158, 0), (0, 118), (158, 118)):
        rows, columns = np.nonzero(changed(draw_found(gray(), found([[x, y, 2, 2]], [88]))))
        sizes.append((np.ptp(columns) + 1, np.ptp(rows) + 1))
    # the plate covers a box at the upper edge, and stands on one below
    wide, high = sizes[0]
    assert sizes == [(wide, high), (wide, high - 2), (wide, high - 2), (wide, high), (wide, high)]
    assert wide >= 9
    assert high >= 9


def test_real_masks(real_data: Path) -> None:
    """Half of the image shines through, within the mask and nowhere else."""
    folder = real_data / "davis16-subset" / "DAVIS"
    if not folder.is_dir():
        pytest.skip(f"no DAVIS at {folder}")
    frame = read_frame(folder / "JPEGImages" / "480p" / "blackswan" / "00010.jpg")
    mask = np.asarray(Image.open(folder / "Annotations" / "480p" / "blackswan" / "00010.png")) > 0
    drawn = draw_found(frame, found([rle.toBbox(encoded(mask)).tolist()], None, [encoded(mask)]))
    rim = of_color(drawn, NOBODY)
    assert (drawn[~mask] == frame[~mask]).all()
    assert abs(drawn[mask & ~rim] - (frame[mask & ~rim].astype(float) + NOBODY) / 2).max() <= 1.5
    assert 0.02 < rim.sum() / mask.sum() < 0.2
