"""Assignment against brute force over all pairings; tracks in sequences that were worked out by hand."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.association import AssociationSettings, BoxFilter, OnlineTracker, assign, box_iou

Floats = NDArray[np.float64]
APPEARANCES = dict(zip("ABCDEF", torch.eye(6)[:, :, None], strict=True))
"""Features of objects: each letter has similarity 1 with itself and 0 with the others."""
POSITIONS = {position: [100.0 * position, 10.0, 20.0, 50.0] for position in range(8)}
"""Boxes without overlap."""
DEFAULT = AssociationSettings()
CONFIRMED = AssociationSettings(confirm_at_once=True)


def total_cost(costs: Floats, max_cost: float, pairs: list[tuple[int, int]]) -> float:
    return sum(costs[pair] for pair in pairs) + max_cost * (min(costs.shape) - len(pairs))


def minimum_cost(costs: Floats, max_cost: float) -> float:
    """Return the minimum total cost by brute force over all pairings."""
    rows, columns = costs.shape
    if rows > columns:
        return minimum_cost(costs.T, max_cost)
    return min(
        sum(min(max_cost, costs[row, column]) for row, column in enumerate(permutation))
        for permutation in permutations(range(columns), rows)
    )


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 4), (5, 3), (6, 2)])
@pytest.mark.parametrize("max_cost", [0.2, 0.5, 0.9])
def test_assignment_has_the_minimum_cost_by_brute_force(shape: tuple[int, int], max_cost: float) -> None:
    rng = np.random.default_rng(0)
    for trial in range(15):
        costs = rng.random(shape)
        costs[rng.random(shape) < 0.2] = np.inf
        with_nan = np.where((rng.random(shape) < 0.5) & np.isinf(costs), np.nan, costs)
        pairs = assign(with_nan, max_cost)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        assert all(costs[pair] < max_cost for pair in pairs), trial
        assert total_cost(costs, max_cost, pairs) == pytest.approx(minimum_cost(costs, max_cost)), trial


def test_assignment_leaves_rows_unmatched_if_that_costs_less() -> None:
    # two pairs at 0.8 cost more than one at 0.1 and an unmatched one at 0.5
    costs = np.array([[0.1, 0.8], [0.8, np.inf]])
    assert assign(costs, 0.5) == [(0, 0)]
    assert assign(costs, 2.0) == [(0, 1), (1, 0)]
    assert assign(np.full((2, 3), np.nan), 1.0) == []
    assert assign(np.full((2, 2), np.inf), 1.0) == []
    assert assign(np.zeros((0, 3)), 1.0) == assign(np.zeros((3, 0)), 1.0) == []


def test_box_iou_by_hand() -> None:
    first = np.array([[0, 0, 10, 10], [5, 5, 10, 20], [0, 0, 0, 0]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 1, 1], [2, 2, 5, 5]], float)
    expected = [[1, 1 / 3, 0, 1 / 4], [25 / 275, 50 / 250, 0, 4 / 221], [0, 0, 0, 0]]
    np.testing.assert_allclose(box_iou(first, second), expected)
    assert box_iou(first, np.zeros((0, 4))).shape == (3, 0)


class TrackerHarness:
    """An OnlineTracker with a short notation. Call it with the detections of a frame, in turn.

    Detections are a letter of APPEARANCES and a key of POSITIONS: "A0 B2" is A at position 0 and B at position 2. The
    result lists the letter and the track id of each output: "A1 B2" is A with id 1 and B with id 2.
    """

    def __init__(self, settings: AssociationSettings = DEFAULT, frame_rate: float = 30.0) -> None:
        self.settings, self.tracker = settings, OnlineTracker(settings, frame_rate)
        self.boxes = np.zeros((0, 4))

    def __call__(self, detections: str, positions: dict[int, list[float]] = POSITIONS) -> str:
        names = detections.split()
        boxes = np.array([positions[int(name[1])] for name in names]).reshape(-1, 4)
        features = [APPEARANCES[name[0]] for name in names] if self.settings.use_appearance else []
        ids, indices, self.boxes = self.tracker.step(boxes, features)
        assert len(ids) == len(indices) == len(self.boxes)
        assert ids.tolist() == sorted(set(ids.tolist()))
        return " ".join(sorted(f"{names[index][0]}{id_}" for id_, index in zip(ids, indices, strict=True)))


def test_tracks_begin_in_the_first_frame_or_with_a_second_detection() -> None:
    track = TrackerHarness()
    assert track("A0 B1") == "A1 B2"
    assert track("A0 B1 C2") == "A1 B2", "detected once"
    assert track("A0 B1 C2") == "A1 B2 C3"
    assert track("D3 C2") == "C3"
    assert track("C2") == "C3"
    assert track("C2 D3") == "C3", "an unconfirmed track is removed after one missed frame"
    assert track("C2 D3") == "C3 D5", "its id is not used again"


def test_confirm_at_once_begins_tracks_with_one_detection() -> None:
    track = TrackerHarness(CONFIRMED)
    assert [track("A0"), track("A0 B1"), track("C2")] == ["A1", "A1 B2", "C3"]


def test_unconfirmed_tracks_are_matched_by_position_only() -> None:
    track = TrackerHarness()
    track("A0")
    assert track("A0 B1") == "A1"
    assert track("A0 B4") == "A1", "the same appearance elsewhere is another new track"
    assert track("A0 C4") == "A1 C3", "another appearance in its position is the same track"


def test_appearance_decides_if_boxes_are_the_same() -> None:
    track = TrackerHarness()
    assert [track(detections) for detections in ("A0 B1", "A1 B0", "B5 A6")] == ["A1 B2"] * 3
    assert track("A6") == "A1"


def test_tracks_with_changed_appearance_are_matched_by_overlap() -> None:
    # boxes 20 wide shifted by 6 have IoU 14 / 26 = 0.54, by 13 IoU 7 / 33 = 0.21 (15 / 27 and 8 / 34 with the extra
    # pixel of the published code); the limit is 0.5
    shifted = POSITIONS | {9: [6.0, 10.0, 20.0, 50.0], 8: [106.0 + 7.0, 10.0, 20.0, 50.0]}
    track = TrackerHarness(CONFIRMED)
    track("A0 B1")
    assert track("C9 D8", shifted) == "C1 D3"
    assert track("C9", shifted) == "C1", "the track has the new appearance"


@pytest.mark.parametrize(("corrected", "width"), [(False, 21), (True, 20)])
def test_overlap_limits_of_confirmed_and_unconfirmed_tracks(corrected: bool, width: int) -> None:
    """The IoU of boxes of width w, shifted by s, is (w - s) / (w + s). It must be above 0.5 if confirmed, else 0.3.

    The published code treats boxes of 20 pixels as 21 wide.
    """
    settings = AssociationSettings(corrected=corrected)
    for margin, matched in ((0.01, True), (-0.01, False)):
        track = TrackerHarness(settings)
        track("A0")
        assert track("B1", {1: [width / 3 - margin, 10, 20, 50]}) == ("B1" if matched else "")
        track = TrackerHarness(settings)
        track("A0")
        assert track("A0 B2") == "A1"
        moved = {2: [200 + width * 0.7 / 1.3 - margin, 10, 20, 50]}
        assert track("A0 C2", POSITIONS | moved) == ("A1 C2" if matched else "A1")


def test_lost_tracks_are_matched_by_appearance_only() -> None:
    track = TrackerHarness(replace(CONFIRMED, max_duplicate_cost=0.0))
    track("A0 B1")
    assert track("B1") == "B2"
    assert track("C0 B1") == "B2 C3", "same position, other appearance"
    assert track("A7 B1 C0") == "A1 B2 C3", "other position, same appearance"


@pytest.mark.parametrize(("frame_rate", "patience"), [(30.0, 3), (15.0, 1), (60.0, 6), (30.0, 0)])
def test_lost_tracks_are_kept_for_one_frame_more_than_patience(frame_rate: float, patience: int) -> None:
    """The published code keeps lost tracks for one more frame than its patience, and so does this one."""
    settings = AssociationSettings(confirm_at_once=True, patience=0 if patience == 0 else 3)
    for missed, expected in ((patience + 1, "A1"), (patience + 2, "A3")):
        track = TrackerHarness(settings, frame_rate)
        assert track("A0 B1") == "A1 B2"
        for _ in range(missed):
            assert track("B1") == "B2"
        assert track("A4 B1") == f"{expected} B2"


def test_object_is_recovered_after_an_occlusion() -> None:
    """It moves on while it is hidden for five frames, and reappears where no box was."""
    track = TrackerHarness()
    for frame in range(5):
        assert track("A0 B5", POSITIONS | {0: [10.0 * frame, 10, 20, 50]}) == "A1 B2"
    for _ in range(5):
        assert track("B5") == "B2"
    assert track("A0 B5", POSITIONS | {0: [180.0, 10, 20, 50]}) == "A1 B2"


def test_frames_may_be_empty_and_ids_are_unique() -> None:
    track = TrackerHarness(AssociationSettings(confirm_at_once=True, patience=1))
    assert track("") == ""
    assert [track("A0 B1"), track("")] == ["A1 B2", ""]
    assert track("A0") == "A1"
    assert [track("") for _ in range(6)] == [""] * 6
    assert not track.tracker.lost, "all tracks are removed"
    assert [track("A0 B1"), track("B1 C2 A0")] == ["A3 B4", "A3 B4 C5"]


def test_new_track_in_the_position_of_an_older_lost_one_is_a_duplicate() -> None:
    track = TrackerHarness(CONFIRMED)
    for _ in range(3):
        assert track("A0 B1") == "A1 B2"
    assert track("C0 B1") == "B2 C1", "another appearance in its position is matched by overlap"
    assert track("B1") == "B2"
    assert track("D0 B1") == "B2", "the lost track is older"
    assert track("C0 B1") == "B2 C1"


def test_younger_of_two_duplicates_is_removed() -> None:
    track = TrackerHarness(CONFIRMED)
    assert [track("A0") for _ in range(4)] == ["A1"] * 4
    nearby = [24.0, 10, 20, 50]
    assert track("A0 B1", POSITIONS | {1: nearby}) == "A1 B2"
    # A moves to the position of B, which is lost and younger
    assert [track("A0", {0: nearby}) for _ in range(12)] == ["A1"] * 12
    assert track("A0 B5", POSITIONS | {0: nearby}) == "A1 B3"


def test_gating_refuses_similar_but_distant_pairs() -> None:
    """One frame after a track begins, the variance of x is the sum of position (h/10)^2, velocity (h/16)^2, process
    noise (h/20)^2 and measurement noise (h/20)^2: 47.27 for a height h of 50. The squared Mahalanobis distance of a
    shift s is s^2 / 47.27, and its cost is 0.02 times that; the gate is at 9.49, the limit of the cost at 0.7.
    """
    gated = AssociationSettings(motion_weight=0.02, confirm_at_once=True)
    ungated = replace(gated, gating=False)
    # shift 20: distance 8.46, within the gate; 22: 10.24, beyond the gate, cost 0.2; 60: 76.2, cost 1.5
    for shift, settings, expected in (
        (20, gated, 1), (22, gated, 2), (22, ungated, 1), (60, ungated, 2), (60, CONFIRMED, 1),
    ):  # fmt: skip
        track = TrackerHarness(settings)
        assert track("A0") == "A1"
        assert track("A1", {1: [float(shift), 10, 20, 50]}) == f"A{expected}", (shift, settings)


def test_without_appearance_only_positions_matter() -> None:
    track = TrackerHarness(AssociationSettings(confirm_at_once=True, use_appearance=False))
    assert track("A0 B1") == "A1 B2"
    assert track("A1 B0") == "A2 B1", "ids follow the positions"
    assert track("A1") == "A2"
    assert track("B4 A1") == "A2 B3", "a lost track is not recovered"


def test_boxes_are_those_of_the_kalman_filter() -> None:
    track = TrackerHarness()
    motion = BoxFilter(np.array(POSITIONS[0]))
    track("A0")
    np.testing.assert_allclose(track.boxes, [POSITIONS[0]], atol=1e-6)
    moved = [8.0, 14.0, 22.0, 52.0]
    motion.predict()
    motion.update(np.array(moved))
    track("A0", {0: moved})
    np.testing.assert_allclose(track.boxes, [motion.box()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motion_weight": 1.0}, "motion_weight: expected a number in [0, 1), got 1.0"),
        ({"motion_weight": -0.1}, "motion_weight: expected a number in [0, 1), got -0.1"),
        ({"patience": -1}, "patience: expected at least 0 frames, got -1"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as error:
        AssociationSettings(**settings)  # type: ignore[arg-type]
    assert str(error.value) == message
