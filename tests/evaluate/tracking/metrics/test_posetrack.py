from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.posetrack import open_pose_detections
from mec.evaluate.tracking.metrics.posetrack import pose_scores, pose_similarities
from mec.evaluate.tracking.sequences import JOINTS, DetectionSequence, FrameObjects, pose_boxes
from tests.evaluate.tracking.pose_scenes import VIDEO, image_entry, make_pose, person_annotation, write_posetrack18

pytest.importorskip("trackeval")
FAR = 5000
HEAD = 30


def tracks(*frames: Sequence[tuple[int, np.ndarray]]) -> list[FrameObjects]:
    tracked = []
    for persons in frames:
        poses = np.array([pose for _, pose in persons]).reshape(-1, 15, 3)
        ids = np.array([track for track, _ in persons], np.int64)
        tracked.append(FrameObjects(pose_boxes(poses), np.ones(len(poses)), ids, poses=poses))
    return tracked


def open_sequence(folder: Path, persons: Sequence[dict], frames: int, **fields: object) -> DetectionSequence:
    write_posetrack18(folder, [image_entry(f, **fields) for f in range(frames)], persons)
    return open_pose_detections(folder)[VIDEO]()


def two_persons(folder: Path, frames: int = 4) -> DetectionSequence:
    persons = [person_annotation(f, track, make_pose(x)) for f in range(frames) for track, x in ((0, 50), (1, 140))]
    return open_sequence(folder, persons, frames)


def test_one_id_swap_by_hand(tmp_path: Path) -> None:
    """8 objects of each of 15 kinds, all tracked; both tracks change in the third frame: 2 ID switches per kind."""
    sequence = two_persons(tmp_path)
    straight, swapped = [(5, make_pose(50)), (6, make_pose(140))], [(6, make_pose(50)), (5, make_pose(140))]
    similarities = pose_similarities(sequence, tracks(straight, straight, swapped, swapped))
    scores = pose_scores({VIDEO: similarities})
    assert scores["all"] == scores[VIDEO]
    row = scores["all"]
    assert row["MOTA"] == pytest.approx(1 - 2 / 8)
    assert row["MOTA head"] == pytest.approx(1 - 2 / 8)
    assert (row["ID switches"], row["person ID switches"]) == (30, 2)
    assert row["IDF1"] == pytest.approx(4 / 8)
    assert row["person IDF1"] == pytest.approx(4 / 8)
    assert row["MOTP"] == 1


def test_joints_within_half_a_head_are_correct_individually(tmp_path: Path) -> None:
    """The left wrist is 15.1 pixels off where 15 are allowed, the right one 15, and the nose is missing."""
    sequence = two_persons(tmp_path, 1)
    off = make_pose(50, invisible=["nose"])
    off[JOINTS.index("left_wrist"), 0] += 15.1
    off[JOINTS.index("right_wrist"), 1] -= 15
    row = pose_scores({VIDEO: pose_similarities(sequence, tracks([(1, off), (2, make_pose(140))]))})["all"]
    assert row["MOTA ankle"] == 1
    assert row["MOTA head"] == pytest.approx((1 + 1 + 1 / 2) / 3), "a nose of two is missed"
    assert row["MOTA wrist"] == pytest.approx((1 + 0) / 2), "of two left wrists, one is missed, one is false"
    assert row["MOTA"] == pytest.approx((13 + 1 / 2 + 0) / 15)
    assert row["MOTP"] == pytest.approx((14 + 1.5 / 2) / 15), "half of the right wrists is worth 1/2"
    assert row["IDF1"] == pytest.approx((13 + 2 * 1 / 3 + 2 * 1 / 4) / 15)
    assert row["person IDF1"] == 1


def test_persons_match_if_half_of_their_joints_do(tmp_path: Path) -> None:
    sequence = open_sequence(tmp_path, [person_annotation(0, 0, make_pose(50, invisible=["nose"]))], 1)
    for wrong, expected in ((7, 1), (8, 0)):
        pose = make_pose(50, invisible=["nose"])
        pose[:, 0] += 14.9 * pose[:, 2]
        pose[:wrong, 0] += 1
        row = pose_scores({VIDEO: pose_similarities(sequence, tracks([(1, pose)]))})["all"]
        assert row["person IDF1"] == expected, f"{14 - wrong} of 14 joints are correct"


