"""``mec evaluate detect`` from the command line to its files; rejected arguments are in tests/cli/test_main.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mec
from mec.cli.main import main
from mec.evaluate.detection.training import DetectionModule
from tests.evaluate.detection.scenes import coco_dataset, tiny_encoder, use_quick_schedule


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the necessary files of a run folder; the working directory is its parent."""
    use_quick_schedule(monkeypatch)
    monkeypatch.chdir(tmp_path)
    coco_dataset(tmp_path / "data", masks=False)
    mec.save_encoder(tiny_encoder(), tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").touch()
    return tmp_path / "run"


def test_training_in_the_run_folder_and_prediction(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate detect data --encoder run --batch-size 3 --max-steps=2 --short-side 72 --workers 0"
    arguments = [*command.split(), "--baselines", "null", "--predict", "data/val2017", "--threshold", "0.1"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "encoder: encoder of run" in captured.err
    assert "added to run/results.jsonl; detectors and detections in run/detect-short" in captured.out
    assert captured.out.splitlines()[-1] == "run/detect-short/predicted"
    (line,) = (run / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result["protocol"]["id"] == "detect-short"
    settings = result["protocol"]["settings"]
    assert (settings["max_steps"], settings["batch_size"], settings["lr"]) == (2, 3, 0.0075)
    assert (settings["train_short_side"], settings["test_short_side"]) == ([72, 81], 72)
    assert list(result["rows"]) == ["encoder", "untrained"]
    assert {p.name for p in (run / "detect-short").iterdir()} == {
        ".lock", "settings.json", "encoder-0", "untrained-0", "predicted",
    }  # fmt: skip
    drawn = [f"{i}.jpg" for i in range(1000, 1004)]
    assert sorted(p.name for p in (run / "detect-short" / "predicted").iterdir()) == [*drawn, "detections.json"]


def test_prediction_with_a_trained_detector(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = "evaluate detect data --encoder run --out out --max-steps 1 --workers 0 --baselines false".split()
    assert main(train) == 0
    assert (run.parent / "out" / "results.jsonl").exists()
    assert not (run / "results.jsonl").exists()
    capsys.readouterr()
    assert main("evaluate detect --predict data/val2017/1001.png --out out --workers 0".split()) == 0
    assert capsys.readouterr().out == "out/predicted\n"
    assert sorted(p.name for p in (run.parent / "out" / "predicted").iterdir()) == ["1001.jpg", "detections.json"]
    assert main(train) == 2
    assert capsys.readouterr().err.startswith("mec: out: out already contains a training; ")
    assert main([*train, "--resume"]) == 0


def test_an_interrupted_training_is_resumed(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "evaluate detect data --encoder run --out out --workers 0 --baselines false".split()
    training_step = DetectionModule.training_step

    def interrupt(self: DetectionModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 2:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", interrupt)
        assert main(command) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "mec: interrupted"
    assert "Traceback" not in captured.err
    assert not (run.parent / "out" / "results.jsonl").exists()
    assert main([*command, "--resume"]) == 0
    assert len((run.parent / "out" / "results.jsonl").read_text().splitlines()) == 1
