import json
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.appearance import TORSO, pose_mask
from mec.evaluate.tracking.sequences import JOINTS, LIMBS, pose_boxes


def pose(**places: tuple[float, float]) -> np.ndarray:
    found = np.zeros((15, 3))
    for joint, place in places.items():
        found[JOINTS.index(joint)] = *place, 1
    return found


def test_a_limb_of_eight_pixels_with_round_ends() -> None:
    """Rows 16 to 24 of columns 20 to 40; beyond each end 9, 7, 7 and 3 pixels are within 4.4 of it."""
    mask = pose_mask(pose(left_elbow=(20, 20), left_wrist=(40, 20)), (60, 70))
    assert (mask.shape, mask.dtype) == ((60, 70), np.uint8)
    assert mask.sum() == 9 * 21 + 2 * (9 + 7 + 7 + 3)
    assert mask[16:25, 20:41].all()
    assert mask[20, 16:45].all()
    assert not mask[20, [15, 45]].any()


@pytest.mark.parametrize("far", [(40, 80), (80, 40)])
def test_limbs_slant_as_they_should(far: tuple[int, int]) -> None:
    """A line of length 50 between (10, 40) and the other end, or between (40, 10) and it: as wide as a straight one."""
    near = (10, 40) if far == (40, 80) else (40, 10)
    mask = pose_mask(pose(right_hip=near, right_knee=far), (100, 100))
    straight = pose_mask(pose(right_hip=(20, 20), right_knee=(70, 20)), (100, 100))
    assert mask.sum() == pytest.approx(straight.sum(), rel=0.03)
    assert (mask == pose_mask(pose(right_hip=near[::-1], right_knee=far[::-1]), (100, 100)).T).all()


def test_limbs_grow_with_the_pose() -> None:
    """The nose is in no limb, but makes the pose 400 pixels high: limbs are 20 wide, which takes 21 rows."""
    places = {"left_elbow": (100.9, 100.9), "left_wrist": (160, 100)}
    mask = pose_mask(pose(**places, nose=(100, 500)), (600, 300))
    assert mask[:, 130].sum() == 21
    assert mask[90:111, 130].all()
    assert not mask[300:].any()
    assert pose_mask(pose(**places), (600, 300))[:, 130].sum() == 9


def test_the_torso_is_filled() -> None:
    corners = {"right_hip": (30, 90), "left_hip": (70, 90), "left_shoulder": (70, 30), "right_shoulder": (30, 30)}
    whole = pose_mask(pose(**corners, head_bottom=(50, 10)), (120, 100))
    assert whole[30:91, 30:71].all()
    assert whole[20, 50] == 1, "up to the neck"
    assert whole[10, 50] == 1
    assert not whole[12, [40, 60]].any()
    two = pose_mask(pose(right_hip=(30, 90), left_shoulder=(70, 30)), (120, 100))
    assert not two.any(), "two corners are no torso, and hip and shoulder of two sides no limb"
    three = pose_mask(pose(right_hip=(30, 90), left_hip=(70, 90), head_bottom=(50, 10)), (120, 100))
    assert three[50, 50] == 1
    assert three[50, 30] == 0


def test_what_is_outside_or_unseen_is_left_out() -> None:
    assert not pose_mask(np.zeros((15, 3)), (20, 30)).any()
    assert not pose_mask(pose(nose=(5, 5)), (20, 30)).any()
    assert not pose_mask(pose(left_hip=(-100, 5), left_knee=(-50, 5)), (20, 30)).any()
    assert not pose_mask(pose(left_hip=(5, 300), left_knee=(5, 400)), (20, 30)).any()
    crossing = pose_mask(pose(left_hip=(-1e9, 10), left_knee=(1e9, 10)), (20, 30))
    assert crossing.all(), "wider than the image is high"
    half = pose_mask(pose(left_hip=(-20, 10), left_knee=(15, 10)), (20, 30))
    assert half[10, :20].all()
    assert not half[10, 20:].any()


def test_real_poses_look_as_opencv_draws_them(real_data: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    files = sorted((real_data / "posetrack18" / "annotations" / "val").glob("*.json"))
    if not files:
        pytest.skip(f"no posetrack18 in {real_data}")
    alike = []
    for file in files:
        raw = json.loads(file.read_text())
        names = raw["categories"][0]["keypoints"]
        for one in raw["annotations"]:
            joints = np.array(one["keypoints"], float).reshape(-1, 3)[[names.index(joint) for joint in JOINTS]]
            theirs = np.zeros((1080, 1920), np.uint8)
            places = {j: (int(x), int(y)) for j, (x, y, seen) in zip(JOINTS, joints, strict=True) if seen}
            corners = np.array([places[j] for j in TORSO if j in places], np.int32)
            if len(corners) > 2:
                cv2.fillConvexPoly(theirs, corners, 1)
            wide = max(8, int(np.ptp(np.array(list(places.values())), axis=0).max() / 20))
            for start, end in LIMBS:
                if start in places and end in places:
                    cv2.line(theirs, places[start], places[end], 1, wide)
            ours = pose_mask(joints, theirs.shape)
            alike.append((ours & theirs).sum() / (ours | theirs).sum())
    assert len(alike) == 14
    assert min(alike) > 0.95


def test_boxes_are_around_the_joints_that_are_seen() -> None:
    two = np.array([pose(nose=(-3, 7), left_knee=(40, 90), head_top=(10, 2)), pose(nose=(5, 6), head_top=(5, 1))])
    assert pose_boxes(two).tolist() == [[-3, 2, 43, 88], [5, 1, 10, 5]]
    assert pose_boxes(two[:0]).shape == (0, 4)
