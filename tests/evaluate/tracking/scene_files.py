"""Writers of scenes in the layouts of MOT17, MOTS20, KITTI MOTS, PoseTrack18, DAVIS 2017 and OTB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from PIL import Image

from tests.evaluate.tracking.scenes import JOINTS, Scene

KEYPOINTS = (
    "nose", "head_bottom", "head_top", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""Keypoints of PoseTrack18, which does not annotate the ears."""
PEDESTRIAN_CLASS = {"mots": 2, "mot": 1}
MIN_VISIBILITY = 0.3
"""Fraction of an object that must be visible to be detected."""
FRAME_RATE = 20


def write_mot(scene: Scene, folder: Path, name: str) -> Path:
    """Write MOT17's layout; gt.txt has the 1-based boxes of all objects, also occluded ones, that meet the image."""
    path = folder / name
    _write_sequence(scene, path, name)
    ground_truth, detections = [], []
    for t in range(len(scene.frames)):
        for i in range(len(scene.boxes)):
            left, top, width, height = scene.boxes[i, t]
            row = f"{left + 1:g},{top + 1:g},{width:g},{height:g}"
            if _meets_image(scene, i, t):
                visibility = scene.visibility[i, t]
                ground_truth.append(f"{t + 1},{i + 1},{row},1,{PEDESTRIAN_CLASS['mot']},{visibility:.5f}\n")
            if scene.visibility[i, t] > MIN_VISIBILITY:
                detections.append(f"{t + 1},-1,{row},1\n")
    for kind, lines in (("gt", sorted(ground_truth, key=_sort_key)), ("det", detections)):
        (path / kind).mkdir()
        (path / kind / f"{kind}.txt").write_text("".join(lines))
    return path


def _meets_image(scene: Scene, i: int, t: int) -> bool:
    """Return whether the box of the object meets the image."""
    left, top, width, height = scene.boxes[i, t]
    rows, columns = scene.frames[t].shape[:2]
    return bool(left < columns and top < rows and left + width > 0 and top + height > 0)


def _sort_key(line: str) -> tuple[int, int]:
    frame, track = line.split(",")[:2]
    return int(track), int(frame)


def _write_sequence(scene: Scene, path: Path, name: str) -> None:
    _write_images(scene, path / "img1", "{:06}.jpg", first=1)
    height, width = scene.frames[0].shape[:2]
    (path / "seqinfo.ini").write_text(
        f"[Sequence]\nname={name}\nimDir=img1\nframeRate={FRAME_RATE}\nseqLength={len(scene.frames)}\n"
        f"imWidth={width}\nimHeight={height}\nimExt=.jpg\n"
    )


def _write_images(scene: Scene, folder: Path, name: str, first: int = 0) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(scene.frames, first):
        Image.fromarray(frame).save(folder / name.format(number), quality=95, subsampling=0, compress_level=1)


def write_mots(scene: Scene, folder: Path, name: str) -> Path:
    """Write MOTS20's layout: rows of frame, 1000 * class + object, class, height, width, mask; frames count from 1."""
    path = folder / name
    _write_sequence(scene, path, name)
    (path / "gt").mkdir()
    (path / "gt" / "gt.txt").write_text("".join(_mask_rows(scene, first=1)))
    return path


def _mask_rows(scene: Scene, first: int) -> list[str]:
    rows = []
    height, width = scene.frames[0].shape[:2]
    for t in range(len(scene.frames)):
        for i in np.flatnonzero(scene.visible[:, t].any(axis=(1, 2))):
            counts = coco_mask.encode(np.asfortranarray(scene.visible[i, t], np.uint8))["counts"].decode()
            class_id = PEDESTRIAN_CLASS["mots"]
            rows.append(f"{t + first} {1000 * class_id + i + 1} {class_id} {height} {width} {counts}\n")
    return rows


