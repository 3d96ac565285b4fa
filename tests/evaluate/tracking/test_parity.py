"""Short clips against what the original code (UniTrack) finds in them with the same encoder.

All of it is compared by benchmarks/unitrack_parity.py.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mec import evaluate
from mec.evaluate.tracking.association import Association, Associator
from mec.evaluate.tracking.datasets.davis import open_mask_sequences
from mec.evaluate.tracking.datasets.single_object import open_box_sequences
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.metrics.otb import box_figures
from mec.evaluate.tracking.sequences import FrameObjects, ImageFrames
from mec.evaluate.tracking.similarity import reconstruction_similarity
from mec.evaluate.tracking.track_objects import boxes_look
from mec.evaluate.tracking.vos import follow_masks
from tests.conftest import SHARED

CLIP = 4
TRACKERS = {"xcorr": "siamfc_cross_correlation", "dcf": "cfnet_dcf"}


@pytest.fixture(scope="module")
def golden() -> Path:
    """The original's figures and the encoder they are of: MEC_GOLDEN, or ``golden`` in ``shared`` beside the
    checkout."""
    path = Path(os.environ.get("MEC_GOLDEN", SHARED / "golden"))
    if not (path / "unitrack.json").exists():
        pytest.skip(f"the original code's figures are not in {path}; set MEC_GOLDEN")
    return path


@pytest.fixture(scope="module")
def known(golden: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((golden / "unitrack.json").read_text())
    return figures


@pytest.fixture(scope="module")
def dense(golden: Path) -> Dense:
    return Dense(golden / "resnet18_seed0.pth", half=False)


def test_the_map_is_the_one_that_was_used(dense: Dense) -> None:
    assert (dense.stride, dense.channels) == (8, 256)


def test_masks_frame_by_frame(real_data: Path, dense: Dense, known: dict[str, Any]) -> None:
    name = "blackswan"
    sequence = open_mask_sequences(real_data / "davis16-subset", [name])[name]()
    assert isinstance(sequence.frames, ImageFrames)
    first = sequence.truth(0)
    assert first is not None
    clip = ImageFrames(sequence.frames.files[: CLIP + 1])
    overlaps = []
    for t, found in enumerate(follow_masks(clip, first, dense)):
        truth = sequence.truth(t)
        assert truth is not None
        overlaps.append(((found == 1) & (truth == 1)).sum() / ((found == 1) | (truth == 1)).sum())
    assert overlaps[0] == 1  # given
    np.testing.assert_allclose(overlaps[1:], known["vos"]["sequences"][name]["J_per_frame"][:CLIP], atol=0.002)


def joggers(folder: Path) -> NDArray[np.float64]:
    """(2, frames, 4)."""
    files = sorted(folder.glob("groundtruth_rect.[12].txt"))
    return np.array([[re.split(r"[\s,]+", line.strip()) for line in f.read_text().splitlines()] for f in files], float)


def test_two_joggers_are_told_apart_by_looks(real_data: Path, dense: Dense, known: dict[str, Any]) -> None:
    """In all frames of the original, pairs cost at most 0.0862 where they are of one person, and 0.4358 else."""
    theirs = known["mot"]["sequences"]["Jogging"]
    boxes = joggers(real_data / "OTB100" / "Jogging")
    frames = ImageFrames(tuple(sorted((real_data / "OTB100" / "Jogging" / "img").glob("*.jpg"))[:CLIP]))
    look, associator = boxes_look(dense), Associator(Association(gated=True))
    before = None
    for t, frame in enumerate(frames):
        looked = look(frame, FrameObjects(boxes[:, t], np.ones(2)))
        ids, numbers, _ = associator.step(looked.boxes, looked.looks)
        assert list(zip(ids, numbers, strict=True)) == [(1, 0), (2, 1)]
        if before is not None:
            costs = 1 - reconstruction_similarity(before, looked.looks)
            same = np.diag(costs)
            assert same.max() < theirs["appearance_cost_same_identity_mean_max"][1] + 1e-4
            assert costs[[0, 1], [1, 0]].min() > theirs["appearance_cost_other_identity_mean_min"][1] - 1e-4
        before = looked.looks


def test_boxes_that_stay(real_data: Path, known: dict[str, Any]) -> None:
    """What needs no tracker: which frames there are, the truth in them, and how it is measured."""
    theirs = known["sot"]["static_box_baseline"]
    for name, load in open_box_sequences(real_data / "OTB100", list(theirs)).items():
        truth = load().truth
        figures = box_figures(truth, np.repeat(truth[:1], len(truth), axis=0))
        assert figures["AUC"] == pytest.approx(theirs[name]["success_auc"], abs=6e-5)
        assert figures["precision"] == pytest.approx(theirs[name]["precision_20px"], abs=6e-5)


@pytest.mark.slow
def test_boxes_of_a_whole_sequence(real_data: Path, golden: Path, known: dict[str, Any], tmp_path: Path) -> None:
    """A frame more or less within a threshold is 0.0006 of AUC or 0.014 of precision, of 74 frames."""
    encoder = golden / "resnet18_seed0.pth"
    result = evaluate.sot(real_data / "OTB100", encoder, "both", sequences=["Football1"], half=False, out=tmp_path)
    for tracker, key in TRACKERS.items():
        theirs = known["sot"][key]["sequences"]["Football1"]
        assert result.figures[tracker]["AUC"] == pytest.approx(theirs["success_auc"], abs=0.002)
        assert result.figures[tracker]["precision"] == pytest.approx(theirs["precision_20px"], abs=0.015)
