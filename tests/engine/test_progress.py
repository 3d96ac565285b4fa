"""Lines in log files, remaining time, and the clock that stops for probes and checkpoints."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest

from mec.engine import progress
from mec.engine.progress import ProgressBar, format_duration
from mec.pretraining import pretrain
from tests.pretraining.test_run import TINY


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Log a line every 50 ms."""
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.05)
    caplog.set_level(logging.INFO, "mec")


def wait_for_line(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 10
    while not any(text in line for line in caplog.messages):
        assert time.monotonic() < deadline, caplog.messages
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1e-12, "0 s"), (0.4, "0.4 s"), (45.2, "45 s"), (59.4, "59 s"), (60, "1 min"), (95, "1.6 min"),
        (3600, "1 h"), (46_800, "13 h"), (12_200, "3.4 h"), (181_000, "2.1 days"), (8_640_000, "100 days"),
    ],
)  # fmt: skip
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.usefixtures("often")
def test_a_line_is_logged_while_nothing_advances(caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("training", 10, unit="steps") as bar:
        wait_for_line(caplog, "training: working for ")
        bar.advance(5, lambda: "loss 1.5")
        wait_for_line(caplog, "training: 5 of 10 steps  loss 1.5, ")
        with ProgressBar("online probe"):
            wait_for_line(caplog, "online probe: working for ")
            count = sum("training" in line for line in caplog.messages)
            time.sleep(0.15)
            assert sum("training" in line for line in caplog.messages) == count  # only the innermost bar logs
    count = len(caplog.messages)
    time.sleep(0.15)
    assert len(caplog.messages) == count


@pytest.mark.usefixtures("often")
def test_a_bar_without_label_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with ProgressBar("", 10) as bar:
        time.sleep(0.15)
        bar.advance(5)
    assert not caplog.messages


def test_the_remaining_time_leaves_out_the_start_and_falls_during_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = ProgressBar("", 102)
    assert math.isnan(bar.seconds_left)
    for seconds, left in ((60, 101 * 60), (2, 100 * 2), (4, 99 * 3)):  # the first unit compiles
        now[0] += seconds
        bar.advance(1)
        assert bar.seconds_left == left
    now[0] += 7
    assert bar.seconds_left == 99 * 3 - 7


class SlowProbe(lightning.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        time.sleep(1.0)


def test_time_in_callbacks_is_neither_data_wait_nor_training(tmp_path: Path) -> None:
    run = pretrain("digits", tmp_path / "run", replace(TINY, epochs=3), callbacks=[SlowProbe()])
    rows = run.metrics()
    first_of_epoch = [rows[i] for i in (5, 10)]
    others = [row for i, row in enumerate(rows) if i not in (0, 5, 10)]
    usual = sorted(row["images_per_second"] for row in others)[len(others) // 2]
    for row in first_of_epoch:
        assert row["data_wait_fraction"] < 0.5
        assert row["images_per_second"] > 0.3 * usual  # with the pause it would be a tenth
    assert rows[5]["seconds"] - rows[4]["seconds"] > 1.0


def test_the_duration_of_the_run_is_logged_in_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "MIN_ESTIMATE", 0.0)
    caplog.set_level(logging.INFO, "mec")
    epochs: list[int] = []

    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if any("about " in line for line in caplog.messages):
                epochs.append(trainer.current_epoch)

    pretrain("digits", tmp_path / "run", replace(TINY, epochs=2), callbacks=[Stop()])
    assert epochs[0] == 0
    (line,) = [line for line in caplog.messages if line.startswith("training: about ")]
    assert line.endswith(" for 2 epochs")
