from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from mec.evaluate.tracking.metrics.identity import Compared, identity_scores, numbered

pytest.importorskip("trackeval")
ROUND = {"rel": 1e-12, "abs": 1e-12}
ZERO = dict.fromkeys(("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR", "MOTA", "MOTP"), 0.0)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def compared(frames: Iterable[tuple[np.ndarray, np.ndarray]], similarity: float = 1.0) -> Compared:
    """Object n of the truth is where object n of the found is."""
    truth, found = zip(*frames, strict=True)
    return Compared(truth, found, [np.eye(len(a), len(b)) * similarity for a, b in zip(truth, found, strict=True)])


def swapped(frames: int) -> Compared:
    half = frames // 2
    return compared([(ids(1, 2), ids(5, 6))] * half + [(ids(1, 2), ids(6, 5))] * half)


def lost_and_invented() -> Compared:
    """Ten frames of somebody; a track has 3, then misses 4, then has 3; another track is of nobody in 3 of those 4."""
    there, lost = (ids(7), ids(3)), (ids(7), ids())
    apart = Compared([ids(7)] * 3, [ids(4)] * 3, [np.zeros((1, 1))] * 3)
    rest = compared([there] * 3 + [lost] + [there] * 3, 0.82)
    return Compared(
        [*rest.truth_ids[:4], *apart.truth_ids, *rest.truth_ids[4:]],
        [*rest.found_ids[:4], *apart.found_ids, *rest.found_ids[4:]],
        [*rest.similarities[:4], *apart.similarities, *rest.similarities[4:]],
    )


def test_two_that_swap_their_ids_once() -> None:
    scores = identity_scores({"swap": swapped(10)})
    # each of 20 matches is of a pair with 5 in common, 5 of the truth's elsewhere and 5 of the track's elsewhere
    expected = {"DetA": 1, "AssA": 1 / 3, "HOTA": (1 / 3) ** 0.5, "IDF1": 0.5, "IDP": 0.5, "IDR": 0.5}
    counts = {"MOTA": 18 / 20, "MOTP": 1, "switches": 2, "fragmentations": 0, "false": 0, "missed": 0}
    assert scores["swap"] == pytest.approx({**expected, **counts}, **ROUND)
    assert scores["all"] == scores["swap"]


def test_one_who_is_lost_and_one_who_is_not_there() -> None:
    row = identity_scores({"one": lost_and_invented()})["one"]
    levels = 16 / 19  # thresholds 0.05 to 0.80 of 0.05 to 0.95 are below the overlap of 0.82
    expected = {"DetA": levels * 6 / 13, "AssA": levels * 6 / 10, "HOTA": levels * (6 / 13 * 6 / 10) ** 0.5}
    identities = {"IDF1": 6 / (6 + (3 + 4) / 2), "IDP": 6 / 9, "IDR": 6 / 10}
    counts = {"MOTA": (6 - 3) / 10, "MOTP": 0.82, "switches": 0, "fragmentations": 1, "false": 3, "missed": 4}
    assert row == pytest.approx({**expected, **identities, **counts}, **ROUND)
    assert list(row) == [*ZERO, "switches", "fragmentations", "false", "missed"]
    assert {column: type(value) for column, value in row.items()} == {
        **dict.fromkeys(ZERO, float),
        **dict.fromkeys(("switches", "fragmentations", "false", "missed"), int),
    }


