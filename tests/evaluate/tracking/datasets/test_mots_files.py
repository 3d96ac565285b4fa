from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask

from mec.evaluate.tracking.datasets.mask_rows import read_mask_rows
from mec.evaluate.tracking.datasets.mots import (
    mask_objects,
    read_mots_tracks,
    remove_overlaps,
    write_mots_tracks,
)
from mec.evaluate.tracking.sequences import UNUSABLE, FrameObjects
from tests.evaluate.tracking.mots_scenes import HEIGHT, WIDTH, block, mask_lines, rle


def mask_frame(*masks: np.ndarray, scores: list[float] | None = None, ids: list[int] | None = None) -> FrameObjects:
    numbers = np.arange(len(masks)) if ids is None else np.array(ids, np.int64)
    return mask_objects([rle(mask) for mask in masks], np.array(scores or [1.0] * len(masks)), numbers)


def test_run_lengths_of_any_mask_are_parsed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = [rng.random((HEIGHT, WIDTH)) < density for density in (0, 0.01, 0.5, 0.99, 1)]
    shapes += [np.indices((HEIGHT, WIDTH)).sum(axis=0) % 2 == parity for parity in (0, 1)]
    (tmp_path / "a.txt").write_text(mask_lines([(i, i, 2, shape.astype(np.uint8)) for i, shape in enumerate(shapes)]))
    rows = read_mask_rows(tmp_path / "a.txt")
    assert [row.pixels for row in rows] == [shape.sum() for shape in shapes]
    for row, shape in zip(rows, shapes, strict=True):
        assert (coco_mask.decode(row.mask) == shape).all()


def test_random_text_is_rejected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        random_text = bytes(rng.integers(33, 127, rng.integers(1, 30)).astype(np.uint8)).decode()
        (tmp_path / "a.txt").write_text(f"1 2001 2 40 60 {random_text}\n")
        with pytest.raises(UNUSABLE, match=r"a\.txt: line 1: expected "):
            read_mask_rows(tmp_path / "a.txt")


def test_overlaps_go_to_the_higher_score_or_the_smaller_mask() -> None:
    wide, narrow, far = block(0, 0, 10, 4), block(8, 0, 6, 4), block(40, 0, 3, 4)
    by_score = remove_overlaps(mask_frame(wide, narrow, far, scores=[0.9, 0.5, 0.1], ids=[7, 8, 9]))
    assert by_score.boxes.tolist() == [[0, 0, 10, 4], [10, 0, 4, 4], [40, 0, 3, 4]]
    assert (by_score.scores.tolist(), by_score.ids is not None and by_score.ids.tolist()) == (
        [0.9, 0.5, 0.1], [7, 8, 9]
    )  # fmt: skip
    by_area = remove_overlaps(mask_frame(wide, narrow, far))
    assert by_area.boxes.tolist() == [[0, 0, 8, 4], [8, 0, 6, 4], [40, 0, 3, 4]]


def test_covered_objects_are_removed() -> None:
    remaining = remove_overlaps(mask_frame(block(2, 2, 3, 3), block(0, 0, 9, 9), scores=[0.1, 0.9], ids=[4, 5]))
    assert (remaining.ids is not None and remaining.ids.tolist(), remaining.boxes.tolist()) == ([5], [[0, 0, 9, 9]])


@pytest.mark.parametrize(
    ("name", "line"),
    [("MOTS20-02", "2 3 2 40 60 "), ("0002 car", "1 31 1 40 60 "), ("0002 pedestrian", "1 32 2 40 60 ")],
)
def test_tracks_round_trip(tmp_path: Path, name: str, line: str) -> None:
    tracks = [mask_frame(), mask_frame(block(1, 2), block(30, 5), ids=[3, 12]), mask_frame()]
    write_mots_tracks(tmp_path, name, tracks)
    written = (tmp_path / f"{name}.txt").read_text()
    assert written.startswith(line)
    read_back = read_mots_tracks(tmp_path, name, 3)
    assert [objects.ids is not None and objects.ids.tolist() for objects in read_back] == [[], [3, 12], []]
    assert read_back[1].boxes.tolist() == [[1, 2, 8, 10], [30, 5, 8, 10]]
    masks = read_back[1].masks
    assert masks is not None
    assert (coco_mask.decode(masks[1]) == block(30, 5)).all()
    write_mots_tracks(tmp_path, name, read_back)
    assert (tmp_path / f"{name}.txt").read_text() == written


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([(3, 1, 2, block(0, 0))], "line 1: expected a frame of 1 to 2"),
        ([(0, 1, 2, block(0, 0))], "line 1: expected a frame of 1 to 2"),
        ([(1, 1, 1, block(0, 0))], "line 1: expected class 2, and every id once"),
        ([(1, 1, 2, block(0, 0)), (1, 1, 2, block(20, 0))], "line 2: expected class 2, and every id once per frame"),
    ],
)
def test_invalid_tracks_are_rejected(tmp_path: Path, lines: list, message: str) -> None:
    (tmp_path / "a.txt").write_text(mask_lines(lines))
    with pytest.raises(UNUSABLE, match=message):
        read_mots_tracks(tmp_path, "a", 2)


@pytest.mark.parametrize("data", [None, b"\xff\xfe\x00"])
def test_files_that_are_not_text_are_rejected(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UNUSABLE, match=r"a.txt( cannot be read .No such file| is not text)"):
        read_mots_tracks(tmp_path, "a", 2)
