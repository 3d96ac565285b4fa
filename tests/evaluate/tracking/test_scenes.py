import configparser
import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mec.evaluate.tracking import sequences
from tests.evaluate.tracking.scene_files import (
    write_davis,
    write_kitti_mots,
    write_mot,
    write_mots,
    write_otb,
    write_posetrack,
)
from tests.evaluate.tracking.scenes import JOINTS, SIZE, Cutout, Scene, blob, garden, make_scene, street

FAR, OCCLUDED, LEAVING, NEAR = range(4)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return garden()


def decode_runs(counts: str) -> list[int]:
    """Decode COCO's compressed run lengths, independently of the library."""
    values: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        value += (bits % 32) * 2**shift
        shift += 5
        if bits < 32:
            if bits >= 16:
                value -= 2**shift
            values.append(value + values[-2] if len(values) >= 3 else value)
            value = shift = 0
    return values


def decode_mask(counts: str) -> NDArray[np.bool_]:
    """Decode a mask: runs go down the columns and begin with background."""
    lengths = decode_runs(counts)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(SIZE[::-1]).T


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


def test_visible_pixels_come_from_the_cutouts_and_others_from_the_background() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3)).astype(np.uint8)
    cutouts = [blob(noise[n], (40, 30), (12 + 3 * n, 20), n) for n in range(2)]
    paths = np.stack([np.linspace((-5, 30), (85, 33), 9), np.linspace((80, 40), (0, 20), 9)])
    scene = make_scene(cutouts, noise[2], paths)
    for t, frame in enumerate(scene.frames):
        for i, cutout in enumerate(cutouts):
            left, top, width, height = scene.boxes[i, t].astype(int)
            assert (height, width) == cutout.mask.shape
            assert abs(left + width / 2 - paths[i, t, 0]) <= 0.5
            assert abs(top + height / 2 - paths[i, t, 1]) <= 0.5
            rows, columns = np.nonzero(scene.visible[i, t])
            assert cutout.mask[rows - top, columns - left].all()
            assert (frame[rows, columns] == cutout.image[rows - top, columns - left]).all()
            assert scene.visibility[i, t] == len(rows) / cutout.mask.sum()
        background = ~scene.visible[:, t].any(axis=0)
        assert (frame[background] == noise[2][background]).all()
    assert 0 < scene.visibility[0].min() < scene.visibility[0].max() == 1


def test_sizes_follow_the_scales() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    cutout = blob(noise, (40, 30), (10, 20), 0)
    scales = np.linspace(0.5, 1, 6)[None]
    scene = make_scene([cutout], noise, np.full((1, 6, 2), 30.0), scales)
    expected = scales[0, :, None] * cutout.mask.shape[::-1]
    assert np.abs(scene.boxes[0, :, 2:] - expected).max() <= 1
    for t in range(6):
        rows, columns = np.nonzero(scene.visible[0, t])
        left, top, width, height = scene.boxes[0, t]
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (top, top + height - 1, left, left + width - 1)
    assert (scene.visibility == 1).all()


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
            assert (decode_mask(objects.masks[k]["counts"].decode()) == scene.visible[i, t]).all()


def test_mot_files(scene: Scene, tmp_path: Path) -> None:
    path = write_mot(scene, tmp_path, "S-01")
    info = configparser.ConfigParser()
    info.read(path / "seqinfo.ini")
    assert dict(info["Sequence"]) == {
        "name": "S-01", "imdir": "img1", "framerate": "20", "seqlength": "40", "imwidth": "320", "imheight": "240",
        "imext": ".jpg",
    }  # fmt: skip
    assert is_similar_image(path / "img1" / "000040.jpg", scene.frames[39])
    ground_truth = [list(map(float, row)) for row in csv.reader((path / "gt" / "gt.txt").open())]
    assert [row[:2] for row in ground_truth] == sorted([row[:2] for row in ground_truth], key=lambda pair: pair[::-1])
    visibility = {(int(row[1]) - 1, int(row[0]) - 1): row[8] for row in ground_truth}
    for i, t in np.ndindex(scene.visibility.shape):
        assert visibility.get((i, t), 0) == pytest.approx(scene.visibility[i, t], abs=1e-5)
    assert sum(fraction == 0 for fraction in visibility.values()) > 5, "occluded objects have rows"
    assert len(visibility) == len(ground_truth) < scene.visibility.size, "objects outside of the image have none"
    for frame, track, left, top, width, height, *rest in ground_truth:
        box = (left - 1, top - 1, width, height)
        assert box == tuple(scene.boxes[int(track) - 1, int(frame) - 1])
        assert rest[:2] == [1, 1]
    detections = [tuple(map(float, row)) for row in csv.reader((path / "det" / "det.txt").open())]
    clear = [tuple(row[:6]) for row in ground_truth if row[8] > 0.3]
    assert sorted((f, *box) for f, _, *box, score in detections if score == 1) == sorted(
        (f, *box) for f, _, *box in clear
    )
    assert {row[1] for row in detections} == {-1}


