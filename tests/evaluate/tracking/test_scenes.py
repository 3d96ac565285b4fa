import json
import time
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.tracking import sequences
from mec.evaluate.tracking.datasets.davis import open_mask_sequences
from mec.evaluate.tracking.datasets.motchallenge import open_box_detections
from mec.evaluate.tracking.datasets.mots import open_mask_detections
from mec.evaluate.tracking.datasets.posetrack import open_pose_detections
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from tests.evaluate.tracking.scene_files import (
    write_davis,
    write_kitti_mots,
    write_mot,
    write_mots,
    write_otb,
    write_posetrack,
)
from tests.evaluate.tracking.scenes import JOINTS, SIZE, Cutout, Scene, garden, make_scene, street

FAR, OCCLUDED, LEAVING, NEAR = range(4)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return garden()


def is_similar_image(file: Path, frame: NDArray[np.uint8]) -> bool:
    read = np.asarray(Image.open(file)).astype(int)
    return bool(read.shape == frame.shape and np.abs(read - frame).mean() < 2)


def test_two_squares_by_hand() -> None:
    red, blue = (np.full((2, 2, 3), color, np.uint8) for color in ((200, 0, 0), (0, 0, 200)))
    squares = [Cutout(image, np.ones((2, 2), bool)) for image in (red, blue)]
    paths = np.array([[[2.0, 1.0], [2.0, 1.0]], [[5.0, 1.0], [3.0, 1.0]]])
    cover = np.zeros((3, 6), bool)
    cover[:, 5] = True
    two = make_scene(squares, np.zeros((3, 6, 3), np.uint8), paths, cover=cover)
    visible = two.visible.astype(int)
    assert visible[:, :, 0].tolist() == [
        [[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]],
    ]
    assert (visible[:, :, 1] == visible[:, :, 0]).all()
    assert not visible[:, :, 2].any()
    assert two.boxes.tolist() == [[[1, 0, 2, 2], [1, 0, 2, 2]], [[4, 0, 2, 2], [2, 0, 2, 2]]]
    assert two.visibility.tolist() == [[1, 0.5], [0.5, 1]]
    assert two.frames[1][0].tolist() == [[0, 0, 0], [200, 0, 0], [0, 0, 200], [0, 0, 200], [0, 0, 0], [0, 0, 0]]
    right = two.poses[1, 0, :, 0] == 5
    assert right.any()
    assert (two.poses[1, 0, :, 2] == ~right).all()


@pytest.mark.parametrize("scene_name", ["garden", "street", "other street"])
def test_scenes_contain_crossing_occlusion_and_exit(request: pytest.FixtureRequest, scene_name: str) -> None:
    real_data = None if scene_name == "garden" else request.getfixturevalue("real_data")
    begin = time.perf_counter()
    scene = garden() if real_data is None else street(real_data, int(scene_name != "street"))
    assert time.perf_counter() - begin < 5
    assert len(scene.frames) == 40
    assert scene.frames[0].shape == (*SIZE, 3)
    assert (scene.visibility[:, 0] > 0.9).all()
    assert (scene.visible.sum(axis=0) <= 1).all()
    assert ((scene.visibility == 0) == ~scene.visible.any(axis=(2, 3))).all()
    middles = scene.boxes[..., 0] + scene.boxes[..., 2] / 2
    assert (np.diff(np.sign(middles[FAR] - middles[NEAR])) != 0).sum() == 1
    hidden = scene.visibility == 0
    gone = (scene.boxes[..., 0] >= SIZE[1]) | (scene.boxes[..., 0] + scene.boxes[..., 2] <= 0)
    for i in (FAR, OCCLUDED, LEAVING):
        frames = np.flatnonzero(hidden[i])
        assert 2 <= len(frames) <= 20
        assert (scene.visibility[i, frames[-1] :] > 0.8).any()
        assert gone[i].sum() == (0 if i != LEAVING else gone[LEAVING].sum()) <= len(frames)
    assert gone[LEAVING].sum() > 5
    assert (scene.visibility[NEAR] > 0.9).all()


def test_joints_are_on_their_object_and_move_with_it(scene: Scene) -> None:
    places = scene.poses[..., :2] - scene.boxes[:, :, None, :2]
    assert (places == places[:, :1]).all()
    for i, t in np.ndindex(scene.visibility.shape):
        for x, y, visible in scene.poses[i, t]:
            within = 0 <= x < SIZE[1] and 0 <= y < SIZE[0]
            assert visible == (within and scene.visible[i, t, int(y), int(x)])
    assert (scene.poses[:, 0, :, 2].mean(axis=1) > 0.9).all()
    height = {name: scene.poses[OCCLUDED, 0, n, 1] for n, name in enumerate(JOINTS)}
    assert height["head_top"] < height["nose"] < height["left_shoulder"] < height["left_hip"] < height["left_knee"]


