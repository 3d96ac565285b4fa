import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.tracking.datasets.posetrack import open_poses, read_poses, write_poses
from mec.evaluate.tracking.datasets.posetrack_format import read_pose_frames
from mec.evaluate.tracking.sequences import DetectionSequence, FrameObjects, SequenceError
from mec.evaluate.tracking.skeletons import JOINTS
from tests.evaluate.tracking.pose_scenes import NAMES, VIDEO, body, image, older, person, posetrack18, rect

IMAGES = [image(0), image(1, labeled=False), image(2), image(3)]
PERSONS = [person(2, 4, body(90)), person(0, 4, body(80)), person(0, 9, body(150, unseen=["nose", "left_wrist"]))]


def tracked(sequence: DetectionSequence) -> list[FrameObjects]:
    return [replace(found, ids=np.arange(len(found)) + 3) for found in sequence.given]


def test_the_truths_own_poses_in_the_frames_that_are_labeled(tmp_path: Path) -> None:
    posetrack18(tmp_path, IMAGES, PERSONS)
    loads = open_poses(tmp_path)
    assert list(loads) == [VIDEO]
    sequence = loads[VIDEO]()
    assert (sequence.name, sequence.frames.rate) == (VIDEO, 6)
    assert [frame[0, 0, 0] // 2 for frame in sequence.frames] == [0, 1, 1], "frames 0, 2 and 3, as JPEG has them"
    assert [len(found) for found in sequence.given] == [2, 1, 0]
    first = sequence.given[0]
    assert first.poses is not None
    assert (first.poses == [body(80), body(150, unseen=["nose", "left_wrist"])]).all()
    assert first.boxes.tolist() == [[50, 40, 60, 100], [120, 40, 55, 100]]
    assert (first.ids, first.scores.tolist()) == (None, [1, 1])
    truth = [one.found.ids for one in sequence.truth.images]
    assert [ids.tolist() for ids in truth if ids is not None] == [[4, 9], [], [4], []]
    assert sequence.truth.images[0].heads.tolist() == [30, 30]


def test_real_annotations(real_data: Path) -> None:
    if not (real_data / "posetrack18").is_dir():
        pytest.skip(f"no posetrack18 in {real_data}")
    loads = open_poses(real_data / "posetrack18")
    assert list(loads) == ["003418_mpii_test", "009473_mpii_test", "012834_mpii_test"]
    sequences = [load() for load in loads.values()]
    assert [[len(found) for found in one.given] for one in sequences] == [[1], [2], [11]]
    assert [next(iter(one.frames)).shape for one in sequences] == [(1080, 1920, 3)] * 3
    second = sequences[1].given[0]
    assert second.poses is not None
    places = dict(zip(JOINTS, second.poses[0].tolist(), strict=True))
    assert places["nose"] == [750, 297.5, 1]
    assert places["left_elbow"] == [0, 0, 0]
    assert places["right_ankle"] == [672, 782.5, 1]
    assert sequences[1].truth.images[0].heads[1] == pytest.approx(0.6 * (90**2 + 125**2) ** 0.5)
    assert len(sequences[1].truth.images[0].ignored) == 2


def test_joints_are_known_by_their_names(tmp_path: Path) -> None:
    file = posetrack18(tmp_path, IMAGES, PERSONS)
    raw = json.loads(file.read_text())
    raw["categories"][0]["keypoints"] = [*NAMES[::-1], "tail"]
    for one in raw["annotations"]:
        one["keypoints"] = [*np.reshape(one["keypoints"], (-1, 3))[::-1].ravel().tolist(), 1, 2, 1]
    file.write_text(json.dumps(raw))
    poses = open_poses(tmp_path)[VIDEO]().given[0].poses
    assert poses is not None
    assert (poses[0] == body(80)).all()


def test_a_joint_whose_flag_is_0_is_not_there(tmp_path: Path) -> None:
    one = person(0, 1, body(80))
    place = 3 * NAMES.index("nose") + 2
    for flag, there in ((0, 0), (1, 1), (2, 1)):
        one["keypoints"][place] = flag
        posetrack18(tmp_path, IMAGES[:1], [one])
        poses = open_poses(tmp_path)[VIDEO]().given[0].poses
        assert poses is not None
        assert poses[0, JOINTS.index("nose"), 2] == there
        assert poses[0, :, 2].sum() == 14 + there


@pytest.mark.parametrize("form", ["older", "PoseTrack18"])
def test_detections_say_what_the_frames_are(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    posetrack18(tmp_path, IMAGES, PERSONS)
    first, second = body(81), body(30, unseen=["nose"])
    if form == "older":
        empty: dict[str, Any] = {"annopoints": []}
        frames = [[rect(first, score=[0.5]), empty], [rect(second), rect(0 * first)], [], []]
        older(tmp_path / "obs" / f"{VIDEO}.json", frames)
    else:
        persons = [person(0, 1, first, score=0.5), person(1, 1, second), person(1, 2, 0 * first)]
        for one in persons:
            del one["track_id"], one["bbox_head"]
        posetrack18(tmp_path, IMAGES, persons, folder="obs")
    sequence = open_poses(tmp_path, "~/obs")[VIDEO]()
    assert len(sequence.frames) == 4
    assert [len(found) for found in sequence.given] == [1, 1, 0, 0]
    assert [found.scores.tolist() for found in sequence.given[:2]] == [[0.5], [1]]
    poses = [found.poses for found in sequence.given[:2]]
    assert (np.array(poses)[:, 0] == [first, second]).all()


def test_detections_of_other_frames(tmp_path: Path) -> None:
    posetrack18(tmp_path, IMAGES, PERSONS)
    file = older(tmp_path / "obs" / f"{VIDEO}.json", [[rect(body(80))]] * 3)
    load = open_poses(tmp_path, str(tmp_path / "obs"))[VIDEO]
    with pytest.raises(SequenceError, match=r"1 labeled frames are missing, the first is .*/000003.jpg"):
        load()
    older(file, [[rect(body(80))]] * 5)
    with pytest.raises(SequenceError, match=r"000004.jpg is none of the 4 frames of the annotation"):
        load()


def test_a_sequence_of_one_frame_and_frames_of_another_folder(tmp_path: Path) -> None:
    file = posetrack18(tmp_path, IMAGES[:1], PERSONS[1:], folder="posetrack_data/annotations/val")
    for data in (tmp_path, file.parent, file):
        assert [len(found) for found in open_poses(data)[VIDEO]().given] == [2]


def test_frames_that_are_missing(tmp_path: Path) -> None:
    posetrack18(tmp_path, IMAGES, PERSONS)
    folder = tmp_path / "images" / "val" / VIDEO
    (folder / "000002.jpg").unlink()
    with pytest.raises(SequenceError, match=r"1 of 3 frames of .* are missing in .*first is .*/000002.jpg"):
        open_poses(tmp_path)[VIDEO]()
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(SequenceError, match=r"no images/val/.*/000000.jpg in any of the folders above"):
        open_poses(tmp_path)[VIDEO]()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    posetrack18(tmp_path, IMAGES, PERSONS)
    sequence = open_poses(tmp_path)[VIDEO]()
    tracks = tracked(sequence)
    write_poses(tmp_path / "out", sequence, tracks)
    again = read_poses(tmp_path / "out", sequence)
    for a, b in zip(tracks, again, strict=True):
        for field in ("boxes", "scores", "ids", "poses"):
            assert np.array_equal(getattr(a, field), getattr(b, field))
    raw = json.loads((tmp_path / "out" / f"{VIDEO}.json").read_text())
    assert [one["file_name"] for one in raw["images"]] == [one["file_name"] for one in IMAGES], "unlabeled ones too"
    one = raw["annotations"][1]
    assert (one["track_id"], one["image_id"], len(one["scores"])) == (4, 0, 17)
    assert dict(zip(NAMES, np.reshape(one["keypoints"], (17, 3)).tolist(), strict=True))["right_wrist"] == [120, 95, 1]
    assert dict(zip(NAMES, np.reshape(one["keypoints"], (17, 3)).tolist(), strict=True))["left_wrist"] == [0, 0, 0]


def test_tracks_of_other_sequences_are_not_read(tmp_path: Path) -> None:
    posetrack18(tmp_path, IMAGES, PERSONS)
    sequence = open_poses(tmp_path)[VIDEO]()
    posetrack18(tmp_path, IMAGES[:2], [], folder="out")
    with pytest.raises(SequenceError, match=r"expected images/val/.*/000002.jpg, and a track_id of each person"):
        read_poses(tmp_path / "out", sequence)
    with pytest.raises(SequenceError, match="cannot be read as JSON"):
        read_poses(tmp_path / "nowhere", sequence)
    with pytest.raises(ValueError, match="expected tracks with ids and poses"):
        write_poses(tmp_path / "out", sequence, sequence.given)


GOOD = {"images": IMAGES, "annotations": PERSONS, "categories": [{"id": 1, "name": "person", "keypoints": NAMES}]}
NAN = [float("nan"), *[1.0] * 50]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("images", None, "no images"),
        ("images", 7, "not in PoseTrack's form"),
        ("categories", [], "not in PoseTrack's form .list index out of range"),
        ("categories.0.keypoints", NAMES[1:], "expected nose among the keypoints of the category, got head_bottom, "),
        ("images.0.file_name", None, "image 0: no file_name"),
        ("images.0.id", None, "no id"),
        ("images.0.id", "0", "annotation 4: of image 0, which the file does not list"),
        ("images.3.id", "3", "image 3: expected a whole number, got '3'"),
        ("images.3.id", 1, "frame 1 is there twice"),
        ("images.0.file_name", IMAGES[1]["file_name"], "000001.jpg is there twice"),
        ("images.0.file_name", "images/val/other/000000.jpg", "expected the frames of one video, got 2"),
        ("images.0.ignore_regions_x", [[1, 2, 3]], "image 0: expected ignore_regions_y of as many corners as"),
        ("images.0.ignore_regions_y", [3], "image 0: not in PoseTrack's form"),
        ("annotations.0.image_id", 7, "annotation 204: of image 7, which the file does not list"),
        ("annotations.0.keypoints", None, "annotation 204: no keypoints"),
        ("annotations.0.keypoints", [1, 2, 1], "annotation 204: expected 51 numbers as keypoints, got 3"),
        ("annotations.0.keypoints", NAN, "annotation 204: expected finite numbers"),
        ("annotations.0.keypoints", ["1"] * 51, "annotation 204: expected finite numbers"),
        ("annotations.0.track_id", None, "000002.jpg: a person has no track_id"),
        ("annotations.0.track_id", 1.5, "annotation 204: expected a whole number, got 1.5"),
        ("annotations.1.track_id", 9, "000000.jpg: a track_id is there twice"),
        ("annotations.0.bbox_head", None, "000002.jpg: the person of track_id 4 has no bbox_head"),
        ("annotations.0.bbox_head", [1, 2, 3], "annotation 204: expected 4 numbers as bbox_head, got 3"),
        ("annotations.0.bbox_head", [1, 2, 3, float("inf")], "annotation 204: expected finite numbers"),
        ("annotations.0", 3, "not in PoseTrack's form"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, place: str, value: Any, message: str) -> None:
    file = posetrack18(tmp_path, IMAGES, PERSONS)
    raw: Any = copy.deepcopy(GOOD)
    *way, last = (int(key) if key.isdigit() else key for key in place.split("."))
    inner = raw
    for key in way:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(SequenceError, match=message) as error:
        open_poses(tmp_path)[VIDEO]()
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"annolist": 3}', '{"annolist": [{}]}', "\xff"])
def test_files_of_other_kinds(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(SequenceError, match=r"a\.json"):
        read_pose_frames(tmp_path / "a.json")


def test_nobody_labeled_anything(tmp_path: Path) -> None:
    posetrack18(tmp_path, [image(0, labeled=False)], [])
    with pytest.raises(SequenceError, match="none of the 1 frames is labeled"):
        open_poses(tmp_path)[VIDEO]()


def test_what_makes_the_whole_call_impossible(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data: no folder"):
        open_poses(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data: no sequence in .*expected PoseTrack18's annotations/val/SEQUENCE"):
        open_poses(tmp_path)
    posetrack18(tmp_path, IMAGES, PERSONS)
    with pytest.raises(
        InputError, match=f"sequences: '000001_mpii' fits none of the 1 sequences; the nearest is '{VIDEO}'"
    ):
        open_poses(tmp_path, names=["000001_mpii"])
    with pytest.raises(InputError, match="detections: expected a file of each sequence in nowhere, such as"):
        open_poses(tmp_path, "nowhere")
    assert list(open_poses(tmp_path, names=["*_test"])) == [VIDEO]
