from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from mec.evaluate.tracking.metrics.identity import SequenceSimilarities, contiguous_ids, identity_scores

pytest.importorskip("trackeval")
ROUND = {"rel": 1e-12, "abs": 1e-12}
ZERO = dict.fromkeys(("HOTA", "DetA", "AssA", "IDF1", "IDP", "IDR", "MOTA", "MOTP"), 0.0)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def similarities_of(frames: Iterable[tuple[np.ndarray, np.ndarray]], similarity: float = 1.0) -> SequenceSimilarities:
    """Return similarities in which object n of the ground truth matches track n."""
    ground_truth, tracked = zip(*frames, strict=True)
    return SequenceSimilarities(
        ground_truth, tracked, [np.eye(len(a), len(b)) * similarity for a, b in zip(ground_truth, tracked, strict=True)]
    )


def swapped(frames: int) -> SequenceSimilarities:
    half = frames // 2
    return similarities_of([(ids(1, 2), ids(5, 6))] * half + [(ids(1, 2), ids(6, 5))] * half)


def misses_and_false_positives() -> SequenceSimilarities:
    """An object in ten frames; a track matches 3, misses 4 and matches 3; another is a false positive in 3 of the 4."""
    matched, missed = (ids(7), ids(3)), (ids(7), ids())
    apart = SequenceSimilarities([ids(7)] * 3, [ids(4)] * 3, [np.zeros((1, 1))] * 3)
    rest = similarities_of([matched] * 3 + [missed] + [matched] * 3, 0.82)
    return SequenceSimilarities(
        [*rest.ground_truth_ids[:4], *apart.ground_truth_ids, *rest.ground_truth_ids[4:]],
        [*rest.track_ids[:4], *apart.track_ids, *rest.track_ids[4:]],
        [*rest.similarities[:4], *apart.similarities, *rest.similarities[4:]],
    )


def test_one_id_swap_by_hand() -> None:
    scores = identity_scores({"swap": swapped(10)})
    # each of 20 matches is of a pair with 5 common frames, 5 other frames of the object and 5 other frames of the track
    expected = {"DetA": 1, "AssA": 1 / 3, "HOTA": (1 / 3) ** 0.5, "IDF1": 0.5, "IDP": 0.5, "IDR": 0.5}
    counts = {"MOTA": 18 / 20, "MOTP": 1, "ID switches": 2, "Frag": 0, "FP": 0, "FN": 0}
    assert scores["swap"] == pytest.approx({**expected, **counts}, **ROUND)
    assert scores["all"] == scores["swap"]


def test_misses_and_false_positives_by_hand() -> None:
    row = identity_scores({"one": misses_and_false_positives()})["one"]
    levels = 16 / 19  # thresholds 0.05 to 0.80 of 0.05 to 0.95 are below the overlap of 0.82
    expected = {"DetA": levels * 6 / 13, "AssA": levels * 6 / 10, "HOTA": levels * (6 / 13 * 6 / 10) ** 0.5}
    identities = {"IDF1": 6 / (6 + (3 + 4) / 2), "IDP": 6 / 9, "IDR": 6 / 10}
    counts = {"MOTA": (6 - 3) / 10, "MOTP": 0.82, "ID switches": 0, "Frag": 1, "FP": 3, "FN": 4}
    assert row == pytest.approx({**expected, **identities, **counts}, **ROUND)
    assert list(row) == [*ZERO, "ID switches", "Frag", "FP", "FN"]
    assert {column: type(value) for column, value in row.items()} == {
        **dict.fromkeys(ZERO, float),
        **dict.fromkeys(("ID switches", "Frag", "FP", "FN"), int),
    }


def test_all_is_computed_from_summed_counts() -> None:
    scores = identity_scores({"swap": swapped(10), "one": misses_and_false_positives()})
    assert list(scores) == ["swap", "one", "all"]
    row = scores["all"]
    assert [row[c] for c in ("ID switches", "Frag", "FP", "FN")] == [2, 1, 3, 4]
    assert row["MOTA"] == pytest.approx((26 - 3 - 2) / 30, **ROUND)
    assert row["MOTP"] == pytest.approx((20 + 6 * 0.82) / 26, **ROUND)
    assert row["IDF1"] == pytest.approx(16 / (16 + (13 + 14) / 2), **ROUND)
    assert (row["IDP"], row["IDR"]) == pytest.approx((16 / 29, 16 / 30), **ROUND)
    low, high = (26 / 33, (20 / 3 + 6 * 0.6) / 26), (20 / 39, 1 / 3)  # below and above an overlap of 0.82
    assert row["DetA"] == pytest.approx((16 * low[0] + 3 * high[0]) / 19, **ROUND)
    assert row["AssA"] == pytest.approx((16 * low[1] + 3 * high[1]) / 19, **ROUND)
    hota = [(detection * association) ** 0.5 for detection, association in (low, high)]
    assert row["HOTA"] == pytest.approx((16 * hota[0] + 3 * hota[1]) / 19, **ROUND)


def test_sequences_without_ground_truth_or_tracks_are_zero() -> None:
    no_ground_truth, no_track = similarities_of([(ids(), ids(3, 4))] * 5), similarities_of([(ids(3, 4), ids())] * 4)
    neither, no_frame = similarities_of([(ids(), ids())] * 3), SequenceSimilarities([], [], [])
    sequences = {"no ground truth": no_ground_truth, "no track": no_track, "neither": neither, "no frame": no_frame}
    rows = identity_scores({**sequences, "swap": swapped(10)})
    zeros = {**ZERO, "ID switches": 0, "Frag": 0}
    assert rows["no ground truth"] == {**zeros, "FP": 10, "FN": 0}
    assert rows["no track"] == {**zeros, "FP": 0, "FN": 8}
    assert rows["neither"] == rows["no frame"] == {**zeros, "FP": 0, "FN": 0}
    assert [rows["all"][c] for c in ("FP", "FN", "ID switches")] == [10, 8, 2]
    assert rows["all"]["DetA"] == pytest.approx(20 / 38, **ROUND)
    assert rows["all"]["MOTA"] == pytest.approx((20 - 10 - 2) / 28, **ROUND)
    assert rows["all"]["IDF1"] == pytest.approx(10 / (10 + (10 + 8) / 2 + (10 + 10) / 2), **ROUND)
    scores = identity_scores({"no track": no_track})
    assert scores["all"] == scores["no track"] == {**zeros, "FP": 0, "FN": 8}


def test_any_ids_are_accepted_and_inputs_are_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    sequence = swapped(10)
    relabeled = replace(
        sequence,
        ground_truth_ids=[np.where(frame == 1, 10**15, -3) for frame in sequence.ground_truth_ids],
        track_ids=[np.where(frame == 5, 10**12, 0) for frame in sequence.track_ids],
    )
    before = [frame.copy() for frame in (*relabeled.ground_truth_ids, *relabeled.track_ids, *relabeled.similarities)]
    assert identity_scores({"a": relabeled}) == identity_scores({"a": sequence})
    after = [*relabeled.ground_truth_ids, *relabeled.track_ids, *relabeled.similarities]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert capfd.readouterr() == ("", "")


def test_contiguous_ids_have_no_gaps() -> None:
    frames = [ids(7, -3), ids(), ids(900, 7)]
    assert [frame.tolist() for frame in contiguous_ids(frames)] == [[1, 0], [], [2, 1]]
    assert contiguous_ids([]) == []
    assert [frame.tolist() for frame in contiguous_ids([ids(), ids()])] == [[], []]