def test_objects_are_those_above_the_minimum_visibility(scene: Scene) -> None:
    assert tuple(JOINTS) == sequences.JOINTS
    for t, objects in enumerate(scene.objects(0.3)):
        assert objects.ids is not None
        assert objects.masks is not None
        assert objects.ids.tolist() == [i + 1 for i in range(4) if scene.visibility[i, t] > 0.3]
        for k, i in enumerate(objects.ids - 1):
            assert (coco_mask.decode(objects.masks[k]) == scene.visible[i, t]).all()


def test_mot_files_are_read_back(scene: Scene, tmp_path: Path) -> None:
    """MOTChallenge counts pixels from 1. Occluded objects have rows, objects outside of the image have none."""
    path = write_mot(scene, tmp_path, "S-01")
    assert is_similar_image(path / "img1" / "000040.jpg", scene.frames[39])
    sequence = open_box_detections(path)["S-01"]()
    assert (len(sequence.frames), sequence.frames.frame_rate) == (40, 20)
    truth = sequence.ground_truth
    for t, (ids, boxes) in enumerate(zip(truth.ids, truth.boxes, strict=True)):
        assert (boxes - (1, 1, 0, 0) == scene.boxes[ids - 1, t]).all()
        assert set(np.flatnonzero(scene.visibility[:, t]) + 1) <= set(ids.tolist())
        clear = scene.boxes[scene.visibility[:, t] > 0.3, t] + (1, 1, 0, 0)
        assert set(map(tuple, clear)) <= set(map(tuple, sequence.detections[t].boxes))
    assert sum(map(len, truth.ids)) < scene.visibility.size
    visibility = [float(line.split(",")[8]) for line in (path / "gt" / "gt.txt").read_text().splitlines()]
    assert sum(fraction == 0 for fraction in visibility) > 5


def test_mots_files_are_read_back(scene: Scene, tmp_path: Path) -> None:
    write_mots(scene, tmp_path / "train", "S-01")
    write_kitti_mots(scene, tmp_path / "kitti", "0003")
    loads = {**open_mask_detections(tmp_path), **open_mask_detections(tmp_path / "kitti")}
    for name in ("S-01", "0003 pedestrian"):
        sequence = loads[name]()
        for t, (ids, masks) in enumerate(zip(sequence.ground_truth.ids, sequence.ground_truth.masks, strict=True)):
            assert (ids == np.flatnonzero(scene.visible[:, t].any(axis=(1, 2))) + 2001).all()
            for object_id, mask in zip(ids, masks, strict=True):
                assert (coco_mask.decode(mask) == scene.visible[object_id - 2001, t]).all()
    assert (next(iter(sequence.frames)) == scene.frames[0]).all()


def test_posetrack_davis_and_otb_files_are_read_back(scene: Scene, tmp_path: Path) -> None:
    name = "000007_mpii_test"
    write_posetrack(scene, tmp_path, name)
    write_davis(scene, tmp_path / "davis", name)
    write_otb(scene, tmp_path / "otb", name, NEAR)
    poses, masks = open_pose_detections(tmp_path)[name](), open_mask_sequences(tmp_path / "davis")[name]()
    boxes = open_box_sequences(tmp_path / "otb")[name]()
    for sequence in (poses, masks, boxes):
        assert all(np.abs(a.astype(int) - b).mean() < 2 for a, b in zip(sequence.frames, scene.frames, strict=True))
    for t, frame in enumerate(poses.ground_truth.frames):
        assert (frame.objects.poses[..., 2] == scene.poses[frame.objects.ids, t, :, 2]).all()
        visible = frame.objects.poses[..., 2] > 0
        assert (frame.objects.poses[visible] == scene.poses[frame.objects.ids, t][visible]).all()
        labels = masks.ground_truth(t)
        assert labels is not None
        assert all(((labels == i + 1) == scene.visible[i, t]).all() for i in range(4))
    assert (boxes.ground_truth == scene.boxes[NEAR]).all()


def test_posetrack_json_has_the_keys_of_the_original(scene: Scene, tmp_path: Path, real_data: Path) -> None:
    original_file = real_data / "posetrack18" / "annotations" / "val" / "003418_mpii_test.json"
    if not original_file.is_file():
        pytest.skip(f"no {original_file}")
    ours, original = (
        json.loads(file.read_text()) for file in (write_posetrack(scene, tmp_path, "000007_a"), original_file)
    )
    assert ours.keys() == original.keys()
    assert ours["categories"][0] == original["categories"][0] | {"skeleton": []}
    assert ours["images"][0].keys() == original["images"][0].keys() - {"mask_file"}
    assert ours["annotations"][0].keys() == original["annotations"][0].keys()