def test_all_is_of_the_summed_counts() -> None:
    scores = identity_scores({"swap": swapped(10), "one": lost_and_invented()})
    assert list(scores) == ["swap", "one", "all"]
    row = scores["all"]
    assert [row[c] for c in ("switches", "fragmentations", "false", "missed")] == [2, 1, 3, 4]
    assert row["MOTA"] == pytest.approx((26 - 3 - 2) / 30, **ROUND)
    assert row["MOTP"] == pytest.approx((20 + 6 * 0.82) / 26, **ROUND)
    assert row["IDF1"] == pytest.approx(16 / (16 + (13 + 14) / 2), **ROUND)
    assert (row["IDP"], row["IDR"]) == pytest.approx((16 / 29, 16 / 30), **ROUND)
    low, high = (26 / 33, (20 / 3 + 6 * 0.6) / 26), (20 / 39, 1 / 3)  # below and above an overlap of 0.82
    assert row["DetA"] == pytest.approx((16 * low[0] + 3 * high[0]) / 19, **ROUND)
    assert row["AssA"] == pytest.approx((16 * low[1] + 3 * high[1]) / 19, **ROUND)
    hota = [(detection * association) ** 0.5 for detection, association in (low, high)]
    assert row["HOTA"] == pytest.approx((16 * hota[0] + 3 * hota[1]) / 19, **ROUND)


def test_sequences_without_truth_or_tracks_are_zeros_and_count() -> None:
    nobody, no_track = compared([(ids(), ids(3, 4))] * 5), compared([(ids(3, 4), ids())] * 4)
    neither, no_frame = compared([(ids(), ids())] * 3), Compared([], [], [])
    parts = {"nobody": nobody, "no track": no_track, "neither": neither, "no frame": no_frame}
    rows = identity_scores({**parts, "swap": swapped(10)})
    none = {**ZERO, "switches": 0, "fragmentations": 0}
    assert rows["nobody"] == {**none, "false": 10, "missed": 0}
    assert rows["no track"] == {**none, "false": 0, "missed": 8}
    assert rows["neither"] == rows["no frame"] == {**none, "false": 0, "missed": 0}
    assert [rows["all"][c] for c in ("false", "missed", "switches")] == [10, 8, 2]
    assert rows["all"]["DetA"] == pytest.approx(20 / 38, **ROUND)
    assert rows["all"]["MOTA"] == pytest.approx((20 - 10 - 2) / 28, **ROUND)
    assert rows["all"]["IDF1"] == pytest.approx(10 / (10 + (10 + 8) / 2 + (10 + 10) / 2), **ROUND)
    alone = identity_scores({"no track": no_track})
    assert alone["all"] == alone["no track"] == {**none, "false": 0, "missed": 8}


def test_any_ids_will_do_nothing_is_changed_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    one = swapped(10)
    strange = replace(
        one,
        truth_ids=[np.where(frame == 1, 10**15, -3) for frame in one.truth_ids],
        found_ids=[np.where(frame == 5, 10**12, 0) for frame in one.found_ids],
    )
    before = [frame.copy() for frame in (*strange.truth_ids, *strange.found_ids, *strange.similarities)]
    assert identity_scores({"a": strange}) == identity_scores({"a": one})
    after = [*strange.truth_ids, *strange.found_ids, *strange.similarities]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert capfd.readouterr() == ("", "")


def test_ids_are_numbered_without_gaps() -> None:
    frames = [ids(7, -3), ids(), ids(900, 7)]
    assert [frame.tolist() for frame in numbered(frames)] == [[1, 0], [], [2, 1]]
    assert numbered([]) == []
    assert [frame.tolist() for frame in numbered([ids(), ids()])] == [[], []]


def test_what_does_not_fit_is_refused() -> None:
    one = swapped(4)
    with pytest.raises(ValueError, match=r"s: frame 1: expected similarities of \(2, 2\), got \(2, 3\)"):
        identity_scores({"s": replace(one, similarities=[np.zeros((2, 3))] * 4)})
    for side in ("truth_ids", "found_ids"):
        twice = [*getattr(one, side)[:2], ids(4, 4), ids(1, 2)]
        with pytest.raises(ValueError, match="s: frame 3 has an id twice"):
            identity_scores({"s": replace(one, **{side: twice})})
    with pytest.raises(ValueError, match="shorter"):
        identity_scores({"s": replace(one, found_ids=one.found_ids[:3])})
