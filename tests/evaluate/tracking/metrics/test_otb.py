import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.metrics.propagation import box_metrics, box_scores, paired_iou
from mec.evaluate.tracking.sequences import Boxes, BoxSequence, ImageFrames
from tests.conftest import GOLDEN

NAN = float("nan")


def boxes(*rows: tuple[float, ...]) -> Boxes:
    return np.array(rows, np.float64)


def sequence(name: str, ground_truth: Boxes, *attributes: str) -> BoxSequence:
    return BoxSequence(name, ImageFrames(()), ground_truth, attributes)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1),
        ((0, 0, 10, 10), (5, 0, 10, 10), 50 / 150),
        ((0, 0, 10, 10), (5, 5, 10, 10), 25 / 175),
        ((0, 0, 10, 10), (2, 3, 4, 5), 20 / 100),
        ((0, 0, 10, 10), (10, 0, 10, 10), 0),  # a common edge only
        ((0, 0, 10, 10), (-30, -30, 10, 10), 0),  # two negative sides are no area
        ((-4, -4, 8, 8), (0, 0, 4, 4), 16 / 64),
        ((0.5, 0.5, 1, 1), (1, 0.5, 1, 1), 0.5 / 1.5),
        ((3, 3, 0, 0), (3, 3, 0, 0), 0),
    ],
)
def test_iou_by_hand(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    for a, b in ((first, second), (second, first)):
        assert paired_iou(boxes(a), boxes(b))[0] == pytest.approx(expected, abs=1e-15)


def test_iou_of_equal_boxes_is_at_most_1() -> None:
    ground_truth = np.random.default_rng(0).uniform(0.1, 900, (1000, 4))
    assert box_metrics(ground_truth, ground_truth) == {"AUC": pytest.approx(20 / 21), "precision": 1}


def test_success_is_strictly_above_the_threshold() -> None:
    """IoUs of 1/2 (threshold 10), 1/4 (5), 0 and 1: three are above 0, only the last one is above 0.5."""
    ground_truth = boxes(*[(0, 0, 4, 4)] * 4)
    tracked = boxes((0, 0, 4, 2), (0, 0, 2, 2), (4, 0, 4, 4), (0, 0, 4, 4))
    assert box_metrics(ground_truth, tracked)["AUC"] == pytest.approx((0.75 * 5 + 0.5 * 5 + 0.25 * 10) / 21)


def test_precision_includes_equality() -> None:
    """Centers 0, 5 (3, 4), 20 (12, 16) and 20.5 pixels apart, the last two because of their size only."""
    ground_truth = boxes((10, 10, 4, 4), (10, 10, 4, 4), (10, 10, 4, 4), (10, 10, 4, 4))
    tracked = boxes((10, 10, 4, 4), (13, 14, 4, 4), (10, 10, 28, 36), (10, 10, 45, 4))
    assert box_metrics(ground_truth, tracked)["precision"] == 0.75


def test_frames_without_ground_truth_are_ignored_and_lost_tracks_count() -> None:
    ground_truth = boxes((0, 0, 4, 4), (NAN,) * 4, (0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4))
    tracked = boxes((0, 0, 4, 4), (0, 0, 4, 4), (NAN,) * 4, (NAN, 0, 4, 4), (0, 0, 4, 4))
    assert box_metrics(ground_truth, tracked) == {"AUC": pytest.approx(0.5 * 20 / 21), "precision": 0.5}


def test_rows_of_sequences_attributes_and_all() -> None:
    """Targets have equal weights, whatever their length: AUCs 20/21, 10/21 (IoUs of 1/2) and 0."""
    full = np.tile(boxes((0, 0, 4, 4)), (9, 1))
    half = np.tile(boxes((0, 0, 4, 2)), (9, 1))
    away = np.tile(boxes((100, 0, 4, 4)), (2, 1))
    sequences = [sequence("c", full, "OCC", "SV"), sequence("a", full, "OCC"), sequence("b", full[:2])]
    scores = box_scores(sequences, {"a": half, "b": away, "c": full, "another": full})
    assert list(scores) == ["c", "a", "b", "OCC (2)", "SV (1)", "all"]
    aucs = [20 / 21, 10 / 21, 0, 15 / 21, 20 / 21, 10 / 21]
    assert [row["AUC"] for row in scores.values()] == pytest.approx(aucs)
    assert [row["precision"] for row in scores.values()] == pytest.approx([1, 1, 0, 1, 1, 2 / 3])
    with pytest.raises(KeyError, match="b"):
        box_scores(sequences, {"a": half, "c": full})


@cache
def read_ground_truths(folder: Path) -> dict[str, Boxes]:
    """Read the ground truth of all targets, independently of the reader."""
    lists = {"attr_list", "cvpr13", "tb_50", "tb_100"}
    files = [file for file in (folder / "anno").glob("*.txt") if file.stem not in lists]
    return {f.stem: np.array([re.findall(r"[-\d.]+", line) for line in f.open()], np.float64) for f in files}


def published_metrics(folder: Path, tracker: str, names: str, tiger_from: int) -> Iterator[tuple[float, float]]:
    ground_truths = read_ground_truths(folder)
    results = {f.stem.lower(): f for f in (folder / "results" / tracker).glob("*.json")}
    for line in (folder / "anno" / f"{names}.txt").read_text().splitlines():
        name = line.split("\t")[0]
        tracked = np.array(json.loads(results[name.lower()].read_text())[0]["res"], np.float64)
        first = tiger_from if name == "Tiger1" else 0
        ground_truth = ground_truths[name][
            first : first + len(tracked)
        ]  # the invalid boxes of Board and Twinnings are included here
        metrics = box_metrics(ground_truth, tracked[: len(ground_truth)])
        yield metrics["AUC"], metrics["precision"]


@pytest.mark.parametrize(
    ("tracker", "names", "tiger_from", "expected"),
    [
        # Tiger1 has 349 results for 354 frames: the values published with the files take the first 349
        ("STRUCK", "cvpr13", 0, (0.472, 0.653)),
        ("STRUCK", "tb_100", 0, (0.462, 0.638)),
        ("MEEM", "cvpr13", 0, (0.556, 0.800)),
        ("MUSTer", "cvpr13", 0, (0.634, 0.853)),
        # the paper (Wu et al., CVPR 2013) takes the last 349, which the results belong to
        ("STRUCK", "cvpr13", 5, (0.474, 0.656)),
    ],
)
def test_published_results_of_trackers(
    real_data: Path, tracker: str, names: str, tiger_from: int, expected: tuple[float, float]
) -> None:
    folder = real_data / "OTB100"
    if not (folder / "results" / tracker).is_dir():
        pytest.skip(f"no results of {tracker} in {folder}")
    metrics = np.array(list(published_metrics(folder, tracker, names, tiger_from)))
    assert len(metrics) == {"cvpr13": 51, "tb_100": 100}[names]
    np.testing.assert_allclose(metrics.mean(axis=0), expected, atol=0.0005)


def test_static_box_matches_unitracks_values(real_data: Path) -> None:
    """UniTrack's reference run has success AUC and precision within 20 pixels for six targets."""
    if not (real_data / "OTB100").is_dir():
        pytest.skip(f"no OTB100 in {real_data}")
    expected = json.loads((GOLDEN / "unitrack.json").read_text())["sot"]["static_box_baseline"]
    loads = open_box_sequences(real_data / "OTB100", list(expected))
    assert len(loads) == 6
    for name, load in loads.items():
        sequence = load()
        metrics = box_metrics(sequence.ground_truth, np.tile(sequence.ground_truth[:1], (len(sequence.frames), 1)))
        assert round(metrics["AUC"], 4) == expected[name]["success_auc"]
        assert round(metrics["precision"], 4) == expected[name]["precision_20px"]
