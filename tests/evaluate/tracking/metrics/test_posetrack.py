from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.posetrack import open_poses
from mec.evaluate.tracking.metrics.posetrack import compare_poses, pose_scores
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects
from mec.evaluate.tracking.skeletons import JOINTS, pose_boxes
from tests.evaluate.tracking.pose_scenes import VIDEO, body, image, person, posetrack18

pytest.importorskip("trackeval")
FAR = 5000
HEAD = 30


def tracks(*frames: Sequence[tuple[int, np.ndarray]]) -> list[FrameObjects]:
    found = []
    for some in frames:
        poses = np.array([pose for _, pose in some]).reshape(-1, 15, 3)
        ids = np.array([track for track, _ in some], np.int64)
        found.append(FrameObjects(pose_boxes(poses), np.ones(len(poses)), ids, poses=poses))
    return found


def opened(folder: Path, persons: Sequence[dict], frames: int, **more: object) -> DetectionSequence:
    posetrack18(folder, [image(f, **more) for f in range(frames)], persons)
    return open_poses(folder)[VIDEO]()


def two_persons(folder: Path, frames: int = 4) -> DetectionSequence:
    persons = [person(f, track, body(x)) for f in range(frames) for track, x in ((0, 50), (1, 140))]
    return opened(folder, persons, frames)


def test_two_persons_and_one_swap(tmp_path: Path) -> None:
    """8 objects of each of 15 kinds, all found; both tracks change in the third frame: 2 switches a kind."""
    sequence = two_persons(tmp_path)
    straight, swapped = [(5, body(50)), (6, body(140))], [(6, body(50)), (5, body(140))]
    compared = compare_poses(sequence, tracks(straight, straight, swapped, swapped))
    scores = pose_scores({VIDEO: compared})
    assert scores["all"] == scores[VIDEO]
    row = scores["all"]
    assert row["MOTA"] == pytest.approx(1 - 2 / 8)
    assert row["MOTA head"] == pytest.approx(1 - 2 / 8)
    assert (row["switches"], row["person switches"]) == (30, 2)
    assert row["IDF1"] == pytest.approx(4 / 8)
    assert row["person IDF1"] == pytest.approx(4 / 8)
    assert row["MOTP"] == 1


def test_half_a_head_is_the_limit_and_each_joint_is_for_itself(tmp_path: Path) -> None:
    """The left wrist is 15.1 pixels off where 15 are allowed, the right one 15, the nose not found at all."""
    sequence = two_persons(tmp_path, 1)
    off = body(50, unseen=["nose"])
    off[JOINTS.index("left_wrist"), 0] += 15.1
    off[JOINTS.index("right_wrist"), 1] -= 15
    row = pose_scores({VIDEO: compare_poses(sequence, tracks([(1, off), (2, body(140))]))})["all"]
    assert row["MOTA ankle"] == 1
    assert row["MOTA head"] == pytest.approx((1 + 1 + 1 / 2) / 3), "a nose of two is missed"
    assert row["MOTA wrist"] == pytest.approx((1 + 0) / 2), "of two left wrists one is missed, and another is false"
    assert row["MOTA"] == pytest.approx((13 + 1 / 2 + 0) / 15)
    assert row["MOTP"] == pytest.approx((14 + 1.5 / 2) / 15), "half of the right wrists is worth 1/2"
    assert row["IDF1"] == pytest.approx((13 + 2 * 1 / 3 + 2 * 1 / 4) / 15)
    assert row["person IDF1"] == 1


def test_persons_are_found_where_half_of_their_joints_are(tmp_path: Path) -> None:
    sequence = opened(tmp_path, [person(0, 0, body(50, unseen=["nose"]))], 1)
    for wrong, found in ((7, 1), (8, 0)):
        pose = body(50, unseen=["nose"])
        pose[:, 0] += 14.9 * pose[:, 2]
        pose[:wrong, 0] += 1
        row = pose_scores({VIDEO: compare_poses(sequence, tracks([(1, pose)]))})["all"]
        assert row["person IDF1"] == found, f"{14 - wrong} of 14 joints are right"


