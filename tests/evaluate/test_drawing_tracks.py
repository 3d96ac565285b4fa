"""Drawings are at the expected pixels and nowhere else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as rle
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.drawing import GROUND_TRUTH_COLOR, NO_ID_COLOR, draw_labels, draw_objects, label_color
from mec.evaluate.tracking.sequences import RLE, VOID, Frame, FrameObjects, read_frame

GRAY = 90


def gray(height: int = 120, width: int = 160) -> Frame:
    return np.full((height, width, 3), GRAY, np.uint8)


def make_objects(
    boxes: Sequence[Sequence[float]], ids: Sequence[int] | None, masks: list[RLE] | None = None, poses: Any = None
) -> FrameObjects:
    return FrameObjects(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.ones(len(boxes)),
        None if ids is None else np.array(ids, np.int64),
        masks,
        poses,
    )


def rectangle(left: int, top: int, width: int, height: int, shape: tuple[int, int] = (120, 160)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def encode_mask(mask: NDArray[np.bool_]) -> RLE:
    return dict(rle.encode(np.asfortranarray(mask.astype(np.uint8))))


def has_color(drawn: Frame, color: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((drawn == color).all(axis=2))


def is_drawn(drawn: Frame) -> NDArray[np.bool_]:
    return np.asarray((drawn != GRAY).any(axis=2))


def test_box_covers_its_first_and_last_pixels() -> None:
    """A box of 50 x 60 pixels from column 20 and row 40; lines are one pixel wide; the input is unchanged."""
    frame = gray()
    drawn = draw_objects(frame, make_objects([[20, 40, 50, 60]], None))
    edge = rectangle(20, 40, 50, 60) & ~rectangle(21, 41, 48, 58)
    assert (has_color(drawn, NO_ID_COLOR) == edge).all()
    assert (is_drawn(drawn) == edge).all()
    assert (frame == GRAY).all()


def test_an_id_has_the_same_color_everywhere() -> None:
    """The id is drawn above the upper left corner of the box."""
    for boxes, ids in (
        ([[20, 40, 50, 60], [90, 30, 40, 40]], [7, 2007]),
        ([[60, 20, 30, 30], [10, 60, 50, 50]], [2007, 7]),
    ):
        drawn = draw_objects(gray(), make_objects(boxes, ids))
        for (left, top, width, height), number in zip(boxes, ids, strict=True):
            edge = rectangle(left, top, width, height) & ~rectangle(left + 1, top + 1, width - 2, height - 2)
            assert has_color(drawn, label_color(number))[edge].all()
            assert has_color(drawn, label_color(number))[top - 4, left]
        assert not has_color(drawn, NO_ID_COLOR).any()


@pytest.mark.parametrize(
    "box",
    [[np.nan] * 4, [200, 10, 20, 20], [-50, 10, 50, 20], [10, 1e30, 5, 5], [10, 10, np.inf, 5], [-9, 10, 4, 4]],
)
def test_boxes_outside_of_the_image_are_not_drawn(box: list[float]) -> None:
    assert not is_drawn(draw_objects(gray(), make_objects([box], [3], None), np.array(box))).any()


def test_boxes_are_clipped_to_the_image() -> None:
    drawn = draw_objects(gray(), make_objects([[-30, -1e9, 60, 2e9], [150.2, 60.4, 2, 2]], None))
    edge = rectangle(0, 0, 30, 120) & ~rectangle(1, 1, 28, 118)
    assert (is_drawn(drawn) == edge | rectangle(150, 60, 2, 2)).all()


def test_ground_truth_box_is_white_and_below_the_objects() -> None:
    box = np.array([20.0, 40, 50, 60])
    drawn = draw_objects(gray(), make_objects([[20, 40, 30, 60]], [0]), box)
    edge = rectangle(20, 40, 50, 60) & ~rectangle(21, 41, 48, 58)
    assert has_color(drawn, GROUND_TRUTH_COLOR)[edge & ~rectangle(20, 40, 30, 60)].all()
    assert has_color(drawn, label_color(0))[40:100, 20].all()
    assert not is_drawn(draw_objects(gray(), make_objects([], []), np.full(4, np.nan))).any()


SMALL, LARGE = (60, 60, 20, 20), (40, 40, 70, 70)


def halved(color: tuple[int, int, int]) -> NDArray[np.float64]:
    return (np.array(color) + GRAY) / 2


def test_masks_are_half_transparent_with_opaque_outlines() -> None:
    """The smaller mask is on top although it comes first; outlines are one pixel wide on both sides of a border."""
    small, large = rectangle(*SMALL), rectangle(*LARGE)
    drawn = draw_objects(gray(), make_objects([SMALL, LARGE], None, [encode_mask(small), encode_mask(large)]))
    outlines = (small & ~rectangle(61, 61, 18, 18)) | (large & ~rectangle(41, 41, 68, 68))
    outlines |= rectangle(59, 60, 22, 20) ^ small | rectangle(60, 59, 20, 22) ^ small
    assert (has_color(drawn, NO_ID_COLOR) == outlines).all()
    assert (is_drawn(drawn) == large).all()
    assert abs(drawn[large & ~outlines] - halved(NO_ID_COLOR)).max() <= 1.5


def test_masks_have_the_colors_of_their_ids_and_labels_above() -> None:
    masks = [encode_mask(rectangle(*place)) for place in (SMALL, LARGE)]
    for ids in ([4, 5], [5, 4]):
        drawn = draw_objects(gray(), make_objects([SMALL, LARGE], ids, masks))
        assert abs(drawn[72, 72] - halved(label_color(ids[0]))).max() <= 1.5
        assert abs(drawn[100, 100] - halved(label_color(ids[1]))).max() <= 1.5
        label_area = is_drawn(drawn)[:40]
        assert has_color(drawn[:40], label_color(ids[1]))[label_area].mean() > 0.5
        assert abs(np.flatnonzero(label_area.any(axis=0)).mean() - 75) <= 1
        assert not is_drawn(drawn)[40:][~rectangle(*LARGE)[40:]].any()


@pytest.mark.parametrize("masks", [None, []])
def test_no_objects_leave_the_frame_unchanged(masks: list[RLE] | None) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    drawn = draw_objects(frame, make_objects([], [], masks))
    assert (drawn == frame).all()
    assert not np.shares_memory(drawn, frame)


def make_pose(visible: Sequence[int]) -> NDArray[np.float64]:
    """Return an upright pose, seen from the front: right ankle at (60, 110) ... top of the head at (80, 10)."""
    points = [(60, 110), (62, 90), (65, 70), (95, 70), (98, 90), (100, 110), (40, 70), (45, 50), (55, 30), (105, 30),
              (115, 50), (120, 70), (80, 28), (80, 20), (80, 10)]  # fmt: skip
    joints = np.zeros((15, 3))
    joints[:, :2] = points
    joints[visible, 2] = 1
    return joints


def test_skeletons_have_all_joints_and_limbs() -> None:
    """Lines are one pixel wide, joints 3 x 3; the middle of every limb is drawn, and nothing elsewhere."""
    pose = make_pose(range(15))
    drawn = draw_objects(gray(), make_objects([[40, 10, 80, 100]], None, None, pose[None]))
    assert all(has_color(drawn, NO_ID_COLOR)[y - 1 : y + 2, x].all() for x, y in pose[:, :2].astype(int))
    # thighs, shins, arms, the sides, the hips, the shoulders to the neck, the neck to the head
    pairs = [(0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11), (2, 8), (3, 9), (2, 3), (8, 12),
             (9, 12), (12, 14)]  # fmt: skip
    middles = [(pose[a, :2] + pose[b, :2]) / 2 for a, b in pairs]
    for x, y in middles:
        assert has_color(drawn, NO_ID_COLOR)[int(y) : int(y) + 2, int(x) : int(x) + 2].any()
    assert (is_drawn(drawn) == has_color(drawn, NO_ID_COLOR)).all()
    assert not is_drawn(drawn)[75:, 70:90].any()
    assert not is_drawn(drawn)[35:65, 70:90].any()


def test_invisible_joints_are_not_drawn() -> None:
    """Their limbs are not drawn either; joints far away or NaN count as invisible."""
    pose = make_pose([0, 1, 3, 4, 5])
    pose[3, 0], pose[4, :2] = 1e12, np.nan
    drawn = draw_objects(gray(), make_objects([[60, 90, 40, 20]], None, None, pose[None]))
    expected = rectangle(59, 89, 5, 23) | rectangle(99, 109, 3, 3)
    assert not is_drawn(drawn)[~expected].any()
    assert is_drawn(drawn)[90:111, 59:64].any(axis=1).all()
    assert is_drawn(drawn)[110, 100]
    with_id = draw_objects(gray(), make_objects([[60, 90, 40, 20]], [3], None, pose[None]))
    assert has_color(with_id, label_color(3))[80:90, 70:90].sum() > 20
    assert (has_color(with_id, label_color(3))[90:] == is_drawn(drawn)[90:]).all()


def test_labels_have_the_colors_of_the_palette() -> None:
    palette = np.zeros((256, 3), np.uint8)
    palette[[1, 2, VOID]] = (200, 0, 0), (0, 100, 250), (255, 255, 255)
    first_mask, second_mask = rectangle(10, 20, 60, 50), rectangle(100, 50, 60, 70)
    labels = first_mask.astype(np.uint8) + np.uint8(2) * second_mask
    labels[80:110, 20:60] = VOID
    frame = gray()
    drawn = draw_labels(frame, labels, palette)
    assert (is_drawn(drawn) == (first_mask | second_mask)).all()
    for label, place, interior in (
        (1, first_mask, rectangle(11, 21, 58, 48)),
        (2, second_mask, rectangle(101, 51, 58, 68)),
    ):
        assert (drawn[place & ~interior] == palette[label]).all()
        assert abs(drawn[interior] - (palette[label].astype(float) + GRAY) / 2).max() <= 1.5
    assert (frame == GRAY).all()
    assert (draw_labels(frame, np.zeros_like(labels), palette) == GRAY).all()


def test_lines_and_text_grow_with_the_frame() -> None:
    widths, label_heights = [], []
    for scale in (5, 20):
        box = [20 * scale, 50 * scale, 60 * scale, 40 * scale]
        drawn = has_color(draw_objects(gray(100 * scale, 100 * scale), make_objects([box], [1])), label_color(1))
        widths.append(int(drawn[70 * scale, : 50 * scale].sum()))
        label_heights.append(int(drawn[: 50 * scale, 20 * scale].sum()))
    assert widths == [2, 8]
    assert label_heights[1] == pytest.approx(4 * label_heights[0], abs=8)


def test_labels_stay_within_the_image() -> None:
    """The label of a box in a corner is as large as elsewhere."""
    sizes = []
    for x, y in ((60, 60), (0, 0), (158, 0), (0, 118), (158, 118)):
        rows, columns = np.nonzero(is_drawn(draw_objects(gray(), make_objects([[x, y, 2, 2]], [88]))))
        sizes.append((np.ptp(columns) + 1, np.ptp(rows) + 1))
    # the label covers a box at the upper edge, and is above any other box
    wide, high = sizes[0]
    assert sizes == [(wide, high), (wide, high - 2), (wide, high - 2), (wide, high), (wide, high)]
    assert wide >= 9
    assert high >= 9


def test_real_mask_is_half_transparent(real_data: Path) -> None:
    """Half of the image is visible within the mask, and nothing else is changed."""
    folder = real_data / "davis16-subset" / "DAVIS"
    if not folder.is_dir():
        pytest.skip(f"no DAVIS at {folder}")
    frame = read_frame(folder / "JPEGImages" / "480p" / "blackswan" / "00010.jpg")
    mask = np.asarray(Image.open(folder / "Annotations" / "480p" / "blackswan" / "00010.png")) > 0
    drawn = draw_objects(frame, make_objects([rle.toBbox(encode_mask(mask)).tolist()], None, [encode_mask(mask)]))
    outline = has_color(drawn, NO_ID_COLOR)
    assert (drawn[~mask] == frame[~mask]).all()
    assert abs(drawn[mask & ~outline] - (frame[mask & ~outline].astype(float) + NO_ID_COLOR) / 2).max() <= 1.5
    assert 0.02 < outline.sum() / mask.sum() < 0.2
