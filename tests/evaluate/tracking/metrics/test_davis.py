import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from scipy import ndimage

from mec.evaluate.tracking.datasets.davis import PALETTE, open_mask_sequences, read_masks
from mec.evaluate.tracking.metrics.propagation import contour_accuracy, mask_scores
from mec.evaluate.tracking.sequences import ImageFrames, Labels, MaskSequence

H, W = 40, 60


def sequence(ground_truth: Sequence[Labels | None], name: str = "dog") -> MaskSequence:
    names = tuple(f"{i:05}" for i in range(len(ground_truth)))
    return MaskSequence(name, ImageFrames(()), names, partial(_at, ground_truth), PALETTE)


def _at(ground_truth: Sequence[Labels | None], frame: int) -> Labels | None:
    return ground_truth[frame]


def bar(width: int, label: int = 1, left: int = 0) -> Labels:
    """Return labels with an object of full height, ``width`` columns wide."""
    labels = np.zeros((H, W), np.uint8)
    labels[:, left : left + width] = label
    return labels


def score(ground_truth: Sequence[Labels | None], predicted: Sequence[Labels]) -> dict[str, float]:
    """Return the metrics of one sequence."""
    return mask_scores([sequence(ground_truth)], lambda _: predicted)["dog"]


def contour(mask: np.ndarray) -> np.ndarray:
    """Return pixels that differ from the right, lower or lower right neighbor; the last row and column are repeated."""
    below, right = (np.concatenate([np.delete(mask, 0, axis), mask.take([-1], axis)], axis) for axis in (0, 1))
    below_right = np.concatenate([np.delete(right, 0, 0), right[-1:]])
    return (mask != below) | (mask != right) | (mask != below_right)


