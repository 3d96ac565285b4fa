import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from scipy import ndimage

from mec.evaluate.tracking.datasets.davis import PALETTE, open_mask_sequences, read_masks
from mec.evaluate.tracking.metrics.davis import contours, mask_scores
from mec.evaluate.tracking.sequences import ImageFrames, Labels, MaskSequence

H, W = 40, 60


def sequence(truth: Sequence[Labels | None], name: str = "dog") -> MaskSequence:
    names = tuple(f"{i:05}" for i in range(len(truth)))
    return MaskSequence(name, ImageFrames(()), names, partial(_at, truth), PALETTE)


def _at(truth: Sequence[Labels | None], frame: int) -> Labels | None:
    return truth[frame]


def bar(width: int, label: int = 1, left: int = 0) -> Labels:
    """An object of so many columns, the whole height."""
    labels = np.zeros((H, W), np.uint8)
    labels[:, left : left + width] = label
    return labels


def contour(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixels that differ from the one to the right, below or to the lower right; the last row and column repeat."""
    rows, columns = mask.shape
    found = set()
    for y, x in np.ndindex(rows, columns):
        below, right = min(y + 1, rows - 1), min(x + 1, columns - 1)
        if any(mask[y, x] != other for other in (mask[y, right], mask[below, x], mask[below, right])):
            found.add((y, x))
    return found


def boundary_measure(truth: np.ndarray, found: np.ndarray) -> float:
    """DAVIS's F: both contours are made wider by a disk, of 0.008 of the diagonal, rounded up."""
    reach = int(np.ceil(0.008 * np.hypot(*truth.shape)))
    span = range(-reach, reach + 1)
    disk = [(y, x) for y in span for x in span if y * y + x * x <= reach * reach]
    edges = contour(truth), contour(found)
    if not (edges[0] and edges[1]):
        return 1.0 if not (edges[0] or edges[1]) else 0.0
    recall, precision = (
        len(own & {(y + dy, x + dx) for y, x in other for dy, dx in disk}) / len(own)
        for own, other in (edges, edges[::-1])
    )
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def trackevals(truth: np.ndarray, found: np.ndarray) -> float:
    """F of trackeval, where its libraries can be had."""
    for needed in ("cv2", "skimage.morphology", "pycocotools.mask"):
        pytest.importorskip(needed, exc_type=ImportError)
    trackeval = pytest.importorskip("trackeval")
    runs = [[[coco_mask.encode(np.asfortranarray(mask, np.uint8))]] for mask in (truth, found)]
    return float(trackeval.metrics.JAndF._compute_f(runs[0], runs[1], 0, 0, 0.008)[0])


@pytest.mark.parametrize(
    ("name", "published"), [("blackswan", 0.943), ("dog", 0.711), ("drift-straight", 0.665), ("libby", 0.623)]
)
def test_osvos_on_davis(real_data: Path, name: str, published: float) -> None:
    davis = real_data / "davis16-subset"
    one = open_mask_sequences(davis, [name])[name]()
    found = read_masks(davis / "DAVIS/results/semi-supervised/osvos", one)
    assert found is not None
    scores = mask_scores([one], {name: found})
    assert scores[name]["J"] == pytest.approx(published, abs=6e-4)
    assert scores["all"] == scores[name]


@pytest.mark.parametrize("seed", range(3))
def test_contours_are_those_of_trackeval(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, found = (ndimage.gaussian_filter(random.normal(size=(240, 427)), 9) > 0.01 for _ in range(2))
    assert contours(truth, found) == pytest.approx(trackevals(truth, found), abs=1e-12)


@pytest.mark.parametrize("name", ["dog", "libby"])
def test_contours_are_those_of_an_independent_measure(real_data: Path, name: str) -> None:
    davis = real_data / "davis16-subset"
    one = open_mask_sequences(davis, [name])[name]()
    found = read_masks(davis / "DAVIS/results/semi-supervised/osvos", one)
    assert found is not None
    values = []
    for i in (3, 25, 44):
        truth = one.truth(i)
        assert truth is not None
        three = sequence([truth] * 3)
        values.append(mask_scores([three], {"dog": [found[i]] * 3})["dog"]["F"])
        assert values[-1] == pytest.approx(boundary_measure(truth == 1, found[i] == 1), abs=1e-12)
    assert max(values) - min(values) > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_contours_at_the_edges_of_the_image(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, found = (ndimage.gaussian_filter(random.normal(size=(90, 130)), 5) > 0.02 for _ in range(2))
    row = mask_scores([sequence([truth.astype(np.uint8)] * 3)], {"dog": [found.astype(np.uint8)] * 3})["dog"]
    assert row["F"] == pytest.approx(boundary_measure(truth, found), abs=1e-12)
    assert row["J"] == pytest.approx((truth & found).sum() / (truth | found).sum(), abs=1e-12)
    assert row["J&F"] == pytest.approx((row["J"] + row["F"]) / 2)


def test_mean_recall_and_decay_worked_by_hand() -> None:
    # of 20 columns, a tenth less is found in each frame but the first and the last, which do not count; a half is no
    # more than a half
    found = [bar(0), *(bar(20 - 2 * i) for i in range(10)), bar(0)]
    row = mask_scores([sequence([bar(20)] * 12)], {"dog": found})["dog"]
    assert row["J"] == pytest.approx(0.55)
    assert row["J recall"] == pytest.approx(0.5)
    # quarters of 10 frames end at 1, 3.25, 5.5, 7.75 and 10, rounded 3 and 8: their means are .9 and .2
    assert row["J decay"] == pytest.approx(0.9 - 0.2)
    # a column one pixel off (0.008 of the diagonal, rounded up) is right, one further off is not
    assert row["F recall"] == pytest.approx(0.1)
    assert row["F decay"] == pytest.approx(1 / 3)
    assert row["F"] == pytest.approx(0.1)


def test_a_quarter_that_ends_between_two_frames() -> None:
    # of 7 frames they end at 1, 2.5, 4, 5.5 and 7; DAVIS rounds a half up, and so to 3 and 6
    found = [bar(0), *(bar(20 - 2 * i) for i in range(7)), bar(0)]
    row = mask_scores([sequence([bar(20)] * 9)], {"dog": found})["dog"]
    assert row["J decay"] == pytest.approx(0.9 - 0.45)


def test_decay_of_more_frames_than_eight_bits_count() -> None:
    small = [mask[:2, :4] for mask in (bar(2), bar(1))]
    row = mask_scores([sequence([small[0]] * 402)], {"dog": [small[i > 201] for i in range(402)]})["dog"]
    assert row["J"] == pytest.approx(0.5 * (201 + 199 / 2) / 200)
    assert row["J decay"] == pytest.approx(0.5)


def test_objects_that_change_places_are_wrong() -> None:
    # trackeval alone would match them by overlap and find no fault
    truth, swapped = bar(10) + bar(10, 2, 40), bar(10, 2) + bar(10, 1, 40)
    row = mask_scores([sequence([truth] * 4)], {"dog": [swapped] * 4})["dog"]
    assert row == dict.fromkeys(row, 0.0)
    kept = mask_scores([sequence([truth] * 4)], {"dog": [truth] * 4})["dog"]
    assert {kept[column] for column in ("J&F", "J", "J recall", "F", "F recall")} == {1.0}
    assert kept["J decay"] == kept["F decay"] == 0


def test_one_that_is_lost_and_labels_that_skip_some() -> None:
    truth = bar(10, 3) + bar(10, 7, 40)
    assert mask_scores([sequence([truth] * 4)], {"dog": [bar(10, 7, 40)] * 4})["dog"]["J"] == 0.5
    # what was found beyond the objects does not count by itself
    found = truth + bar(10, 9, 20)
    assert mask_scores([sequence([truth] * 4)], {"dog": [found] * 4})["dog"]["J&F"] == 1


def test_all_is_the_mean_of_objects_not_of_sequences() -> None:
    two = bar(10) + bar(10, 2, 40)
    scores = mask_scores([sequence([two] * 4, "a"), sequence([bar(8)] * 4, "b")], {"a": [two] * 4, "b": [bar(0)] * 4})
    assert list(scores) == ["a", "b", "all"]
    assert list(scores["all"]) == ["J&F", "J", "J recall", "J decay", "F", "F recall", "F decay"]
    assert (scores["a"]["J"], scores["b"]["J"]) == (1, 0)
    assert scores["all"]["J"] == scores["all"]["J&F"] == pytest.approx(2 / 3)
    assert all(type(value) is float for row in scores.values() for value in row.values())


def test_void_is_neither_right_nor_wrong() -> None:
    # DAVIS's own test of void pixels: everything else is right
    truth, found = np.zeros((2, 200, 200), np.uint8)
    truth[100:150, 100:150], truth[50:100, 100:150], found[50:150, 100:150] = 1, 255, 1
    first = np.where(truth == 255, 0, truth)
    for start in (first, truth):
        assert mask_scores([sequence([start, truth, truth, first])], {"dog": [found] * 4})["dog"]["J&F"] == 1
    assert mask_scores([sequence([first] * 4)], {"dog": [found] * 4})["dog"]["J"] == 0.5


def test_an_object_that_is_gone() -> None:
    found = [bar(10), bar(0), bar(10), bar(0)]
    row = mask_scores([sequence([bar(10), bar(0), bar(0), bar(0)])], {"dog": found})["dog"]
    assert row["J"] == row["F"] == 0.5


def test_frames_without_truth_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    truth = [bar(10), None, bar(10), None, bar(10), None]
    found = [bar(0), bar(0), bar(10), bar(0), bar(5), bar(0)]
    assert mask_scores([sequence(truth)], {"dog": found})["dog"]["J"] == pytest.approx(0.75)
    ends = sequence([bar(10), None, bar(10)], "ends")
    assert mask_scores([ends], {"ends": [bar(10)] * 3}) == {}
    assert "ends: no figures" in capsys.readouterr().err
    both = mask_scores([ends, sequence(truth)], {"ends": [bar(10)] * 3, "dog": found})
    assert list(both) == ["dog", "all"]
    assert mask_scores([sequence([bar(10)])], {"dog": [bar(10)]}) == {}


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="dog: expected labels of 4 frames, got 3"):
        mask_scores([sequence([bar(10)] * 4)], {"dog": [bar(10)] * 3})
    with pytest.raises(ValueError, match=r"dog: expected labels of \(40, 60\), got \(40, 59\) in frame 1"):
        mask_scores([sequence([bar(10)] * 4)], {"dog": [bar(10)[:, 1:]] * 4})


def test_sequences_are_asked_for_once_and_in_turn() -> None:
    asked: list[str] = []

    class OnDisk(Mapping[str, Sequence[Labels]]):
        def __getitem__(self, name: str) -> Sequence[Labels]:
            asked.append(name)
            return [bar(10)] * 4

        def __iter__(self) -> Iterator[str]:
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

    mask_scores([sequence([bar(10)] * 4, name) for name in "ba"], OnDisk())
    assert asked == ["b", "a"]


def test_ten_objects_of_480p_need_little_memory() -> None:
    labels = np.repeat(np.arange(12, dtype=np.uint8), 72)[:854] * np.ones((480, 1), np.uint8)
    labels[labels == 11] = 0
    many = sequence([labels] * 8)
    tracemalloc.start()
    try:
        mask_scores([many], {"dog": [labels] * 8})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
