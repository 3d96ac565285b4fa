import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.metrics.otb import box_figures, box_scores, overlaps, precision, success
from mec.evaluate.tracking.sequences import Boxes, BoxSequence, ImageFrames

NAN = float("nan")


def boxes(*rows: tuple[float, ...]) -> Boxes:
    return np.array(rows, np.float64)


def sequence(name: str, truth: Boxes, *attributes: str) -> BoxSequence:
    return BoxSequence(name, ImageFrames(()), truth, attributes)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1),
        ((0, 0, 10, 10), (5, 0, 10, 10), 50 / 150),
        ((0, 0, 10, 10), (5, 5, 10, 10), 25 / 175),
        ((0, 0, 10, 10), (2, 3, 4, 5), 20 / 100),
        ((0, 0, 10, 10), (10, 0, 10, 10), 0),  # only an edge in common
        ((0, 0, 10, 10), (-30, -30, 10, 10), 0),  # two negative sides are no area
        ((-4, -4, 8, 8), (0, 0, 4, 4), 16 / 64),
        ((0.5, 0.5, 1, 1), (1, 0.5, 1, 1), 0.5 / 1.5),
        ((3, 3, 0, 0), (3, 3, 0, 0), 0),
    ],
)
def test_overlaps_by_hand(one: tuple[float, ...], other: tuple[float, ...], expected: float) -> None:
    for a, b in ((one, other), (other, one)):
        assert overlaps(boxes(a), boxes(b))[0] == pytest.approx(expected, abs=1e-15)


def test_equal_boxes_never_overlap_by_more_than_all() -> None:
    truth = np.random.default_rng(0).uniform(0.1, 900, (1000, 4))
    assert success(truth, truth).tolist() == [1] * 20 + [0]
    assert box_figures(truth, truth) == {"AUC": pytest.approx(20 / 21), "precision": 1}


def test_success_is_strictly_above_the_threshold() -> None:
    """Overlaps of 1/2 (threshold 10), 1/4 (5), 0 and 1: at 0 three are above, at 0.5 the full one alone."""
    truth = boxes(*[(0, 0, 4, 4)] * 4)
    found = boxes((0, 0, 4, 2), (0, 0, 2, 2), (4, 0, 4, 4), (0, 0, 4, 4))
    assert success(truth, found).tolist() == [0.75] * 5 + [0.5] * 5 + [0.25] * 10 + [0]


def test_precision_includes_the_distance() -> None:
    """Centers 0, 5 (3, 4), 20 (12, 16) and 20.5 pixels apart, the last two by their size alone."""
    truth = boxes((10, 10, 4, 4), (10, 10, 4, 4), (10, 10, 4, 4), (10, 10, 4, 4))
    found = boxes((10, 10, 4, 4), (13, 14, 4, 4), (10, 10, 28, 36), (10, 10, 45, 4))
    expected = [0.25] * 5 + [0.5] * 15 + [0.75] + [1] * 30
    assert precision(truth, found).tolist() == expected
    assert box_figures(truth, found)["precision"] == 0.75


def test_frames_without_a_true_box_do_not_count_and_lost_trackers_do() -> None:
    truth = boxes((0, 0, 4, 4), (NAN,) * 4, (0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4))
    found = boxes((0, 0, 4, 4), (0, 0, 4, 4), (NAN,) * 4, (NAN, 0, 4, 4), (0, 0, 4, 4))
    assert success(truth, found)[0] == 0.5
    assert precision(truth, found).tolist() == [0.5] * 51


def test_what_is_not_a_box_for_every_frame() -> None:
    truth = np.ones((3, 4))
    for wrong in (np.ones((2, 4)), np.ones((1, 4)), np.ones((3, 3)), np.ones(4)):
        with pytest.raises(ValueError, match=r"boxes: expected one for every frame, \(frames, 4\) \(3, 4\), got"):
            success(truth, wrong)
    with pytest.raises(ValueError, match="truth: expected a box in at least one frame"):
        precision(truth * NAN, truth)


def test_rows_of_sequences_of_attributes_and_of_all() -> None:
    """Every target counts as much as another, however long: AUCs 20/21, 10/21 (overlaps of 1/2) and 0."""
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
def otb(folder: Path) -> dict[str, Boxes]:
    """The truth of all targets, read by a line of its own."""
    lists = {"attr_list", "cvpr13", "tb_50", "tb_100"}
    files = [file for file in (folder / "anno").glob("*.txt") if file.stem not in lists]
    return {f.stem: np.array([re.findall(r"[-\d.]+", line) for line in f.open()], np.float64) for f in files}


def published(folder: Path, tracker: str, names: str, tiger_from: int) -> Iterator[tuple[float, float]]:
    truths = otb(folder)
    results = {f.stem.lower(): f for f in (folder / "results" / tracker).glob("*.json")}
    for line in (folder / "anno" / f"{names}.txt").read_text().splitlines():
        name = line.split("\t")[0]
        found = np.array(json.loads(results[name.lower()].read_text())[0]["res"], np.float64)
        first = tiger_from if name == "Tiger1" else 0
        truth = truths[name][first : first + len(found)]  # two rows of zeros, of Board and Twinnings, count here
        figures = box_figures(truth, found[: len(truth)])
        yield figures["AUC"], figures["precision"]


@pytest.mark.parametrize(
    ("tracker", "names", "tiger_from", "expected"),
    [
        # of Tiger1 there are 349 results for 354 frames: the figures that came with the files take the first 349
        ("STRUCK", "cvpr13", 0, (0.472, 0.653)),
        ("STRUCK", "tb_100", 0, (0.462, 0.638)),
        ("MEEM", "cvpr13", 0, (0.556, 0.800)),
        ("MUSTer", "cvpr13", 0, (0.634, 0.853)),
        # those of the paper (Wu et al., CVPR 2013) the last, which they are of
        ("STRUCK", "cvpr13", 5, (0.474, 0.656)),
    ],
)
def test_published_trackers(
    real_data: Path, tracker: str, names: str, tiger_from: int, expected: tuple[float, float]
) -> None:
    folder = real_data / "OTB100"
    if not (folder / "results" / tracker).is_dir():
        pytest.skip(f"no results of {tracker} in {folder}")
    figures = np.array(list(published(folder, tracker, names, tiger_from)))
    assert len(figures) == {"cvpr13": 51, "tb_100": 100}[names]
    np.testing.assert_allclose(figures.mean(axis=0), expected, atol=0.0005)


def test_the_first_box_kept_has_the_figures_of_another_program(real_data: Path) -> None:
    """UniTrack's reference run has that of six targets, as success AUC and precision within 20 pixels."""
    reference = real_data.parent / "golden" / "unitrack.json"
    if not (reference.is_file() and (real_data / "OTB100").is_dir()):
        pytest.skip(f"no OTB100 in {real_data} or no {reference}")
    expected = json.loads(reference.read_text())["sot"]["static_box_baseline"]
    loads = open_box_sequences(real_data / "OTB100", list(expected))
    assert len(loads) == 6
    for name, load in loads.items():
        one = load()
        figures = box_figures(one.truth, np.tile(one.truth[:1], (len(one.frames), 1)))
        assert round(figures["AUC"], 4) == expected[name]["success_auc"]
        assert round(figures["precision"], 4) == expected[name]["precision_20px"]