def test_each_sequence_weighs_as_much_in_idf1_and_each_joint_in_mota(tmp_path: Path) -> None:
    """One frame is right in a sequence of one; none of three in the other, whose only joints are knees."""
    one = opened(tmp_path / "a", [person(0, 0, body(50))], 1)
    no_knees = [joint for joint in JOINTS if "knee" not in joint]
    knees = body(50, unseen=no_knees)
    other = opened(tmp_path / "b", [person(f, 0, knees) for f in range(3)], 3)
    right, wrong = tracks([(1, body(50))]), tracks(*[[(1, knees + np.array([FAR, 0, 0]) * knees[:, 2:])]] * 3)
    scores = pose_scores({"a": compare_poses(one, right), "b": compare_poses(other, wrong)})
    assert (scores["a"]["IDF1"], scores["b"]["IDF1"]) == (1, 0)
    assert scores["all"]["IDF1"] == pytest.approx((13 * 1 + 2 * (1 + 0) / 2) / 15)
    assert scores["a"]["MOTA"] == 1
    assert scores["b"]["MOTA"] == -1, "of kinds that the truth has; 3 missed and 3 false of 3"
    assert scores["b"]["MOTA head"] == 0
    assert scores["all"]["MOTA knee"] == pytest.approx(1 - 6 / 4)
    assert scores["all"]["MOTA"] == pytest.approx((13 + 2 * -0.5) / 15)


def test_a_sequence_in_which_nobody_was_found_weighs_too(tmp_path: Path) -> None:
    one, other = (opened(tmp_path / name, [person(0, 0, body(50))], 1) for name in "ab")
    compared = {"a": compare_poses(one, tracks([(1, body(50))])), "b": compare_poses(other, tracks([]))}
    row = pose_scores(compared)["all"]
    assert (row["IDF1"], row["MOTA"]) == (0.5, 0.5)


def test_ignored_regions_take_joints_of_both(tmp_path: Path) -> None:
    """A triangle has all of the second person but the right arm, and all of a third who is not there."""
    region = {"ignore_regions_x": [[112, 400, 112]], "ignore_regions_y": [[-100, 70, 300]]}
    persons = [person(0, 0, body(50)), person(0, 1, body(140))]
    sequence = opened(tmp_path, persons, 1, **region)
    compared = compare_poses(sequence, tracks([(1, body(50)), (2, body(140)), (3, body(200))]))
    kinds = dict(zip(JOINTS, compared.joints, strict=True))
    assert kinds["right_wrist"].truth_ids[0].tolist() == [0, 1]
    assert kinds["right_wrist"].found_ids[0].tolist() == [1, 2]
    assert kinds["left_knee"].truth_ids[0].tolist() == [0]
    assert kinds["left_knee"].found_ids[0].tolist() == [1]
    assert compared.persons.found_ids[0].tolist() == [1, 2]
    row = pose_scores({VIDEO: compared})["all"]
    assert (row["MOTA"], row["IDF1"], row["person IDF1"]) == (1, 1, 1)


def test_frames_in_which_nobody_is_annotated_do_not_count(tmp_path: Path) -> None:
    sequence = opened(tmp_path, [person(0, 0, body(50)), person(2, 0, body(50))], 3)
    row = pose_scores({VIDEO: compare_poses(sequence, tracks([(1, body(50))], [(1, body(90))], [(1, body(50))]))})
    assert row["all"]["MOTA"] == 1


def test_nobody_found(tmp_path: Path) -> None:
    row = pose_scores({VIDEO: compare_poses(two_persons(tmp_path), tracks([], [], [], []))})["all"]
    assert set(row.values()) == {0}


def test_a_head_without_size_is_right_only_where_nothing_is_off(tmp_path: Path) -> None:
    sequence = opened(tmp_path, [person(0, 0, body(50), bbox_head=[5, 5, 0, 0])], 1)
    for off, expected in ((0, 1), (0.01, -1)):
        row = pose_scores({VIDEO: compare_poses(sequence, tracks([(1, body(50 + off))]))})["all"]
        assert row["MOTA"] == expected


def test_what_is_no_track(tmp_path: Path) -> None:
    sequence = two_persons(tmp_path, 1)
    with pytest.raises(ValueError, match="expected tracks with ids"):
        compare_poses(sequence, sequence.given)
    with pytest.raises(ValueError, match="argument"):
        compare_poses(sequence, tracks([], []))
