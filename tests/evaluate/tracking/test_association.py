"""Assignment against all ways to pair; the lives of tracks by sequences worked out by hand."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mec.errors import InputError
from mec.evaluate.tracking.association import Association, Associator, assign, overlaps
from mec.evaluate.tracking.motion import Motion

Floats = NDArray[np.float64]
LOOKS = dict(zip("ABCDEF", torch.eye(6)[:, :, None], strict=True))
"""Of objects: a letter is like itself and like no other."""
AT = {place: [100.0 * place, 10.0, 20.0, 50.0] for place in range(8)}
"""Boxes that overlap with none but themselves."""
BOXES = Association()
SURE = Association(confirmed=True)


def cost_of(costs: Floats, limit: float, pairs: list[tuple[int, int]]) -> float:
    """Every pair that is not taken costs the limit, as often as there could be one."""
    return sum(costs[pair] for pair in pairs) + limit * (min(costs.shape) - len(pairs))


def cheapest(costs: Floats, limit: float) -> float:
    rows, columns = costs.shape
    if rows > columns:
        return cheapest(costs.T, limit)
    return min(
        sum(min(limit, costs[row, column]) for row, column in enumerate(way))
        for way in permutations(range(columns), rows)
    )


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 4), (5, 3), (6, 2)])
@pytest.mark.parametrize("limit", [0.2, 0.5, 0.9])
def test_assignment_is_the_cheapest_of_all_ways(shape: tuple[int, int], limit: float) -> None:
    rng = np.random.default_rng(0)
    for trial in range(30):
        costs = rng.random(shape)
        costs[rng.random(shape) < 0.2] = np.inf
        given = np.where((rng.random(shape) < 0.5) & np.isinf(costs), np.nan, costs)
        pairs = assign(given, limit)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
        assert all(costs[pair] < limit for pair in pairs), trial
        assert cost_of(costs, limit, pairs) == pytest.approx(cheapest(costs, limit)), trial


def test_a_pair_less_is_taken_where_all_together_cost_less() -> None:
    # two pairs at 0.8 cost more than one at 0.1 and one left apart at 0.5, as long as that is the limit
    costs = np.array([[0.1, 0.8], [0.8, np.inf]])
    assert assign(costs, 0.5) == [(0, 0)]
    assert assign(costs, 2.0) == [(0, 1), (1, 0)]
    assert assign(np.full((2, 3), np.nan), 1.0) == []
    assert assign(np.full((2, 2), np.inf), 1.0) == []
    assert assign(np.zeros((0, 3)), 1.0) == assign(np.zeros((3, 0)), 1.0) == []


def test_overlaps_by_hand() -> None:
    some = np.array([[0, 0, 10, 10], [5, 5, 10, 20], [0, 0, 0, 0]], float)
    others = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [20, 20, 1, 1], [2, 2, 5, 5]], float)
    wanted = [[1, 1 / 3, 0, 1 / 4], [25 / 275, 50 / 250, 0, 4 / 221], [0, 0, 0, 0]]
    np.testing.assert_allclose(overlaps(some, others), wanted)
    assert overlaps(some, np.zeros((0, 4))).shape == (3, 0)


class Video:
    """What is seen in each frame in words: "A0 B2" is A at place 0 and B at place 2; the answer is "A1": A has id 1."""

    def __init__(self, settings: Association = BOXES, rate: float = 30.0) -> None:
        self.settings, self.associator = settings, Associator(settings, rate)
        self.boxes = np.zeros((0, 4))

    def __call__(self, seen: str, places: dict[int, list[float]] = AT) -> str:
        words = seen.split()
        boxes = np.array([places[int(word[1])] for word in words]).reshape(-1, 4)
        looks = [LOOKS[word[0]] for word in words] if self.settings.appearance else []
        ids, numbers, self.boxes = self.associator.step(boxes, looks)
        assert len(ids) == len(numbers) == len(self.boxes)
        assert ids.tolist() == sorted(set(ids.tolist()))
        return " ".join(sorted(f"{words[number][0]}{id_}" for id_, number in zip(ids, numbers, strict=True)))


def test_all_of_the_first_frame_are_tracks_and_newcomers_wait_for_a_second() -> None:
    video = Video()
    assert video("A0 B1") == "A1 B2"
    assert video("A0 B1 C2") == "A1 B2", "seen once"
    assert video("A0 B1 C2") == "A1 B2 C3"
    assert video("D3 C2") == "C3"
    assert video("C2") == "C3"
    assert video("C2 D3") == "C3", "the first time it was seen is forgotten"
    assert video("C2 D3") == "C3 D5", "and so is that number"


def test_newcomers_are_tracks_at_once_where_that_is_asked_for() -> None:
    video = Video(SURE)
    assert [video("A0"), video("A0 B1"), video("C2")] == ["A1", "A1 B2", "C3"]


def test_newcomers_are_joined_by_place_and_not_by_looks() -> None:
    video = Video()
    video("A0")
    assert video("A0 B1") == "A1"
    assert video("A0 B4") == "A1", "the same look elsewhere is another newcomer"
    assert video("A0 C4") == "A1 C3", "another look in its place is the same"


def test_looks_decide_where_boxes_are_the_same() -> None:
    video = Video()
    assert [video(seen) for seen in ("A0 B1", "A1 B0", "B5 A6")] == ["A1 B2"] * 3
    assert video("A6") == "A1"


def test_a_track_is_joined_by_overlap_where_its_look_has_changed() -> None:
    shifted = AT | {9: [6.0, 10.0, 20.0, 50.0], 8: [106.0 + 7.0, 10.0, 20.0, 50.0]}
    video = Video(SURE)
    video("A0 B1")
    # by 6 pixels of 20, and by 13
    assert video("C9 D8", shifted) == "C1 D3"
    assert video("C9", shifted) == "C1", "the track has its new look"


@pytest.mark.parametrize(("published", "width"), [(True, 21), (False, 20)])
def test_how_much_boxes_must_overlap(published: bool, width: int) -> None:
    """Of two boxes of a width w the share is (w - away) / (w + away): a half for tracks, 0.3 for newcomers.

    Published figures take boxes of 20 pixels to be 21 wide.
    """
    settings = Association(published=published)
    for nearer, joined in ((0.01, True), (-0.01, False)):
        video = Video(settings)
        video("A0")
        assert video("B1", {1: [width / 3 - nearer, 10, 20, 50]}) == ("B1" if joined else "")
        video = Video(settings)
        video("A0")
        assert video("A0 B2") == "A1"
        moved = {2: [200 + width * 0.7 / 1.3 - nearer, 10, 20, 50]}
        assert video("A0 C2", AT | moved) == ("A1 C2" if joined else "A1")


def test_a_track_that_is_lost_is_joined_by_looks_only() -> None:
    video = Video(replace(SURE, duplicate_cost=0.0))
    video("A0 B1")
    assert video("B1") == "B2"
    assert video("C0 B1") == "B2 C3", "in its place, but not like it"
    assert video("A7 B1 C0") == "A1 B2 C3", "like it, anywhere"


@pytest.mark.parametrize(("rate", "patience"), [(30.0, 3), (15.0, 1), (60.0, 6), (30.0, 0)])
def test_lost_within_and_beyond_patience(rate: float, patience: int) -> None:
    """Of a track out of sight for as long as patience says, and a frame more, the published code still knows."""
    settings = Association(confirmed=True, patience=0 if patience == 0 else 3)
    for away, expected in ((patience + 1, "A1"), (patience + 2, "A3")):
        video = Video(settings, rate)
        assert video("A0 B1") == "A1 B2"
        for _ in range(away):
            assert video("B1") == "B2"
        assert video("A4 B1") == f"{expected} B2"


def test_an_object_comes_back_from_behind_another() -> None:
    """It is hidden for five frames while it goes on, and comes out where no box was."""
    video = Video()
    for frame in range(5):
        assert video("A0 B5", AT | {0: [10.0 * frame, 10, 20, 50]}) == "A1 B2"
    for _ in range(5):
        assert video("B5") == "B2"
    assert video("A0 B5", AT | {0: [180.0, 10, 20, 50]}) == "A1 B2"


def test_frames_without_anything_and_no_number_twice() -> None:
    video = Video(Association(confirmed=True, patience=1))
    assert video("") == ""
    assert [video("A0 B1"), video("")] == ["A1 B2", ""]
    assert video("A0") == "A1"
    assert [video("") for _ in range(6)] == [""] * 6
    assert not video.associator.lost, "all are forgotten"
    assert [video("A0 B1"), video("B1 C2 A0")] == ["A3 B4", "A3 B4 C5"]


def test_a_newcomer_in_the_place_of_an_older_track_that_is_lost_is_its_double() -> None:
    video = Video(SURE)
    for _ in range(3):
        assert video("A0 B1") == "A1 B2"
    assert video("C0 B1") == "B2 C1", "another look in its place is joined by overlap"
    assert video("B1") == "B2"
    assert video("D0 B1") == "B2", "there is one already, not in sight"
    assert video("C0 B1") == "B2 C1"


def test_the_younger_of_two_in_one_place_is_forgotten() -> None:
    video = Video(SURE)
    assert [video("A0") for _ in range(4)] == ["A1"] * 4
    beside = {0: [24.0, 10, 20, 50]}
    assert video("A0 B1", AT | {1: beside[0]}) == "A1 B2"
    # A goes where B was, which is lost and began later
    assert [video("A0", beside) for _ in range(12)] == ["A1"] * 12
    assert video("A0 B5", AT | beside) == "A1 B3"


def test_motion_refuses_what_is_alike_and_too_far() -> None:
    """After a frame the variance of x is (h/10)^2 + (h/16)^2 + 2 (h/20)^2, 47.27 for a height of 50."""
    gated = Association(motion=0.02, confirmed=True)
    shared = replace(gated, gated=False)
    # 22 pixels are 10.24 of it, beyond 9.49, but cost only 0.2; 60 are 76, and cost 1.5
    for away, settings, expected in ((20, gated, 1), (22, gated, 2), (22, shared, 1), (60, shared, 2), (60, SURE, 1)):
        video = Video(settings)
        assert video("A0") == "A1"
        assert video("A1", {1: [float(away), 10, 20, 50]}) == f"A{expected}", (away, settings)


def test_motion_alone_knows_no_looks() -> None:
    video = Video(Association(confirmed=True, appearance=False))
    assert video("A0 B1") == "A1 B2"
    assert video("A1 B0") == "A2 B1", "who is where is all there is"
    assert video("A1") == "A2"
    assert video("B4 A1") == "A2 B3", "what is lost is not found again"


def test_boxes_are_as_the_filter_has_them() -> None:
    video = Video()
    motion = Motion.of(np.array(AT[0]))
    video("A0")
    np.testing.assert_allclose(video.boxes, [AT[0]], atol=1e-6)
    moved = [8.0, 14.0, 22.0, 52.0]
    motion.predict(still_seen=True)
    motion.update(np.array(moved))
    video("A0", {0: moved})
    np.testing.assert_allclose(video.boxes, [motion.box()])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"motion": 1.0}, "motion: expected a share from 0 to below 1, got 1.0"),
        ({"motion": -0.1}, "motion: expected a share from 0 to below 1, got -0.1"),
        ({"patience": -1}, "patience: expected a number of frames, got -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as error:
        Association(**settings)  # type: ignore[arg-type]
    assert str(error.value) == said
