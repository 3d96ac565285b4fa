"""``mec evaluate detect`` from the command line to its files; what is refused is in tests/cli/test_main.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mec
from mec.cli.main import main
from mec.evaluate.detection.training import Detection
from tests.evaluate.detection.scenes import coco_set, make_quick, tiny_encoder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a run folder as is needed; the working folder is one above it."""
    make_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    coco_set(tmp_path / "data", masks=False)
    mec.save_encoder(tiny_encoder(), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").touch()
    return tmp_path / "run"


def test_trained_in_the_run_folder_and_drawn(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate detect data --encoder run --batch-size 3 --iterations=2 --side 72 --workers 0 --baselines null"
    assert main([*command.split(), "--predict", "data/val2017", "--threshold", "0.1"]) == 0
    captured = capsys.readouterr()
    assert "encoder: encoder of run" in captured.err
    assert "added to run/results.jsonl; detectors and detections in run/detect-short" in captured.out
    assert captured.out.splitlines()[-1] == "run/detect-short/predicted"
    (line,) = (run / "results.jsonl").read_text().splitlines()
    assert (
        "2 iterations of 3, learning rate 0.0075, short side 72 to 81 px, 72 in testing" in json.loads(line)["protocol"]
    )
    assert list(json.loads(line)["figures"]) == ["encoder", "untrained"]
    assert {p.name for p in (run / "detect-short").iterdir()} == {
        "detect.json", "encoder-0", "untrained-0", "predicted",
    }  # fmt: skip
    drawn = [f"{i}.jpg" for i in range(1000, 1004)]
    assert sorted(p.name for p in (run / "detect-short" / "predicted").iterdir()) == [*drawn, "detections.json"]


def test_drawn_with_a_detector_that_is_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "evaluate detect data --encoder run --out out --iterations 1 --workers 0 --baselines false"
    assert main(train.split()) == 0
    assert (run.parent / "out" / "results.jsonl").exists()
    assert not (run / "results.jsonl").exists()
    capsys.readouterr()
    assert main("evaluate detect --predict data/val2017/1001.png --out out --workers 0".split()) == 0
    assert capsys.readouterr().out == "out/predicted\n"
    assert sorted(p.name for p in (run.parent / "out" / "predicted").iterdir()) == ["1001.jpg", "detections.json"]
    assert main([*train.split()]) == 2
    assert capsys.readouterr().err == "mec: out: out already holds detectors; take another folder, or --resume\n"
    assert main([*train.split(), "--resume"]) == 0


def test_interrupted_and_resumed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "evaluate detect data --encoder run --out out --workers 0 --baselines false".split()
    step = Detection.training_step

    def stops(self: Detection, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Detection, "training_step", stops)
        assert main(command) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "mec: interrupted"
    assert "Traceback" not in captured.err
    assert not (run.parent / "out" / "results.jsonl").exists()
    assert main([*command, "--resume"]) == 0
    assert len((run.parent / "out" / "results.jsonl").read_text().splitlines()) == 1
