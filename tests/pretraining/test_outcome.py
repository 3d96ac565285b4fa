"""The sentence at the end of a run that says whether it helped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mec import evaluate
from mec.cli.main import main
from mec.evaluate.task import Features
from mec.models.encoder import create_encoder
from mec.pretraining import OnlineProbe, outcome, pretrain
from mec.pretraining.outcome import count_copies, measure_outcome
from mec.report.record import read_records
from mec.report.verdict import headline
from tests.pretraining.test_adaptation import SHORT


def test_the_numbers_are_those_of_the_few_shot_evaluation(tmp_path: Path) -> None:
    encoder = pretrain("digits", tmp_path / "run", SHORT).encoder()
    measured = measure_outcome(OnlineProbe("digits", workers=0), encoder)
    result = evaluate.few_shot("digits", encoder, shots=[5], trials=50, workers=0)
    for row, title in (("encoder", "per class:"), ("untrained", "untrained"), ("raw pixels", "raw pixels")):
        value = 100 * result.metric("5 shots", row).value
        assert float(re.search(rf"{title} ([\d.]+) ±", str(measured))[1]) == pytest.approx(value, abs=0.1)  # type: ignore[index]


@pytest.mark.parametrize(
    ("own", "start", "pixels", "level", "verdict"),
    [
        (0.6, 0.5, 0.4, "ok", "helped by 10.0 ± 1.0 points"),
        (0.5, 0.6, 0.4, "warning", "hurt by 10.0 ± 1.0 points"),
        (0.505, 0.5, 0.4, "note", "no clear difference from start (0.5 ± 1.0 points)"),
        (0.6, 0.5, 0.8, "warning", "helped by 10.0 ± 1.0 points, but raw pixels are better by 20.0 ± 1.0 points"),
    ],
)
def test_differences_count_beyond_their_standard_deviation(
    own: float, start: float, pixels: float, level: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.array([-0.01, 0.01] * 25)
    scores = {"encoder": own + noise, "start": np.full(50, start), "raw pixels": np.full(50, pixels)}

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(outcome, "_features", lambda probe, encoder: map(Named, scores))
    monkeypatch.setattr(outcome, "count_copies", lambda features, channels: 0)
    monkeypatch.setattr(outcome, "_scores", lambda features, classes, shots: scores[features.name])
    torch.manual_seed(0)
    measured = measure_outcome(OnlineProbe("digits", workers=0), create_encoder("resnet18", 16, 1))
    assert measured is not None
    assert (measured.level, measured.verdict) == (level, verdict)
    assert str(measured) == (
        f"5 labels per class: {100 * own:.1f} ± 1.0 %, start {100 * start:.1f} ± 0.0 %, "
        f"raw pixels {100 * pixels:.1f} ± 0.0 %: {verdict}"
    )


def test_few_test_images_give_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = OnlineProbe("digits", workers=0)
    train, test = probe.sampled
    labels = np.asarray(test.labels)
    chosen = np.concatenate([np.flatnonzero(labels == c)[:4] for c in range(10)])
    probe.sampled = [train, test.subset(chosen)]
    measured = measure_outcome(probe, create_encoder("resnet18", 16, 1))
    assert measured is not None
    assert (measured.level, measured.verdict) == ("note", "no verdict, because 40 test images are too few")


def test_a_run_of_the_command_ends_with_the_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--epochs 1 --subsample 8 --batch_size 32 --image_size 16 --workers 0 --precision 32-true".split()
    assert main(["pretrain", "digits", "--out", str(tmp_path / "run"), *options]) == 0
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"5 labels per class: .* untrained .* raw pixels ", last_line)
    (record,) = read_records([tmp_path / "run"])
    assert str(record.outcome) == last_line
    result = headline(record)
    assert last_line.endswith(result.title[0].lower() + result.title[1:])
    assert "with 5 labels per class" in result.text
    assert [bar.name for bar in result.bars] == ["trained encoder", "untrained encoder", "raw pixels"]


def test_copies_of_train_images_in_the_test_split_are_counted() -> None:
    random = np.random.default_rng(0)
    originals = random.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(x).resize((64, 64), Image.Resampling.BICUBIC) for x in originals]

    def pixels(images: list[Image.Image]) -> torch.Tensor:
        arrays = [np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).flatten(1).float() / 255

    brighter = [Image.fromarray((np.asarray(image) * 0.7 + 60).astype(np.uint8)) for image in large[:4]]
    smaller = [image.resize((40, 40)) for image in large[4:7]]
    labels = torch.zeros(20, dtype=torch.int64)
    features = Features("raw pixels", pixels(large[:20]), labels, pixels([*brighter, *smaller, *large[20:]]), labels)
    assert count_copies(features, 3) == 7
    small = Features("raw pixels", features.train[:, :192], labels, features.train[:, :192], labels)
    assert count_copies(small, 3) == 0


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"level": "ok", "shots": 5, "accuracies": [1], "verdict": "v", "copies": 0}']
)
def test_a_damaged_file_is_no_outcome(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: 3\n")
    (tmp_path / "outcome.json").write_text(text)
    (record,) = read_records([tmp_path])
    assert record.outcome is None
    assert len(record.notes) == (text not in ("", "{}"))
