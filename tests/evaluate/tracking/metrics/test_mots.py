from pathlib import Path

import numpy as np
import pytest

from mec.evaluate.tracking.datasets.mots import mask_objects, open_mask_detections, write_mots_tracks
from mec.evaluate.tracking.metrics.identity import mask_similarities, mots_scores
from mec.evaluate.tracking.sequences import FrameObjects
from tests.evaluate.tracking.mots_scenes import Line, block, rle, write_kitti, write_motschallenge

trackeval = pytest.importorskip("trackeval")


def tracks(*frames: list[tuple[int, np.ndarray]]) -> list[FrameObjects]:
    return [
        mask_objects(
            [rle(mask) for _, mask in objects], np.ones(len(objects)), np.array([i for i, _ in objects], np.int64)
        )
        for objects in frames
    ]


def test_one_id_swap_by_hand(tmp_path: Path) -> None:
    """Two objects in four frames swap tracks in the middle; one mask has 8 of the 10 columns of its object."""
    a, b = block(0, 0, 10, 10), block(30, 0, 10, 10)
    write_motschallenge(tmp_path, [(f, i, 2, m) for f in (1, 2, 3, 4) for i, m in ((2001, a), (2002, b))], count=4)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    tracked = tracks([(1, a), (2, b)], [(1, block(0, 0, 8, 10)), (2, b)], [(2, a), (1, b)], [(2, a), (1, b)])
    scores = mots_scores({"MOTS20-02": mask_similarities(sequence, tracked)})
    row = scores["MOTS20-02"]
    assert row == scores["all"]
    assert (row["ID switches"], row["FP"], row["FN"]) == (2, 0, 0)
    assert row["MOTSA"] == pytest.approx(1 - 2 / 8)
    assert row["MOTSP"] == pytest.approx(7.8 / 8)
    assert row["sMOTSA"] == pytest.approx((7.8 - 2) / 8)
    assert row["IDF1"] == pytest.approx(4 / 8)


@pytest.mark.parametrize(
    ("left", "width", "false_positives"),
    [(32, 5, 0), (26, 8, 1), (25, 12, 0), (24, 10, 1), (15, 10, 1)],
)
def test_masks_mostly_in_an_ignored_region_are_ignored(
    tmp_path: Path, left: int, width: int, false_positives: int
) -> None:
    """The region has columns 30 to 49."""
    person, region = block(0, 0, 10, 10), block(30, 0, 20, 20)
    write_motschallenge(tmp_path, [(1, 2001, 2, person), (1, 10000, 10, region)], count=1)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    mask = block(left, 2, width, 5)
    row = mots_scores({"a": mask_similarities(sequence, tracks([(1, person), (2, mask)]))})["a"]
    assert (row["FP"], row["FN"]) == (false_positives, 0)


def test_sequences_without_tracks_or_objects(tmp_path: Path) -> None:
    write_kitti(tmp_path, [(0, 1001, 1, block(0, 0))], count=2)
    car, pedestrian = (load() for load in open_mask_detections(tmp_path).values())
    no_tracks = tracks([], [])
    objects = tracks([(1, block(0, 0))], [])
    scores = mots_scores(
        {"0002 car": mask_similarities(car, no_tracks), "0002 pedestrian": mask_similarities(pedestrian, objects)}
    )
    assert (scores["0002 car"]["FN"], scores["0002 car"]["sMOTSA"]) == (1, 0)
    assert (scores["0002 pedestrian"]["FP"], scores["0002 pedestrian"]["sMOTSA"]) == (1, 0)
    assert scores["all"]["sMOTSA"] == -1
    assert list(scores) == ["0002 car", "0002 pedestrian", "all", "all car"], "no pedestrian is annotated"
    assert scores["all car"] == scores["0002 car"]


