import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec.errors import InputError
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections, read_pose_frames, read_poses, write_poses
from mec.evaluate.tracking.sequences import JOINTS, UNUSABLE, DetectionSequence, FrameObjects
from tests.evaluate.tracking.pose_scenes import (
    NAMES,
    VIDEO,
    annorect,
    image_entry,
    make_pose,
    person_annotation,
    write_annolist,
    write_posetrack18,
)

IMAGES = [image_entry(0), image_entry(1, labeled=False), image_entry(2), image_entry(3)]
PERSONS = [
    person_annotation(2, 4, make_pose(90)),
    person_annotation(0, 4, make_pose(80)),
    person_annotation(0, 9, make_pose(150, invisible=["nose", "left_wrist"])),
]


def tracked(sequence: DetectionSequence) -> list[FrameObjects]:
    return [replace(objects, ids=np.arange(len(objects)) + 3) for objects in sequence.detections]


def test_ground_truth_poses_of_labeled_frames(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    loads = open_pose_detections(tmp_path)
    assert list(loads) == [VIDEO]
    sequence = loads[VIDEO]()
    assert (sequence.name, sequence.frames.frame_rate) == (VIDEO, 6)
    assert [frame[0, 0, 0] // 2 for frame in sequence.frames] == [0, 1, 1], "frames 0, 2 and 3, as JPEG has them"
    assert [len(objects) for objects in sequence.detections] == [2, 1, 0]
    first = sequence.detections[0]
    assert first.poses is not None
    assert (first.poses == [make_pose(80), make_pose(150, invisible=["nose", "left_wrist"])]).all()
    assert first.boxes.tolist() == [[50, 40, 60, 100], [120, 40, 55, 100]]
    assert (first.ids, first.scores.tolist()) == (None, [1, 1])
    track_ids = [frame.objects.ids for frame in sequence.ground_truth.frames]
    assert [ids.tolist() for ids in track_ids if ids is not None] == [[4, 9], [], [4], []]
    assert sequence.ground_truth.frames[0].head_sizes.tolist() == [30, 30]


def test_real_annotations(real_data: Path) -> None:
    if not (real_data / "posetrack18").is_dir():
        pytest.skip(f"no posetrack18 in {real_data}")
    loads = open_pose_detections(real_data / "posetrack18")
    assert list(loads) == ["003418_mpii_test", "009473_mpii_test", "012834_mpii_test"]
    sequences = [load() for load in loads.values()]
    assert [[len(objects) for objects in sequence.detections] for sequence in sequences] == [[1], [2], [11]]
    assert [next(iter(sequence.frames)).shape for sequence in sequences] == [(1080, 1920, 3)] * 3
    second = sequences[1].detections[0]
    assert second.poses is not None
    places = dict(zip(JOINTS, second.poses[0].tolist(), strict=True))
    assert places["nose"] == [750, 297.5, 1]
    assert places["left_elbow"] == [0, 0, 0]
    assert places["right_ankle"] == [672, 782.5, 1]
    assert sequences[1].ground_truth.frames[0].head_sizes[1] == pytest.approx(0.6 * (90**2 + 125**2) ** 0.5)
    assert len(sequences[1].ground_truth.frames[0].ignored) == 2


def test_joints_are_matched_by_name(tmp_path: Path) -> None:
    file = write_posetrack18(tmp_path, IMAGES, PERSONS)
    content = json.loads(file.read_text())
    content["categories"][0]["keypoints"] = [*NAMES[::-1], "tail"]
    for entry in content["annotations"]:
        entry["keypoints"] = [*np.reshape(entry["keypoints"], (-1, 3))[::-1].ravel().tolist(), 1, 2, 1]
    file.write_text(json.dumps(content))
    poses = open_pose_detections(tmp_path)[VIDEO]().detections[0].poses
    assert poses is not None
    assert (poses[0] == make_pose(80)).all()


def test_joints_with_flag_0_are_invisible(tmp_path: Path) -> None:
    entry = person_annotation(0, 1, make_pose(80))
    flag_index = 3 * NAMES.index("nose") + 2
    for flag, visible in ((0, 0), (1, 1), (2, 1)):
        entry["keypoints"][flag_index] = flag
        write_posetrack18(tmp_path, IMAGES[:1], [entry])
        poses = open_pose_detections(tmp_path)[VIDEO]().detections[0].poses
        assert poses is not None
        assert poses[0, JOINTS.index("nose"), 2] == visible
        assert poses[0, :, 2].sum() == 14 + visible


@pytest.mark.parametrize("file_format", ["older", "PoseTrack18"])
def test_detections_define_the_frames(tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    first, second = make_pose(81), make_pose(30, invisible=["nose"])
    if file_format == "older":
        empty: dict[str, Any] = {"annopoints": []}
        frames = [[annorect(first, score=[0.5]), empty], [annorect(second), annorect(0 * first)], [], []]
        write_annolist(tmp_path / "obs" / f"{VIDEO}.json", frames)
    else:
        persons = [
            person_annotation(0, 1, first, score=0.5),
            person_annotation(1, 1, second),
            person_annotation(1, 2, 0 * first),
        ]
        for entry in persons:
            del entry["track_id"], entry["bbox_head"]
        write_posetrack18(tmp_path, IMAGES, persons, folder="obs")
    sequence = open_pose_detections(tmp_path, "~/obs")[VIDEO]()
    assert len(sequence.frames) == 4
    assert [len(objects) for objects in sequence.detections] == [1, 1, 0, 0]
    assert [objects.scores.tolist() for objects in sequence.detections[:2]] == [[0.5], [1]]
    poses = [objects.poses for objects in sequence.detections[:2]]
    assert (np.array(poses)[:, 0] == [first, second]).all()


def test_detections_must_cover_the_labeled_frames(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    file = write_annolist(tmp_path / "obs" / f"{VIDEO}.json", [[annorect(make_pose(80))]] * 3)
    load = open_pose_detections(tmp_path, str(tmp_path / "obs"))[VIDEO]
    with pytest.raises(UNUSABLE, match=r"lacks 1 labeled frames, the first is .*/000003.jpg"):
        load()
    write_annolist(file, [[annorect(make_pose(80))]] * 5)
    with pytest.raises(UNUSABLE, match=r"000004.jpg is none of the 4 annotated frames"):
        load()


def test_images_are_found_in_parent_folders(tmp_path: Path) -> None:
    file = write_posetrack18(tmp_path, IMAGES[:1], PERSONS[1:], folder="posetrack_data/annotations/val")
    for data in (tmp_path, file.parent, file):
        assert [len(objects) for objects in open_pose_detections(data)[VIDEO]().detections] == [2]


def test_missing_images_are_rejected(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    folder = tmp_path / "images" / "val" / VIDEO
    (folder / "000002.jpg").unlink()
    with pytest.raises(UNUSABLE, match=r"lacks 1 of 3 frames, the first is .*/000002.jpg"):
        open_pose_detections(tmp_path)[VIDEO]()
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UNUSABLE, match=r"no images/val/.*/000000.jpg in any of the parent folders"):
        open_pose_detections(tmp_path)[VIDEO]()


def test_tracks_round_trip(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    sequence = open_pose_detections(tmp_path)[VIDEO]()
    tracks = tracked(sequence)
    write_poses(tmp_path / "out", sequence, tracks)
    read_back = read_poses(tmp_path / "out", sequence)
    for a, b in zip(tracks, read_back, strict=True):
        for field in ("boxes", "scores", "ids", "poses"):
            assert np.array_equal(getattr(a, field), getattr(b, field))
    content = json.loads((tmp_path / "out" / f"{VIDEO}.json").read_text())
    assert [entry["file_name"] for entry in content["images"]] == [entry["file_name"] for entry in IMAGES], (
        "unlabeled frames are included"
    )
    entry = content["annotations"][1]
    assert (entry["track_id"], entry["image_id"], len(entry["scores"])) == (4, 0, 17)
    keypoints = dict(zip(NAMES, np.reshape(entry["keypoints"], (17, 3)).tolist(), strict=True))
    assert (keypoints["right_wrist"], keypoints["left_wrist"]) == ([120, 95, 1], [0, 0, 0])


def test_tracks_of_another_sequence_are_rejected(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    sequence = open_pose_detections(tmp_path)[VIDEO]()
    write_posetrack18(tmp_path, IMAGES[:2], [], folder="out")
    with pytest.raises(UNUSABLE, match=r"expected images/val/.*/000002.jpg, and a track_id for each person"):
        read_poses(tmp_path / "out", sequence)
    with pytest.raises(UNUSABLE, match=r"json cannot be read .No such file"):
        read_poses(tmp_path / "nowhere", sequence)


GOOD = {"images": IMAGES, "annotations": PERSONS, "categories": [{"id": 1, "name": "person", "keypoints": NAMES}]}
NAN = [float("nan"), *[1.0] * 50]


@pytest.mark.parametrize(
    ("key_path", "value", "message"),
    [
        ("images", None, "no images"),
        ("categories.0.keypoints", NAMES[1:], "expected nose among the keypoints of the category, got head_bottom, "),
        ("images.0.file_name", None, "image 0: no file_name"),
        ("images.0.id", "0", "annotation 4: expected an image of the file, got image_id 0"),
        ("images.3.id", 1, "frame 1 occurs twice"),
        ("images.0.file_name", IMAGES[1]["file_name"], "000001.jpg occurs twice"),
        ("images.0.file_name", "images/val/other/000000.jpg", "expected the frames of one video, got 2"),
        ("images.0.ignore_regions_x", [[1, 2, 3]], "image 0: expected as many corners in ignore_regions_y as"),
        ("annotations.0.keypoints", None, "annotation 204: no keypoints"),
        ("annotations.0.keypoints", NAN, "annotation 204: expected finite numbers"),
        ("annotations.0.track_id", None, "000002.jpg: expected a bbox_head and a track_id"),
        ("annotations.0.track_id", 1.5, "annotation 204: expected an integer, got 1.5"),
        ("annotations.1.track_id", 9, "000000.jpg: expected a bbox_head and a track_id"),
        ("annotations.0.bbox_head", [1, 2, 3], "annotation 204: expected 4 numbers, got 3"),
        ("annotations.0", 3, "not in PoseTrack's format"),
    ],
)
def test_invalid_annotations_are_rejected_in_one_line(tmp_path: Path, key_path: str, value: Any, message: str) -> None:
    file = write_posetrack18(tmp_path, IMAGES, PERSONS)
    content: Any = copy.deepcopy(GOOD)
    *keys, last = (int(key) if key.isdigit() else key for key in key_path.split("."))
    inner = content
    for key in keys:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    file.write_text(json.dumps(content))
    with pytest.raises(UNUSABLE, match=message) as error:
        open_pose_detections(tmp_path)[VIDEO]()
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"annolist": 3}', '{"annolist": [{}]}', "\xff"])
def test_other_files_are_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UNUSABLE, match=r"a\.json"):
        read_pose_frames(tmp_path / "a.json")


def test_sequences_without_labeled_frames_are_rejected(tmp_path: Path) -> None:
    write_posetrack18(tmp_path, [image_entry(0, labeled=False)], [])
    with pytest.raises(UNUSABLE, match="none of the 1 frames is labeled"):
        open_pose_detections(tmp_path)[VIDEO]()


def test_invalid_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data: no folder"):
        open_pose_detections(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"data: no sequence in "):
        open_pose_detections(tmp_path)
    write_posetrack18(tmp_path, IMAGES, PERSONS)
    with pytest.raises(InputError, match=f"^sequences: .*'{VIDEO}'"):
        open_pose_detections(tmp_path, names=["000001_mpii"])
    with pytest.raises(InputError, match="detections: expected a file for each sequence, such as nowhere/"):
        open_pose_detections(tmp_path, "nowhere")
    assert list(open_pose_detections(tmp_path, names=["*_test"])) == [VIDEO]