def write_kitti_mots(scene: Scene, root: Path, name: str) -> Path:
    """Write KITTI MOTS's layout: image_02/NAME/000000.png, and instances_txt/NAME.txt with frames that count from 0."""
    _write_images(scene, root / "image_02" / name, "{:06}.png")
    (root / "instances_txt").mkdir(exist_ok=True)
    (root / "instances_txt" / f"{name}.txt").write_text("".join(_mask_rows(scene, first=0)))
    return root


def write_posetrack(scene: Scene, root: Path, name: str) -> Path:
    """Write PoseTrack18's layout with all objects that have a visible joint; NAME begins with six digits."""
    inner = f"images/val/{name}"
    _write_images(scene, root / inner, "{:06}.jpg")
    height, width = scene.frames[0].shape[:2]
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for t in range(len(scene.frames)):
        number = 10**10 + int(name[:6]) * 10**4 + t
        images.append({
            "has_no_densepose": True, "is_labeled": True, "file_name": f"{inner}/{t:06}.jpg", "id": number,
            "frame_id": number, "vid_id": name[:6], "nframes": len(scene.frames), "width": width, "height": height,
            "ignore_regions_x": [], "ignore_regions_y": [],
        })  # fmt: skip
        for i in np.flatnonzero(scene.poses[:, t, :, 2].any(axis=1)):
            people.append(_person(scene, int(i), t, number))
    person = {"supercategory": "person", "id": 1, "name": "person", "keypoints": list(KEYPOINTS), "skeleton": []}
    path = root / "annotations" / "val" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"categories": [person], "images": images, "annotations": people}))
    return path


def _person(scene: Scene, i: int, t: int, image: int) -> dict[str, Any]:
    joints = dict(zip(JOINTS, scene.poses[i, t], strict=True))
    points = [joints.get(name, np.zeros(3)) for name in KEYPOINTS]
    points = [point * point[2] for point in points]
    head = np.array([joints[name][:2] for name in ("head_top", "head_bottom", "nose")])
    low, high = head.min(axis=0), head.max(axis=0)
    return {
        "bbox_head": [*low.tolist(), *(high - low).tolist()], "bbox": scene.boxes[i, t].tolist(), "scores": [],
        "keypoints": np.concatenate(points).tolist(), "num_keypoints": int(sum(point[2] for point in points)),
        "track_id": i, "image_id": image, "category_id": 1, "id": image * 100 + i, "iscrowd": False,
    }  # fmt: skip


def write_davis(scene: Scene, root: Path, name: str) -> Path:
    """Write DAVIS 2017's layout at 480p with indexed masks, and add NAME to the val list."""
    _write_images(scene, root / "JPEGImages" / "480p" / name, "{:05}.jpg")
    folder = root / "Annotations" / "480p" / name
    folder.mkdir(parents=True)
    for t in range(len(scene.frames)):
        labels = sum(np.uint8(i + 1) * scene.visible[i, t] for i in range(len(scene.visible)))
        image = Image.fromarray(np.asarray(labels, np.uint8))
        image.putpalette(palette())
        image.save(folder / f"{t:05}.png")
    val_list = root / "ImageSets" / "2017" / "val.txt"
    val_list.parent.mkdir(parents=True, exist_ok=True)
    with val_list.open("a") as file:
        file.write(f"{name}\n")
    return root


def palette() -> list[int]:
    """Return the 256 colors of VOC and DAVIS: bits 0, 3 and 6 of a label are the highest bits of red, and so on."""
    numbers = np.arange(256)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (numbers >> channel & 1) << 7 - bit
        numbers >>= 3
    return list(map(int, colors.ravel()))


def write_otb(scene: Scene, root: Path, name: str, target: int) -> Path:
    """Write OTB's layout: img/0001.jpg and the 1-based box of one object in every frame."""
    path = root / name
    _write_images(scene, path / "img", "{:04}.jpg", first=1)
    boxes = scene.boxes[target] + (1, 1, 0, 0)
    np.savetxt(path / "groundtruth_rect.txt", boxes, "%d", ",")
    return path
