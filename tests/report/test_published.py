"""Which published figures stand beside a result: those of its protocol on its data, and no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mec import evaluate
from mec.evaluate.detection.schedules import SCHEDULES
from mec.evaluate.supervised import PAPER_PROBE, SIMSIAM_PROBE, in_words
from mec.report.published import published
from mec.report.schema import Published
from tests.report.runs import narrow, noisy

ROWS = {"encoder": {"top-1": 0.5}, "untrained": {"top-1": 0.1}}
IMAGENET = "imagenet/ (1,281,167 train, 50,000 test, 1000 classes)"
RESULTS: dict[str, dict[str, Any]] = {
    "paper": {
        "task": "linear",
        "protocol": f"offline linear probe, paper: {in_words(PAPER_PROBE, 1_281_167)}, 224 px, last epoch, %",
        "data": IMAGENET,
    },
    "simsiam": {
        "task": "linear",
        "protocol": f"offline linear probe, simsiam: {in_words(SIMSIAM_PROBE, 1_281_167)}, 224 px, last epoch, %",
        "data": IMAGENET,
    },
    "voc": {
        "task": "detect",
        "protocol": f"Faster R-CNN C4, voc07+12: {SCHEDULES['voc07+12'].in_words()}; VOC2007's figures (11 points); "
        "mean ± std of 5 seeds",
        "data": "VOCdevkit (16,551 train, 4,952 test, 20 classes)",
    },
    "coco": {
        "task": "detect",
        "protocol": f"Mask R-CNN C4, coco-1x: {SCHEDULES['coco-1x'].in_words()}; COCO's figures; seed 0",
        "data": "coco (118,287 train, 5,000 test, 80 classes)",
    },
    "sot": {
        "task": "sot",
        "protocol": "frozen features, as published (UniTrack): three search regions of 520 px, 65 x 65 cells; 15 "
        "frames a second, 90% of the time in the encoder",
        "data": "OTB100 (100 sequences, 59,035 frames)",
        "figures": {"dcf": {"AUC": 0.5}, "xcorr": {"AUC": 0.5}, "first box": {"AUC": 0.1}},
    },
    "vos": {
        "task": "vos",
        "protocol": "frozen features (UniTrack): labels of the 10 most similar cells of the first frame and of the "
        "last 5 within 12 cells, temperature 0.05; masks from before",
        "data": "DAVIS (30 sequences, 1,999 frames)",
    },
}


def beside(name: str, **changes: Any) -> list[Published]:
    return published({"figures": ROWS, **RESULTS[name], **changes})


def test_the_figures_are_the_sources() -> None:
    """MEC: the official code's README; SimSiam paper, Tables 4 and 5; UniTrack's docs/RESULTS.md. In percent there."""
    found = {name: [list(one.figures.values()) for one in beside(name)] for name in RESULTS}
    percent = {name: [[round(100 * v, 6) for v in row] for row in rows] for name, rows in found.items()}
    assert percent == {
        "paper": [[70.8]],
        "simsiam": [[68.1], [70.0], [70.8], [71.3]],
        "voc": [[81.3, 53.5, 58.8], [82.3, 57.0, 63.3], [82.4, 57.0, 63.7]],
        "coco": [[58.2, 38.2, 41.2], [58.8, 39.2, 42.5], [59.3, 39.2, 42.1]],
        "sot": [[55.5], [61.8]],
        "vos": [[58.4]],
    }
    assert [list(beside(name)[0].figures) for name in ("paper", "voc", "sot", "vos")] == [
        ["top-1"],
        ["AP50", "AP", "AP75"],
        ["AUC"],
        ["J"],
    ]
    assert all(one.what and one.source for name in RESULTS for one in beside(name))


@pytest.mark.parametrize("name", RESULTS)
def test_other_data_has_none(name: str) -> None:
    data = RESULTS[name]["data"]
    assert beside(name, data=data.replace("(", "(1")) == []
    assert beside(name, data=f"{data} of others") == []
    assert beside(name, data="cifar10 (50,000 train, 10,000 test, 10 classes)") == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("paper", "0.03 for", "0.3 for"),
        ("paper", "batch 4096", "batch 1024"),
        ("paper", "224 px", "64 px"),
        ("paper", "paper:", "fast:"),
        ("simsiam", "90 epochs", "9 epochs"),
        ("voc", "C4", "FPN"),
        ("voc", "24,000", "2,400"),
        ("voc", "800 in testing", "80 in testing"),
        ("voc", "VOC2007's figures (11 points)", "VOC's figures"),
        ("coco", "Mask", "Faster"),
        ("coco", "coco-1x", "coco-2x"),
        ("sot", "as published", "corrected"),
        ("sot", "65 x 65", "33 x 33"),
        ("vos", "10 most", "5 most"),
        ("vos", "0.05;", "0.055;"),
    ],
)
def test_other_protocols_have_none(name: str, old: str, new: str) -> None:
    protocol = RESULTS[name]["protocol"]
    assert old in protocol
    assert beside(name)
    assert beside(name, protocol=protocol.replace(old, new)) == []


def test_a_tracker_that_was_not_measured_has_none() -> None:
    assert [one.figures for one in beside("sot", figures={"dcf": {"AUC": 0.5}})] == [{"AUC": 0.618}]


@pytest.mark.parametrize("result", [{}, {"task": "linear"}, {"task": "demo", "figures": None, "protocol": None}])
def test_lines_that_lack_something_have_none(result: dict[str, Any]) -> None:
    assert published(result) == []


def test_what_is_written_is_what_is_looked_for(tmp_path: Path) -> None:
    """The words of a real result differ from those above in the numbers of images, steps and pixels alone."""
    labels = np.arange(20) % 2
    np.savez(tmp_path / "a.npz", images=np.stack([noisy(i, 8, 8) for i in range(20)]), labels=labels)
    result = evaluate.linear(tmp_path / "a.npz", narrow(), "paper", baselines=False, workers=0)
    protocol = result.protocol.replace("batch 16", "batch 4096").replace("= 100 steps", "= 31,300 steps")
    assert protocol.replace("32 px", "224 px") == RESULTS["paper"]["protocol"]
    assert result.data == f"{tmp_path / 'a.npz'} (16 train, 4 test, 2 classes)"
    assert "encoder" in result.figures


def test_otb_has_so_many_frames(real_data: Path) -> None:
    lists = {"attr_list", "cvpr13", "tb_50", "tb_100"}
    truths = {f.stem: f for f in (real_data / "OTB100" / "anno").glob("*.txt") if f.stem not in lists}
    rows = {name: sum(bool(line.strip()) for line in truths[name].read_text().split("\n")) for name in truths}
    assert len(rows) == 100
    assert f"{sum(rows.values()) - 5:,} frames" in RESULTS["sot"]["data"]