def test_idf1_weights_sequences_and_mota_weights_joints_equally(tmp_path: Path) -> None:
    """The one frame of a sequence is correct; none of three in the other one, whose only joints are knees."""
    first = open_sequence(tmp_path / "a", [person_annotation(0, 0, make_pose(50))], 1)
    no_knees = [joint for joint in JOINTS if "knee" not in joint]
    knees = make_pose(50, invisible=no_knees)
    second = open_sequence(tmp_path / "b", [person_annotation(f, 0, knees) for f in range(3)], 3)
    right, wrong = tracks([(1, make_pose(50))]), tracks(*[[(1, knees + np.array([FAR, 0, 0]) * knees[:, 2:])]] * 3)
    scores = pose_scores({"a": pose_similarities(first, right), "b": pose_similarities(second, wrong)})
    assert (scores["a"]["IDF1"], scores["b"]["IDF1"]) == (1, 0)
    assert scores["all"]["IDF1"] == pytest.approx((13 * 1 + 2 * (1 + 0) / 2) / 15)
    assert scores["a"]["MOTA"] == 1
    assert scores["b"]["MOTA"] == -1, "of annotated kinds; 3 misses and 3 false positives for 3 joints"
    assert scores["b"]["MOTA head"] == 0
    assert scores["all"]["MOTA knee"] == pytest.approx(1 - 6 / 4)
    assert scores["all"]["MOTA"] == pytest.approx((13 + 2 * -0.5) / 15)


def test_sequences_without_tracks_are_included(tmp_path: Path) -> None:
    first, second = (open_sequence(tmp_path / name, [person_annotation(0, 0, make_pose(50))], 1) for name in "ab")
    similarities = {
        "a": pose_similarities(first, tracks([(1, make_pose(50))])),
        "b": pose_similarities(second, tracks([])),
    }
    row = pose_scores(similarities)["all"]
    assert (row["IDF1"], row["MOTA"]) == (0.5, 0.5)


def test_ignored_regions_hide_joints_of_ground_truth_and_tracks(tmp_path: Path) -> None:
    """A triangle contains the second person except the right arm, and all of a third, falsely tracked person."""
    region = {"ignore_regions_x": [[112, 400, 112]], "ignore_regions_y": [[-100, 70, 300]]}
    persons = [person_annotation(0, 0, make_pose(50)), person_annotation(0, 1, make_pose(140))]
    sequence = open_sequence(tmp_path, persons, 1, **region)
    similarities = pose_similarities(sequence, tracks([(1, make_pose(50)), (2, make_pose(140)), (3, make_pose(200))]))
    kinds = dict(zip(JOINTS, similarities.joints, strict=True))
    assert kinds["right_wrist"].ground_truth_ids[0].tolist() == [0, 1]
    assert kinds["right_wrist"].track_ids[0].tolist() == [1, 2]
    assert kinds["left_knee"].ground_truth_ids[0].tolist() == [0]
    assert kinds["left_knee"].track_ids[0].tolist() == [1]
    assert similarities.persons.track_ids[0].tolist() == [1, 2]
    row = pose_scores({VIDEO: similarities})["all"]
    assert (row["MOTA"], row["IDF1"], row["person IDF1"]) == (1, 1, 1)


def test_frames_without_annotated_persons_are_ignored(tmp_path: Path) -> None:
    sequence = open_sequence(
        tmp_path, [person_annotation(0, 0, make_pose(50)), person_annotation(2, 0, make_pose(50))], 3
    )
    row = pose_scores(
        {VIDEO: pose_similarities(sequence, tracks([(1, make_pose(50))], [(1, make_pose(90))], [(1, make_pose(50))]))}
    )
    assert row["all"]["MOTA"] == 1


def test_no_tracks_give_zeros(tmp_path: Path) -> None:
    row = pose_scores({VIDEO: pose_similarities(two_persons(tmp_path), tracks([], [], [], []))})["all"]
    assert set(row.values()) == {0}


def test_heads_of_size_0_allow_no_distance(tmp_path: Path) -> None:
    sequence = open_sequence(tmp_path, [person_annotation(0, 0, make_pose(50), bbox_head=[5, 5, 0, 0])], 1)
    for off, expected in ((0, 1), (0.01, -1)):
        row = pose_scores({VIDEO: pose_similarities(sequence, tracks([(1, make_pose(50 + off))]))})["all"]
        assert row["MOTA"] == expected