def random_scene(rng: np.random.Generator, category: int, first: int) -> tuple[list[Line], list[FrameObjects]]:
    """Return six frames of objects and an ignored region, and tracks with shifts, swaps, misses and false positives."""
    lines: list[Line] = []
    frames = []
    for frame in range(first, first + 6):
        tracked = []
        for k in range(3):
            left = int(rng.integers(0, 30))
            if rng.random() < 0.8:
                lines.append((frame, 1000 * category + k, category, block(left, 10 * k, 12, 9)))
            if rng.random() < 0.8:
                shift, swap = rng.integers(-3, 4), rng.random() < 0.2
                tracked.append((k + 5 * swap + 1, block(max(0, left + shift), 10 * k, 12, 9)))
        lines.append((frame, 10000, 10, block(45, 0, 12, 30)))
        if rng.random() < 0.3:
            tracked.append((50, block(int(rng.integers(36, 46)), 31, 9, 9)))
        tracked.append((51, block(int(rng.integers(40, 50)), 0, 9, 9)))
        frames.append(tracked)
    return lines, tracks(*frames)


@pytest.mark.parametrize("benchmark", ["MOTSChallenge", "KittiMOTS"])
def test_metrics_match_trackeval_on_the_files(tmp_path: Path, benchmark: str) -> None:
    """trackeval reads and evaluates the written files."""
    rng, is_motschallenge = np.random.default_rng(3), benchmark == "MOTSChallenge"
    names = ["MOTS20-02", "MOTS20-05"] if is_motschallenge else ["0002 pedestrian", "0006 pedestrian"]
    all_tracks = {}
    for name in names:
        lines, all_tracks[name] = random_scene(rng, 2, 1 if is_motschallenge else 0)
        video = name.split()[0]
        write_motschallenge(tmp_path, lines, 6, video) if is_motschallenge else write_kitti(tmp_path, lines, 6, video)
    loads = open_mask_detections(tmp_path)
    ours = mots_scores({name: mask_similarities(loads[name](), all_tracks[name]) for name in names})
    for name in names:
        write_mots_tracks(tmp_path / "out" / "mine" / "data", name, all_tracks[name])
        if not is_motschallenge:
            file = tmp_path / "out" / "mine" / "data" / f"{name}.txt"
            file.rename(file.with_name(f"{name.split()[0]}.txt"))
    location = "{gt_folder}/train/{seq}/gt/gt.txt" if is_motschallenge else "{gt_folder}/instances_txt/{seq}.txt"
    dataset = getattr(trackeval.datasets, benchmark)(
        {
            "GT_FOLDER": str(tmp_path),
            "GT_LOC_FORMAT": location,
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
    results_by_metric: list[dict] = [{}, {}, {}]
    for name in names:
        raw = dataset.get_raw_seq_data("mine", name.split()[0])
        data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
        for metric, results in zip(metrics, results_by_metric, strict=True):
            results[name] = metric.eval_sequence(data)
    columns = {
        "sMOTSA": "sMOTA",
        "MOTSA": "MOTA",
        "MOTSP": "MOTP",
        "IDF1": "IDF1",
        "HOTA": "HOTA",
        "ID switches": "IDSW",
    }
    for name in [*names, "all"]:
        expected = {}
        for metric, results in zip(metrics, results_by_metric, strict=True):
            expected.update(metric.combine_sequences(results) if name == "all" else results[name])
        for column, trackeval_column in columns.items():
            assert ours[name][column] == pytest.approx(np.mean(expected[trackeval_column]), abs=1e-12), column
    assert ours["all"]["ID switches"] > 0
    assert 0 < ours["all"]["sMOTSA"] < ours["all"]["MOTSA"] < 1


def test_overlaps_are_removed_before_evaluation(tmp_path: Path) -> None:
    person = block(0, 0, 10, 10)
    write_motschallenge(tmp_path, [(1, 2001, 2, person)], count=1)
    sequence = open_mask_detections(tmp_path)["MOTS20-02"]()
    overlapping = mask_objects([rle(person), rle(block(6, 0, 10, 10))], np.array([0.5, 0.9]), np.array([1, 2]))
    row = mots_scores({"a": mask_similarities(sequence, [overlapping])})["a"]
    assert row["MOTSP"] == pytest.approx(0.6), "of 10 columns, 4 belong to the mask with the higher score"
