"""Parity with the original code (UniTrack) on short clips, with the same encoder.

benchmarks/unitrack_parity.py compares whole sequences.
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
from mec.evaluate.tracking.appearance import reconstruction_similarity
from mec.evaluate.tracking.association import AssociationSettings, OnlineTracker
from mec.evaluate.tracking.datasets.davis import open_mask_sequences
from mec.evaluate.tracking.dense_features import DenseFeatures
from mec.evaluate.tracking.mot import extract_boxes
from mec.evaluate.tracking.sequences import FrameObjects, ImageFrames
from mec.evaluate.tracking.vos import track_masks
from tests.conftest import GOLDEN, SHARED

CLIP = 3
TRACKERS = {"xcorr": "siamfc_cross_correlation", "dcf": "cfnet_dcf"}


@pytest.fixture(scope="module")
def encoder() -> Path:
    """Return the encoder of the original run, in the folder MEC_GOLDEN or in shared/golden next to the checkout."""
    path = Path(os.environ.get("MEC_GOLDEN", SHARED / "golden")) / "resnet18_seed0.pth"
    if not path.exists():
        pytest.skip(f"no {path}, the encoder of the original run; set MEC_GOLDEN")
    return path


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((GOLDEN / "unitrack.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def dense(encoder: Path) -> DenseFeatures:
    return DenseFeatures(encoder, precision="32-true")


def test_encoder_has_the_stride_and_channels_of_the_original(dense: DenseFeatures) -> None:
    assert (dense.stride, dense.channels) == (8, 256)


def test_mask_overlap_of_every_frame_equals_the_original(
    real_data: Path, dense: DenseFeatures, original: dict[str, Any]
) -> None:
    name = "blackswan"
    sequence = open_mask_sequences(real_data / "davis16-subset", [name])[name]()
    assert isinstance(sequence.frames, ImageFrames)
    first = sequence.ground_truth(0)
    assert first is not None
    clip = ImageFrames(sequence.frames.files[: CLIP + 1])
    overlaps = []
    for t, labels in enumerate(track_masks(clip, first, dense)):
        truth = sequence.ground_truth(t)
        assert truth is not None
        overlaps.append(((labels == 1) & (truth == 1)).sum() / ((labels == 1) | (truth == 1)).sum())
    assert overlaps[0] == 1  # the first mask is an input
    np.testing.assert_allclose(overlaps[1:], original["vos"]["sequences"][name]["J_per_frame"][:CLIP], atol=0.002)


def read_joggers(folder: Path) -> NDArray[np.float64]:
    """Return the boxes (2, frames, 4) of both targets."""
    files = sorted(folder.glob("groundtruth_rect.[12].txt"))
    return np.array([[re.split(r"[\s,]+", line.strip()) for line in f.read_text().splitlines()] for f in files], float)


def test_appearance_separates_two_joggers_as_in_the_original(
    real_data: Path, dense: DenseFeatures, original: dict[str, Any]
) -> None:
    """In the original, pairs of the same person cost at most 0.0862, other pairs at least 0.4358."""
    expected = original["mot"]["sequences"]["Jogging"]
    boxes = read_joggers(real_data / "OTB100" / "Jogging")
    frames = ImageFrames(tuple(sorted((real_data / "OTB100" / "Jogging" / "img").glob("*.jpg"))[:CLIP]))
    tracker = OnlineTracker(AssociationSettings(gating=True))
    previous = None
    for t, frame in enumerate(frames):
        objects, _, features = extract_boxes(frame, FrameObjects(boxes[:, t], np.ones(2)), dense)
        ids, indices, _ = tracker.step(objects.boxes, features)
        assert list(zip(ids, indices, strict=True)) == [(1, 0), (2, 1)]
        if previous is not None:
            costs = 1 - reconstruction_similarity(previous, features)
            same = np.diag(costs)
            assert same.max() < expected["appearance_cost_same_identity_mean_max"][1] + 1e-4
            assert costs[[0, 1], [1, 0]].min() > expected["appearance_cost_other_identity_mean_min"][1] - 1e-4
        previous = features


@pytest.mark.slow
def test_metrics_of_a_sequence_equal_the_original(
    real_data: Path, encoder: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    """One of 74 frames changes AUC by 0.0006 and precision by 0.014."""
    result = evaluate.sot(
        real_data / "OTB100", encoder, "both", sequences=["Football1"], precision="32-true", out=tmp_path
    )
    for tracker, key in TRACKERS.items():
        expected = original["sot"][key]["sequences"]["Football1"]
        assert result.values(tracker)["AUC"] == pytest.approx(expected["success_auc"], abs=0.002)
        assert result.values(tracker)["precision"] == pytest.approx(expected["precision_20px"], abs=0.015)
