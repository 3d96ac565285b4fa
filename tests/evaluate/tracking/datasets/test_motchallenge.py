import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mec.errors import InputError
from mec.evaluate.tracking.datasets.motchallenge import (
    open_box_detections,
    read_detections,
    read_ground_truth,
    read_tracks,
    write_tracks,
)
from mec.evaluate.tracking.metrics.identity import box_similarities, identity_scores
from mec.evaluate.tracking.sequences import UNUSABLE, DetectionSequence, FrameObjects, ImageFrames

INI = "[Sequence]\nname=x\nimDir=img1\nframeRate=14\nseqLength=3\nimWidth=64\nimHeight=48\nimExt=.png\n"
GT = "1,1,2,3,10,20,1,1,1\n1,2,30,3,10,20,1,1,0.5\n2,1,3,3,10,20,1,1,1\n3,2,30,4,10,20,0,1,1\n3,9,50,4,10,20,1,7,1\n"
DET = "1,-1,2.5,3,10,20,0.9\n3,-1,30,4,10,20,0.5\n1,-1,30,3,10,20,0.7\n3,-1,50,4,10,20,0.51\n"


def write(folder: Path, *frames: str, gt: str | None = GT, det: str | None = DET, ini: str | None = INI) -> Path:
    """Write a sequence; None omits the file."""
    for file, text in (("gt/gt.txt", gt), ("det/det.txt", det), ("seqinfo.ini", ini)):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            (folder / file).write_bytes(text.encode("latin-1"))
    (folder / "img1").mkdir()
    for number, name in enumerate(frames or ("000001.png", "000002.png", "000003.png"), 1):
        Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / "img1" / name)
    return folder


def load(folder: Path, detections: str | None = None, min_score: float = 0.5) -> DetectionSequence:
    return open_box_detections(folder, detections, min_score)[folder.name]()


def boxes(sequence: DetectionSequence) -> list[list[list[float]]]:
    return [frame_objects.boxes.tolist() for frame_objects in sequence.detections]


def tracks(*frames: dict[int, list[float]]) -> list[FrameObjects]:
    return [
        FrameObjects(np.array(list(f.values()), float).reshape(-1, 4), np.ones(len(f)), np.array(list(f), np.int64))
        for f in frames
    ]


def text_only(folder: Path, name: str, text: str, frames: int) -> DetectionSequence:
    (folder / f"{name}.txt").write_text(text)
    return DetectionSequence(name, ImageFrames(()), (), read_ground_truth(folder / f"{name}.txt", frames, name))


