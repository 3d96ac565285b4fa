"""SIGTERM outside of a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mec.cli.signals import _how_to_continue
from tests.processes import free_port, torchrun_environment


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("pretrain data --out run", "--resume"),
        ("pretrain data --out=run", "--resume"),
        ("evaluate linear data --encoder resnet18 --out out", "--resume"),
        ("evaluate finetune data --encoder RUN", "--resume"),  # whose folder keeps the checkpoints
        ("evaluate detect data --encoder=RUN", "--resume"),
        ("evaluate detect data --encoder resnet18", ""),
        ("evaluate knn data --encoder resnet18 --out out", ""),
        ("embed data --encoder resnet18 --out a.npy", "again"),
        ("export --encoder resnet18 --out a", ""),
        ("", ""),
    ],
)
def test_commands_that_can_be_continued_are_recognized(command: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    hint = _how_to_continue(command.replace("RUN", str(tmp_path)).split())
    assert expected in hint
    assert bool(expected) == bool(hint)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [("pretrain digits --out run", 75), ("embed digits --encoder resnet18 --out a.npy", 75), ("doctor", -15)],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_during_the_imports_asks_for_a_retry(
    arguments: str, status: int, processes: int, tmp_path: Path
) -> None:
    """A module that is imported early takes forever."""
    (tmp_path / "jsonargparse.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    port = free_port()
    path = os.pathsep.join([str(tmp_path), *sys.path])
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "mec", *arguments.split()],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path} | (torchrun_environment(r, 2, port) if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(processes)
    ]
    begin = time.monotonic()
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
    for process in started:
        process.send_signal(signal.SIGTERM)
    lines = [line for process in started for line in process.communicate(timeout=30)[1].splitlines()]
    assert [process.returncode for process in started] == [status] * processes
    assert time.monotonic() - begin < 30
    assert len(lines) == (status == 75)  # rank 0 prints
    assert all("nothing is lost" in line for line in lines)
