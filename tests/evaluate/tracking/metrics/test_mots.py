from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.mots_format import found_masks, write_masks_text
from mec.evaluate.tracking.metrics.mots import compare_masks, mots_scores
from mec.evaluate.tracking.sequences import FrameObjects
from tests.evaluate.tracking.mots_scenes import Line, block, challenge, kitti, rle

trackeval = pytest.importorskip("trackeval")


def tracks(*frames: list[tuple[int, np.ndarray]]) -> list[FrameObjects]:
    return [
        found_masks([rle(mask) for _, mask in some], np.ones(len(some)), np.array([i for i, _ in some], np.int64))
        for some in frames
    ]


def test_one_swap_by_hand(tmp_path: Path) -> None:
    """Two objects in four frames, who change tracks in the middle; one mask has 8 of the true one's 10 columns."""
    a, b = block(0, 0, 10, 10), block(30, 0, 10, 10)
    challenge(tmp_path, [(f, i, 2, m) for f in (1, 2, 3, 4) for i, m in ((2001, a), (2002, b))], count=4)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    found = tracks([(1, a), (2, b)], [(1, block(0, 0, 8, 10)), (2, b)], [(2, a), (1, b)], [(2, a), (1, b)])
    scores = mots_scores({"MOTS20-02": compare_masks(sequence, found)})
    row = scores["MOTS20-02"]
    assert row == scores["all"]
    assert (row["switches"], row["false"], row["missed"]) == (2, 0, 0)
    assert row["MOTSA"] == pytest.approx(1 - 2 / 8)
    assert row["MOTSP"] == pytest.approx(7.8 / 8)
    assert row["sMOTSA"] == pytest.approx((7.8 - 2) / 8)
    assert row["IDF1"] == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("left", "width", "false"),
    [(32, 5, 0), (26, 8, 1), (25, 12, 0), (24, 10, 1), (15, 10, 1)],
)
def test_masks_by_more_than_half_in_an_ignored_region_do_not_count(
    tmp_path: Path, left: int, width: int, false: int
) -> None:
    """The region has columns 30 to 49."""
    person, region = block(0, 0, 10, 10), block(30, 0, 20, 20)
    challenge(tmp_path, [(1, 2001, 2, person), (1, 10000, 10, region)], count=1)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    mask = block(left, 2, width, 5)
    row = mots_scores({"a": compare_masks(sequence, tracks([(1, person), (2, mask)]))})["a"]
    assert (row["false"], row["missed"]) == (false, 0)


def test_nothing_found_and_nothing_there(tmp_path: Path) -> None:
    kitti(tmp_path, [(0, 1001, 1, block(0, 0))], count=2)
    car, pedestrian = (load() for load in open_mask_detections(tmp_path).values())
    nothing = tracks([], [])
    some = tracks([(1, block(0, 0))], [])
    scores = mots_scores({"0002 car": compare_masks(car, nothing), "0002 pedestrian": compare_masks(pedestrian, some)})
    assert (scores["0002 car"]["missed"], scores["0002 car"]["sMOTSA"]) == (1, 0)
    assert (scores["0002 pedestrian"]["false"], scores["0002 pedestrian"]["sMOTSA"]) == (1, 0)
    assert scores["all"]["sMOTSA"] == -1
    assert list(scores) == ["0002 car", "0002 pedestrian", "all", "all car", "all pedestrian"]
    assert scores["all car"] == scores["0002 car"]


def random_scene(chance: np.random.Generator, category: int, first: int) -> tuple[list[Line], list[FrameObjects]]:
    """Six frames of a truth in rows apart, an ignored region, and tracks that shift, swap, miss and invent."""
    lines: list[Line] = []
    frames = []
    for frame in range(first, first + 6):
        found = []
        for k in range(3):
            left = int(chance.integers(0, 30))
            if chance.random() < 0.8:
                lines.append((frame, 1000 * category + k, category, block(left, 10 * k, 12, 9)))
            if chance.random() < 0.8:
                shift, swap = chance.integers(-3, 4), chance.random() < 0.2
                found.append((k + 5 * swap + 1, block(max(0, left + shift), 10 * k, 12, 9)))
        lines.append((frame, 10000, 10, block(45, 0, 12, 30)))
        if chance.random() < 0.3:
            found.append((50, block(int(chance.integers(36, 46)), 31, 9, 9)))
        found.append((51, block(int(chance.integers(40, 50)), 0, 9, 9)))
        frames.append(found)
    return lines, tracks(*frames)