def boundary_measure(ground_truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute DAVIS's F by dilating both contours with a disk of 0.008 of the diagonal, rounded up."""
    reach = int(np.ceil(0.008 * np.hypot(*ground_truth.shape)))
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    edges = contour(ground_truth), contour(predicted)
    if not (edges[0].any() and edges[1].any()):
        return 1.0 if not (edges[0].any() or edges[1].any()) else 0.0
    recall, precision = (
        (own & ndimage.binary_dilation(other, y * y + x * x <= reach * reach)).sum() / own.sum()
        for own, other in (edges, edges[::-1])
    )
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def trackeval_f(ground_truth: np.ndarray, predicted: np.ndarray) -> float:
    """Compute F with trackeval; skips the test where its dependencies are missing."""
    for module in ("cv2", "skimage.morphology", "pycocotools.mask"):
        pytest.importorskip(module, exc_type=ImportError)
    trackeval = pytest.importorskip("trackeval")
    runs = [[[coco_mask.encode(np.asfortranarray(mask, np.uint8))]] for mask in (ground_truth, predicted)]
    return float(trackeval.metrics.JAndF._compute_f(runs[0], runs[1], 0, 0, 0.008)[0])


@pytest.mark.parametrize(("name", "published"), [("blackswan", 0.943), ("libby", 0.623)])
def test_osvos_matches_published_values_and_an_independent_contour_accuracy(
    real_data: Path, name: str, published: float
) -> None:
    davis = real_data / "davis16-subset"
    davis_sequence = open_mask_sequences(davis, [name])[name]()
    predicted = read_masks(davis / "DAVIS/results/semi-supervised/osvos", davis_sequence)
    assert predicted is not None
    scores = mask_scores([davis_sequence], lambda _: predicted)
    assert scores[name]["J mean"] == pytest.approx(published, abs=6e-4)
    assert scores["all"] == scores[name]
    for i in (3, 25, 44):
        ground_truth = davis_sequence.ground_truth(i)
        assert ground_truth is not None
        expected = boundary_measure(ground_truth == 1, predicted[i] == 1)
        assert contour_accuracy(ground_truth == 1, predicted[i] == 1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_contour_accuracy_matches_trackeval(seed: int) -> None:
    random = np.random.default_rng(seed)
    ground_truth, predicted = (ndimage.gaussian_filter(random.normal(size=(240, 427)), 9) > 0.01 for _ in range(2))
    assert contour_accuracy(ground_truth, predicted) == pytest.approx(trackeval_f(ground_truth, predicted), abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_contours_at_the_image_border(seed: int) -> None:
    random = np.random.default_rng(seed)
    ground_truth, predicted = (ndimage.gaussian_filter(random.normal(size=(90, 130)), 5) > 0.02 for _ in range(2))
    row = score([ground_truth.astype(np.uint8)] * 3, [predicted.astype(np.uint8)] * 3)
    assert row["F mean"] == pytest.approx(boundary_measure(ground_truth, predicted), abs=1e-12)
    assert row["J mean"] == pytest.approx(
        (ground_truth & predicted).sum() / (ground_truth | predicted).sum(), abs=1e-12
    )
    assert row["J&F"] == pytest.approx((row["J mean"] + row["F mean"]) / 2)


def test_mean_recall_and_decay_by_hand() -> None:
    # each evaluated frame finds a tenth less of 20 columns; the first and the last frame are ignored; an IoU of exactly
    # 0.5 is not above 0.5
    predicted = [bar(0), *(bar(20 - 2 * i) for i in range(10)), bar(0)]
    row = score([bar(20)] * 12, predicted)
    assert row["J mean"] == pytest.approx(0.55)
    assert row["J recall"] == pytest.approx(0.5)
    # quarters of 10 frames end at 1, 3.25, 5.5, 7.75 and 10, rounded 3 and 8: their means are .9 and .2
    assert row["J decay"] == pytest.approx(0.9 - 0.2)
    # a contour one pixel off (0.008 of the diagonal, rounded up) is correct, one further off is not
    assert row["F recall"] == pytest.approx(0.1)
    assert row["F decay"] == pytest.approx(1 / 3)
    assert row["F mean"] == pytest.approx(0.1)


def test_decay_rounds_the_ends_of_quarters_like_davis() -> None:
    # of 7 frames they end at 1, 2.5, 4, 5.5 and 7; DAVIS rounds a half up, and so to 3 and 6
    predicted = [bar(0), *(bar(20 - 2 * i) for i in range(7)), bar(0)]
    row = score([bar(20)] * 9, predicted)
    assert row["J decay"] == pytest.approx(0.9 - 0.45)


def test_decay_of_more_than_256_frames() -> None:
    small = [mask[:2, :4] for mask in (bar(2), bar(1))]
    row = score([small[0]] * 402, [small[i > 201] for i in range(402)])
    assert row["J mean"] == pytest.approx(0.5 * (201 + 199 / 2) / 200)
    assert row["J decay"] == pytest.approx(0.5)


def test_swapped_objects_are_wrong() -> None:
    # trackeval would match them by overlap and find no error
    ground_truth, swapped = bar(10) + bar(10, 2, 40), bar(10, 2) + bar(10, 1, 40)
    row = score([ground_truth] * 4, [swapped] * 4)
    assert row == dict.fromkeys(row, 0.0)
    correct = score([ground_truth] * 4, [ground_truth] * 4)
    assert {correct[column] for column in ("J&F", "J mean", "J recall", "F mean", "F recall")} == {1.0}
    assert correct["J decay"] == correct["F decay"] == 0


def test_lost_objects_and_labels_with_gaps() -> None:
    ground_truth = bar(10, 3) + bar(10, 7, 40)
    assert score([ground_truth] * 4, [bar(10, 7, 40)] * 4)["J mean"] == 0.5
    # predicted labels that no object has are ignored
    predicted = ground_truth + bar(10, 9, 20)
    assert score([ground_truth] * 4, [predicted] * 4)["J&F"] == 1


def test_all_is_the_mean_over_objects_not_sequences() -> None:
    two = bar(10) + bar(10, 2, 40)
    scores = mask_scores(
        [sequence([two] * 4, "a"), sequence([bar(8)] * 4, "b")], lambda s: [two if s.name == "a" else bar(0)] * 4
    )
    assert list(scores) == ["a", "b", "all"]
    assert list(scores["all"]) == ["J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay"]
    assert (scores["a"]["J mean"], scores["b"]["J mean"]) == (1, 0)
    assert scores["all"]["J mean"] == scores["all"]["J&F"] == pytest.approx(2 / 3)
    assert all(type(value) is float for row in scores.values() for value in row.values())


def test_void_pixels_are_ignored() -> None:
    # DAVIS's own test of void pixels: everything else is correct
    ground_truth, predicted = np.zeros((2, 200, 200), np.uint8)
    ground_truth[100:150, 100:150], ground_truth[50:100, 100:150], predicted[50:150, 100:150] = 1, 255, 1
    first = np.where(ground_truth == 255, 0, ground_truth)
    for start in (first, ground_truth):
        assert score([start, ground_truth, ground_truth, first], [predicted] * 4)["J&F"] == 1
    assert score([first] * 4, [predicted] * 4)["J mean"] == 0.5


def test_absent_objects() -> None:
    predicted = [bar(10), bar(0), bar(10), bar(0)]
    row = score([bar(10), bar(0), bar(0), bar(0)], predicted)
    assert row["J mean"] == row["F mean"] == 0.5


def test_frames_without_ground_truth_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    ground_truth = [bar(10), None, bar(10), None, bar(10), None]
    predicted = [bar(0), bar(0), bar(10), bar(0), bar(5), bar(0)]
    assert score(ground_truth, predicted)["J mean"] == pytest.approx(0.75)
    ends = sequence([bar(10), None, bar(10)], "ends")
    assert mask_scores([ends], lambda _: [bar(10)] * 3) == {}
    both = mask_scores([ends, sequence(ground_truth)], lambda s: [bar(10)] * 3 if s is ends else predicted)
    assert list(both) == ["dog", "all"]
    assert mask_scores([sequence([bar(10)])], lambda _: [bar(10)]) == {}


def test_memory_of_ten_objects_at_480p_is_small() -> None:
    labels = np.repeat(np.arange(12, dtype=np.uint8), 72)[:854] * np.ones((480, 1), np.uint8)
    labels[labels == 11] = 0
    many = sequence([labels] * 8)
    tracemalloc.start()
    try:
        mask_scores([many], lambda _: [labels] * 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