def test_metrics_match_published_values(real_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackeval")
    folder, similarities = real_data / "MOT15", {}
    for name, frames in (("TUD-Campus", 71), ("TUD-Stadtmitte", 179)):
        ground_truth = read_ground_truth(folder / "train" / name / "gt/gt.txt", frames, name)
        tracked = read_tracks(folder / "results", name, frames)
        similarities[name] = box_similarities(DetectionSequence(name, ImageFrames(()), (), ground_truth), tracked)
    scores = identity_scores(similarities)
    output, log = capfd.readouterr()
    assert (output, len(log.splitlines())) == ("", 2), "trackeval prints nothing"
    assert "TUD-Campus: gt.txt has no classes, so all boxes are evaluated as people, as in MOT15" in log
    columns = ("IDF1", "IDP", "IDR", "MOTA", "MOTP", "FP", "FN", "ID switches", "Frag")
    for name, published in (
        ("TUD-Campus", (55.8, 73.0, 45.1, 52.6, 72.3, 13, 150, 7, 7)),
        ("TUD-Stadtmitte", (64.5, 82.0, 53.1, 56.4, 65.4, 45, 452, 7, 6)),
    ):
        row = [scores[name][c] for c in columns]
        assert tuple(round(100 * v, 1) if isinstance(v, float) else v for v in row) == published
    assert [scores["all"][c] for c in columns[5:]] == [58, 602, 14, 13]


def test_real_mot17_detections(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loads = open_box_detections(real_data / "MOT17-mini")
    ground_truth_loads = open_box_detections(real_data / "MOT17-mini", "gt", names=["*-FRCNN"])
    assert capsys.readouterr() == ("", ""), "nothing is read before it is loaded"
    expected_counts = {
        "02": (4, 88), "04": (8, 336), "05": (6, 45), "09": (4, 24), "10": (5, 95), "11": (7, 119), "13": (5, 107),
    }  # fmt: skip
    assert list(loads) == list(ground_truth_loads) == [f"MOT17-{number}-FRCNN" for number in expected_counts]
    for name, (frames, people) in zip(loads, expected_counts.values(), strict=True):
        sequence = loads[name]()
        lines = np.loadtxt(real_data / "MOT17-mini/train" / name / "det/det.txt", delimiter=",")
        kept_rows = lines[(lines[:, 0] <= frames) & (lines[:, 6] > 0.5)]
        assert (len(sequence.frames), len(sequence.detections)) == (frames, frames)
        assert sequence.frames.frame_rate == {"05": 14, "13": 25}.get(name[6:8], 30)
        for number, frame_objects in enumerate(sequence.detections, 1):
            np.testing.assert_array_equal(frame_objects.boxes, kept_rows[kept_rows[:, 0] == number, 2:6])
            np.testing.assert_array_equal(frame_objects.scores, kept_rows[kept_rows[:, 0] == number, 6])
            assert frame_objects.ids is None
        assert sum(len(frame_objects) for frame_objects in ground_truth_loads[name]().detections) == people
    assert "MOT17-02-FRCNN: 4 frames exist, 600 are in seqinfo.ini" in capsys.readouterr().err


def perturbed(ground_truth: list[np.ndarray], seed: int) -> Iterator[FrameObjects]:
    """Yield ground truth boxes of all classes, some of them missing, moved or with swapped ids."""
    random = np.random.default_rng(seed)
    for rows in ground_truth:
        kept_rows = rows[random.random(len(rows)) < 0.9]
        moved = kept_rows[:, 2:6] + random.normal(0, 0.08, (len(kept_rows), 4)) * kept_rows[:, [4, 5, 4, 5]]
        ids = kept_rows[:, 1].astype(np.int64)
        if random.random() < 0.3 and len(ids) > 1:
            ids[:2] = ids[1::-1]
        yield FrameObjects(np.abs(moved), random.random(len(ids)), ids)


def test_metrics_match_trackevals_command(real_data: Path, tmp_path: Path) -> None:
    trackeval = pytest.importorskip("trackeval")
    data_folders = {"MOT15": (real_data / "MOT15/train", ("TUD-Campus", "TUD-Stadtmitte"))}
    mini = real_data / "MOT17-mini/train"
    data_folders["MOT17"] = mini, tuple(sorted(f.name for f in mini.iterdir()))
    for benchmark, (data_folder, names) in data_folders.items():
        gt_folder, tracks_folder = tmp_path / benchmark / "gt", tmp_path / benchmark / "tracks"
        similarities, lengths = {}, {}
        for seed, name in enumerate(names):
            shutil.copytree(data_folder / name / "gt", gt_folder / name / "gt", dirs_exist_ok=True)
            table = np.loadtxt(gt_folder / name / "gt/gt.txt", delimiter=",")
            lengths[name] = int(table[:, 0].max())
            rows = [table[table[:, 0] == frame] for frame in range(1, lengths[name] + 1)]
            tracked = list(perturbed(rows, seed))
            write_tracks(tracks_folder / "ours/data", name, tracked)
            ground_truth = read_ground_truth(gt_folder / name / "gt/gt.txt", lengths[name], name)
            assert ground_truth.benchmark == benchmark
            similarities[name] = box_similarities(DetectionSequence(name, ImageFrames(()), (), ground_truth), tracked)
        ours = identity_scores(similarities)
        assert 0.1 < ours["all"]["HOTA"] < 0.9
        assert min(ours["all"][c] for c in ("ID switches", "Frag", "FP", "FN")) > 0
        quiet = dict.fromkeys(("PRINT_RESULTS", "PRINT_CONFIG", "OUTPUT_SUMMARY", "OUTPUT_DETAILED"), False)
        evaluator = trackeval.Evaluator({**quiet, "PLOT_CURVES": False, "TIME_PROGRESS": False, "BREAK_ON_ERROR": True})
        dataset = trackeval.datasets.MotChallenge2DBox(
            {
                "GT_FOLDER": str(gt_folder), "TRACKERS_FOLDER": str(tracks_folder), "BENCHMARK": benchmark,
                "SEQ_INFO": lengths, "SKIP_SPLIT_FOL": True, "PRINT_CONFIG": False,
            }
        )  # fmt: skip
        library = trackeval.metrics
        metrics = [library.HOTA(), library.CLEAR(), library.Identity()]
        trackeval_scores = evaluator.evaluate([dataset], metrics)[0]["MotChallenge2DBox"]["ours"]
        for name in (*names, "all"):
            metrics_by_family = trackeval_scores["COMBINED_SEQ" if name == "all" else name]["pedestrian"]
            values = {**metrics_by_family["HOTA"], **metrics_by_family["CLEAR"], **metrics_by_family["Identity"]}
            renamed = {"ID switches": "IDSW", "Frag": "Frag", "FP": "CLR_FP", "FN": "CLR_FN"}
            expected = {column: np.mean(values[renamed.get(column, column)]) for column in ours[name]}
            assert ours[name] == pytest.approx(expected, rel=1e-9, abs=1e-9)


CLASS_LINES = "1,1,0,0,10,20,1,1,1\n1,2,100,0,10,20,1,{},1\n1,3,200,0,10,20,0,1,1\n2,1,0,0,10,20,1,1,1\n"


@pytest.mark.parametrize(
    ("name", "class_id", "false_positives"),
    [
        ("MOT17-99", 2, 1), ("MOT20-99", 12, 1), ("MOT17-99", 3, 2), ("MOT17-99", 6, 2), ("MOT20-99", 6, 1),
    ],
)  # fmt: skip
def test_matches_with_distractors_are_removed(tmp_path: Path, name: str, class_id: int, false_positives: int) -> None:
    """A match with a pedestrian of flag 0 is a false positive; non-motorized vehicles are distractors only in MOT20."""
    pytest.importorskip("trackeval")
    sequence = text_only(tmp_path, name, CLASS_LINES.format(class_id), 3)
    tracked = tracks({5: [0, 0, 10, 20], -6: [102, 0, 10, 20], 10**12: [200, 0, 10, 20]}, {}, {})
    similarities = box_similarities(sequence, tracked)
    assert [len(frame) for frame in similarities.ground_truth_ids] == [1, 1, 0]
    assert [len(frame) for frame in similarities.track_ids] == [1 + false_positives, 0, 0]
    row = identity_scores({name: similarities})["all"]
    assert (row["FP"], row["FN"], row["MOTP"]) == (false_positives, 1, 1.0)
    assert row["MOTA"] == pytest.approx((2 - 1 - false_positives) / 2)


@pytest.mark.parametrize("rest", ["1,-1,-1,-1", "1,4.5,5.5,0", "1,-1,-1", "1,-1", "1"])
def test_mot15_has_no_classes(tmp_path: Path, rest: str) -> None:
    pytest.importorskip("trackeval")
    flagless = "0" + rest[1:]
    text = f"1,4,0,0,10,20,{rest}\n1,2,100,0,10,20,{flagless}\n"
    sequence = text_only(tmp_path, "MOT17-like", text, 1)
    assert sequence.ground_truth.benchmark == "MOT15"
    row = identity_scores({"a": box_similarities(sequence, tracks({1: [0, 0, 10, 20], 2: [100, 0, 10, 20]}))})["a"]
    assert (row["FP"], row["FN"], row["IDP"], row["IDR"]) == (1, 0, 0.5, 1.0)


def test_ground_truth_without_flags_is_evaluated(tmp_path: Path) -> None:
    ground_truth = text_only(tmp_path, "a", "1,4,0,0,10,20\n1,2,100,0,10,20\n", 1).ground_truth
    assert ground_truth.benchmark == "MOT15"
    assert (ground_truth.flags[0].tolist(), ground_truth.ids[0].tolist()) == ([1, 1], [4, 2])


def test_tracks_round_trip(tmp_path: Path) -> None:
    tracked = tracks({5: [0.1, 1 / 3, 1e-7, 2e9], -2: [-1, 2, 3, 4]}, {}, {5: [0, 0, 10, 20]})
    write_tracks(tmp_path, "a", tracked)
    assert (tmp_path / "a.txt").read_text().splitlines()[1] == "1,-2,-1.0,2.0,3.0,4.0,1.0,-1,-1,-1"
    read_back = read_tracks(tmp_path, "a", 4)
    for written, read in zip([*tracked, *tracks({})], read_back, strict=True):
        np.testing.assert_array_equal(written.boxes, read.boxes)
        np.testing.assert_array_equal(written.ids, read.ids)
        np.testing.assert_array_equal(written.scores, read.scores)
    with pytest.raises(UNUSABLE, match=r"a.txt: line 3: expected a frame of 1 to 2"):
        read_tracks(tmp_path, "a", 2)
    with pytest.raises(AssertionError):
        write_tracks(tmp_path, "a", [*tracks({1: [0, 0, 1, 1]}), FrameObjects(np.zeros((1, 4)), np.ones(1))])
    assert len(read_tracks(tmp_path, "a", 4)[0]) == 2, "the previous file is kept"
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    write_tracks(tmp_path, "none", tracks({}, {}))
    assert [len(frame_objects) for frame_objects in read_tracks(tmp_path, "none", 2)] == [0, 0]


def test_detections_and_ground_truth_boxes_of_a_small_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = load(write(tmp_path / "a"))
    assert (sequence.name, sequence.frames.frame_rate, len(sequence.frames)) == ("a", 14, 3)
    assert [frame[0, 0, 0] for frame in sequence.frames] == [1, 2, 3]
    assert boxes(sequence) == [[[2.5, 3, 10, 20], [30, 3, 10, 20]], [], [[50, 4, 10, 20]]]
    assert [frame_objects.scores.tolist() for frame_objects in sequence.detections] == [[0.9, 0.7], [], [0.51]]
    assert boxes(load(tmp_path / "a", "gt")) == [[[2, 3, 10, 20], [30, 3, 10, 20]], [[3, 3, 10, 20]], []]
    assert boxes(load(tmp_path / "a", min_score=0.7)) == [[[2.5, 3, 10, 20]], [], []]
    (tmp_path / "a/seqinfo.ini").unlink()
    assert (len(load(tmp_path / "a").frames), load(tmp_path / "a").frames.frame_rate) == (3, 30)
    capsys.readouterr()
    assert boxes(load(tmp_path / "a", min_score=0.9)) == [[], [], []]
    assert capsys.readouterr().err.splitlines() == [
        "a: no frameRate in seqinfo.ini, 30 per second is assumed",
        "a: 2 of 5 lines of gt.txt are ignored: 1 with flag 0, 1 of other classes than 1",
        "a: 4 of 4 lines of det.txt are ignored: 4 with scores up to 0.9",
        "warning: a: no detection in any of the 3 frames, so there will be no tracks",
    ]


@pytest.mark.parametrize(
    ("line", "scores"),
    [
        ("{},-1,{},3,10,20,{},-1,-1,-1", [0.9, 0.4]),
        ("{},{},3,10,20,{}", [0.9, 0.4]),
        ("{},-1,{},3,10,20,-1", [1, 1]),
        ("{},-1,{},3,10,20", [1, 1]),
    ],
)
def test_formats_of_detections(tmp_path: Path, line: str, scores: list[float]) -> None:
    """Six columns are without id unless column 2 is -1; without scores all boxes are kept."""
    (tmp_path / "det.txt").write_text(line.format(2, 7, 0.9) + "\n\n" + line.format(1, 6, 0.4) + "\n")
    first, second = read_detections(tmp_path / "det.txt", 2, 0.3, "a")
    assert (first.boxes.tolist(), second.boxes.tolist()) == ([[6, 3, 10, 20]], [[7, 3, 10, 20]])
    assert [*second.scores, *first.scores] == scores
    less = read_detections(tmp_path / "det.txt", 2, 0.4, "a")
    assert len(less[0]) == (scores == [1, 1])


@pytest.mark.parametrize("file_name", ["MOT17-01-SDP.txt", "MOT17-01-SDP/det.txt", "MOT17-01-SDP/det/det.txt"])
def test_detections_from_another_folder(tmp_path: Path, file_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    names = [f"MOT17-01-{detector}" for detector in ("DPM", "FRCNN", "SDP")]
    for name in names:
        write(tmp_path / "train" / name, det=None)
    (tmp_path / "test").mkdir()
    file = tmp_path / "own" / file_name
    file.parent.mkdir(parents=True)
    file.write_text(DET)
    loads = open_box_detections(tmp_path, "~/own")
    assert list(loads) == names
    assert "test is ignored" in loads.description
    assert '2 sequences repeat the video of another one, --sequences "*-FRCNN"' in loads.description
    assert len(loads["MOT17-01-SDP"]().detections[0]) == 2
    with pytest.raises(UNUSABLE, match=r"own/MOT17-01-DPM.txt cannot be read .No such file"):
        loads["MOT17-01-DPM"]()
    assert list(open_box_detections(tmp_path, "gt", names=["*-S?P", "*-DPM"])) == [names[0], names[2]]
    with pytest.raises(InputError, match=r"^sequences: .*MOT17-01-SDP"):
        open_box_detections(tmp_path, names=["MOT17-1-SDP"])
    for detections in (None, str(tmp_path / "test"), "GT"):
        with pytest.raises(InputError, match=r'^detections: expected "gt" or a file .*01-DPM'):
            open_box_detections(tmp_path, detections)