def test_mots_files(scene: Scene, tmp_path: Path) -> None:
    path = write_mots(scene, tmp_path / "train", "S-01")
    write_kitti_mots(scene, tmp_path / "kitti", "0003")
    assert is_similar_image(path / "img1" / "000001.jpg", scene.frames[0])
    assert (np.asarray(Image.open(tmp_path / "kitti/image_02/0003/000039.png")) == scene.frames[39]).all()
    for file, first in ((path / "gt" / "gt.txt", 1), (tmp_path / "kitti" / "instances_txt" / "0003.txt", 0)):
        visible = np.zeros_like(scene.visible)
        for line in file.read_text().splitlines():
            frame, track, class_id, height, width, counts = line.split()
            assert (int(track) // 1000, class_id, int(height), int(width)) == (2, "2", *SIZE)
            mask = decode_mask(counts)
            assert mask.any()
            visible[int(track) - 2001, int(frame) - first] = mask
        assert (visible == scene.visible).all()


def test_posetrack_files(scene: Scene, tmp_path: Path) -> None:
    write_posetrack(scene, tmp_path, "000007_mpii_test")
    ours = json.loads((tmp_path / "annotations" / "val" / "000007_mpii_test.json").read_text())
    names = ours["categories"][0]["keypoints"]
    frames = {entry["id"]: t for t, entry in enumerate(ours["images"])}
    assert is_similar_image(tmp_path / ours["images"][5]["file_name"], scene.frames[5])
    visible = np.zeros_like(scene.poses)
    for annotation in ours["annotations"]:
        points = np.reshape(annotation["keypoints"], (17, 3))
        assert not points[[names.index("left_ear"), names.index("right_ear")]].any()
        visible[annotation["track_id"], frames[annotation["image_id"]]] = points[[names.index(name) for name in JOINTS]]
        assert annotation["num_keypoints"] == points[:, 2].sum() > 0
    assert (visible == scene.poses * scene.poses[..., 2:]).all()


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


def test_davis_files(scene: Scene, tmp_path: Path) -> None:
    write_davis(scene, tmp_path, "pagoda")
    write_davis(scene, tmp_path, "again")
    assert (tmp_path / "ImageSets" / "2017" / "val.txt").read_text() == "pagoda\nagain\n"
    for t, frame in enumerate(scene.frames):
        assert is_similar_image(tmp_path / "JPEGImages" / "480p" / "pagoda" / f"{t:05}.jpg", frame)
        image = Image.open(tmp_path / "Annotations" / "480p" / "pagoda" / f"{t:05}.png")
        labels = np.asarray(image)
        assert image.mode == "P"
        assert all(((labels == i + 1) == scene.visible[i, t]).all() for i in range(4))
        assert labels.max() <= 4
    colors = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert np.reshape(image.getpalette(), (-1, 3))[:5].tolist() == [list(color) for color in colors]


def test_otb_files(scene: Scene, tmp_path: Path) -> None:
    path = write_otb(scene, tmp_path, "Pagoda", NEAR)
    assert is_similar_image(path / "img" / "0001.jpg", scene.frames[0])
    assert len(list((path / "img").iterdir())) == 40
    rows = [tuple(map(int, line.split(","))) for line in (path / "groundtruth_rect.txt").read_text().split()]
    for (left, top, width, height), visible in zip(rows, scene.visible[NEAR], strict=True):
        lines, columns = (np.flatnonzero(visible.any(axis=axis)) + 1 for axis in (1, 0))
        assert (left, top, width) == (columns[0], lines[0], len(columns))
        assert top + height - 1 >= lines[-1]
