"""SIGTERM stops every training after a checkpoint, and a resumed one has the results of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mec
from mec.errors import InputError
from mec.evaluate import finetune, linear
from mec.evaluate.detection.training import DetectionModule
from mec.evaluate.supervised import Classifier
from mec.models.encoder import create_encoder
from tests.evaluate.detection.scenes import coco_dataset, tiny_encoder
from tests.pretraining.interrupted_runs import start_mec
from tests.processes import exit_status

COMMANDS: dict[str, tuple[Any, int, str]] = {
    "finetune": (Classifier, 25, "--shots 5 --trials 2 --epochs 16 --batch_size 25"),  # in the second training
    "linear": (Classifier, 3, "--protocol paper --epochs 3 --batch_size 512"),
    "detect": (DetectionModule, 2, "--max_steps 4 --batch_size 2 --short_side 64"),
}
"""Task -> module that trains, the step at which it is stopped, and options."""


def terminate_at_step(module: Any, step: int) -> None:
    """Patch this process to send SIGTERM to itself at a step of a training."""
    training_step = module.training_step

    def patched(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    module.training_step = patched


@pytest.mark.parametrize("task", COMMANDS)
def test_an_evaluation_stopped_by_sigterm_resumes_with_equal_results(task: str, tmp_path: Path) -> None:
    module, step, options = COMMANDS[task]
    data = str(coco_dataset(tmp_path / "data", train=8, test=4)) if task == "detect" else "digits"
    encoder = tiny_encoder() if task == "detect" else create_encoder("test_resnet", 16, 1)
    mec.save_encoder(encoder, tmp_path / "encoder")

    def run(out: str, *more: str, patch: Any = None) -> int:
        arguments = ["evaluate", task, data, "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / out)]
        arguments += [*options.split(), "--baselines", "false", "--workers", "0", *more]
        return exit_status(start_mec(arguments, tmp_path / f"{out}.txt", patch))

    assert run("undisturbed") == 0
    assert run("stopped", patch=partial(terminate_at_step, module, step)) == 75
    printed = (tmp_path / "stopped.txt").read_text()
    assert f"saved at step {step + 1}; continue with --resume" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "stopped" / "results.jsonl").exists()
    if task != "linear":  # it shares the check with finetune
        assert run("stopped") == 2  # a training is there
        assert run("stopped", "--resume", "--batch_size", "4") == 2  # not this one
        assert "batch_size: " in (tmp_path / "stopped.txt").read_text()
    assert run("stopped", "--resume") == 0
    undisturbed, resumed = (
        json.loads((tmp_path / f / "results.jsonl").read_text()) for f in ("undisturbed", "stopped")
    )
    assert resumed["rows"] == undisturbed["rows"]
    left = {p.name for p in (tmp_path / "stopped").iterdir()}
    assert left == ({".lock", "encoder-0", "settings.json", "results.jsonl"} if task == "detect" else {"results.jsonl"})


def test_resume_needs_a_folder_and_a_protocol_with_checkpoints() -> None:
    encoder = create_encoder("test_resnet", 16, 1)
    with pytest.raises(InputError, match="resume: "):
        finetune("digits", encoder, resume=True)
    with pytest.raises(InputError, match="resume: "):
        linear("digits", encoder, resume=True)
