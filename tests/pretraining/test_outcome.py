"""The sentence at the end of a run that says whether it helped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mec import evaluate
from mec.cli.main import main
from mec.models.encoder import create_encoder
from mec.pretraining import OnlineProbe, outcome, pretrain
from mec.pretraining.outcome import describe_outcome
from tests.pretraining.test_adaptation import SHORT


def test_the_numbers_are_those_of_the_few_shot_evaluation(tmp_path: Path) -> None:
    encoder = pretrain("digits", tmp_path / "run", SHORT).encoder()
    text = describe_outcome(OnlineProbe("digits", workers=0), encoder)
    assert text is not None
    result = evaluate.few_shot("digits", encoder, shots=[5], trials=50, workers=0)
    for row, title in (("encoder", "per class:"), ("untrained", "untrained"), ("raw pixels", "raw pixels")):
        value = 100 * result.metric("5 shots", row).value
        assert float(re.search(rf"{title} ([\d.]+) ±", text)[1]) == pytest.approx(value, abs=0.1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("own", "start", "pixels", "expected"),
    [
        (0.6, 0.5, 0.4, "helped by 10.0 ± 1.0 points"),
        (0.5, 0.6, 0.4, "hurt by 10.0 ± 1.0 points"),
        (0.505, 0.5, 0.4, r"no clear difference from start \(0.5 ± 1.0 points\)"),
        (0.6, 0.5, 0.8, "helped by 10.0 ± 1.0 points, but raw pixels are better by 20.0 ± 1.0 points"),
    ],
)
def test_differences_count_beyond_their_standard_deviation(
    own: float, start: float, pixels: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.array([-0.01, 0.01] * 25)
    scores = {"encoder": own + noise, "start": np.full(50, start), "raw pixels": np.full(50, pixels)}

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(outcome, "_features", lambda probe, encoder: map(Named, scores))
    monkeypatch.setattr(outcome, "_scores", lambda features, classes, shots: scores[features.name])
    torch.manual_seed(0)
    text = describe_outcome(OnlineProbe("digits", workers=0), create_encoder("resnet18", 16, 1))
    assert text is not None
    assert re.search(rf": {expected}$", text)


def test_a_run_of_the_command_ends_with_the_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--epochs 1 --subsample 8 --batch_size 32 --image_size 16 --workers 0 --precision 32-true".split()
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), *options]) == 0
    assert re.match(r"5 labels per class: .* untrained .* raw pixels ", capsys.readouterr().err.splitlines()[-1])