@pytest.mark.parametrize("form", ["MOTSChallenge", "KittiMOTS"])
def test_trackeval_says_the_same_of_the_files(tmp_path: Path, form: str) -> None:
    """The files that are written, read and judged by trackeval alone."""
    chance, challenged = np.random.default_rng(3), form == "MOTSChallenge"
    names = ["MOTS20-02", "MOTS20-05"] if challenged else ["0002 pedestrian", "0006 pedestrian"]
    all_tracks = {}
    for name in names:
        lines, all_tracks[name] = random_scene(chance, 2, 1 if challenged else 0)
        video = name.split()[0]
        challenge(tmp_path, lines, 6, video) if challenged else kitti(tmp_path, lines, 6, video)
    loads = open_mask_detections(tmp_path)
    ours = mots_scores({name: compare_masks(loads[name](), all_tracks[name]) for name in names})
    for name in names:
        write_masks_text(tmp_path / "out" / "mine" / "data", name, all_tracks[name])
        if not challenged:
            file = tmp_path / "out" / "mine" / "data" / f"{name}.txt"
            file.rename(file.with_name(f"{name.split()[0]}.txt"))
    place = "{gt_folder}/train/{seq}/gt/gt.txt" if challenged else "{gt_folder}/instances_txt/{seq}.txt"
    rules = getattr(trackeval.datasets, form)(
        {
            "GT_FOLDER": str(tmp_path),
            "GT_LOC_FORMAT": place,
            "TRACKERS_FOLDER": str(tmp_path / "out"),
            "TRACKERS_TO_EVAL": ["mine"],
            "SEQ_INFO": {name.split()[0]: 6 for name in names},
            "SKIP_SPLIT_FOL": True,
            "CLASSES_TO_EVAL": ["pedestrian"],
            "PRINT_CONFIG": False,
        }
    )
    metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR({"PRINT_CONFIG": False})]
    metrics.append(trackeval.metrics.Identity({"PRINT_CONFIG": False}))
    each: list[dict] = [{}, {}, {}]
    for name in names:
        raw = rules.get_raw_seq_data("mine", name.split()[0])
        data = rules.get_preprocessed_seq_data(raw, "pedestrian")
        for metric, results in zip(metrics, each, strict=True):
            results[name] = metric.eval_sequence(data)
    columns = {"sMOTSA": "sMOTA", "MOTSA": "MOTA", "MOTSP": "MOTP", "IDF1": "IDF1", "HOTA": "HOTA", "switches": "IDSW"}
    for name in [*names, "all"]:
        theirs = {}
        for metric, results in zip(metrics, each, strict=True):
            theirs.update(metric.combine_sequences(results) if name == "all" else results[name])
        for ours_, name_of_theirs in columns.items():
            assert ours[name][ours_] == pytest.approx(np.mean(theirs[name_of_theirs]), abs=1e-12), ours_
    assert ours["all"]["switches"] > 0
    assert 0 < ours["all"]["sMOTSA"] < ours["all"]["MOTSA"] < 1


def test_overlapping_tracks_are_judged_as_they_are_written(tmp_path: Path) -> None:
    person = block(0, 0, 10, 10)
    challenge(tmp_path, [(1, 2001, 2, person)], count=1)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    rival = found_masks([rle(person), rle(block(6, 0, 10, 10))], np.array([0.5, 0.9]), np.array([1, 2]))
    row = mots_scores({"a": compare_masks(sequence, [rival])})["a"]
    assert row["MOTSP"] == pytest.approx(0.6), "of 10 columns 4 belong to the better score"


def test_other_numbers_of_frames_are_refused(tmp_path: Path) -> None:
    challenge(tmp_path, [(1, 2001, 2, block(0, 0))], count=2)
    with pytest.raises(ValueError, match="expected tracks of 2 frames, got 1"):
        compare_masks(open_mask_detections(tmp_path)["MOTS20-02"](), tracks([]))
