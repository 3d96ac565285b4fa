"""Checkpoints that are damaged, hostile or left behind."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mec.engine.checkpoints import checkpoint_step, latest_checkpoint
from mec.errors import InputError
from mec.pretraining import checkpointing, pretrain
from tests.pretraining.test_resume_after_kill import assert_same_run
from tests.pretraining.test_run import TINY, quiet_console

SHORT = replace(TINY, epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of its steps 3, 4 and 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpointing, "SAVE_INTERVAL_SECONDS", 0.0)
        patch.setattr(checkpointing, "SAVE_INTERVAL_FACTOR", 0)
        return pretrain("digits", tmp_path_factory.mktemp("runs") / "run", SHORT, console=quiet_console()).folder


@pytest.fixture
def stopped(run: Path, tmp_path: Path) -> Path:
    """The same before its encoder was written."""
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped" / "encoder.safetensors").unlink()
    return tmp_path / "stopped"


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step=*.ckpt"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_last_three_are_kept_each_with_its_checksum(run: Path) -> None:
    assert [checkpoint_step(path) for path in checkpoints(run)] == [3, 4, 5]
    for path in checkpoints(run):
        assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_one_is_named_and_the_one_before_it_used(
    damage: Callable[[Path], None], run: Path, stopped: Path
) -> None:
    newest = checkpoints(stopped)[-1]
    damage(newest)
    console = quiet_console()
    pretrain("digits", stopped, SHORT, resume=True, console=console)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0] == f"{newest} is damaged: it does not have the checksum in its name"
    assert said[1] == f"resuming from {checkpoints(run)[-2]}".replace(str(run), str(stopped))
    assert newest.with_suffix(".damaged").exists()
    assert_same_run(stopped, run)


def test_none_that_is_sound(stopped: Path) -> None:
    for path in checkpoints(stopped):
        flip(path)
    with pytest.raises(InputError, match=r"^resume: all checkpoints in .* are damaged; start again in another folder$"):
        pretrain("digits", stopped, SHORT, resume=True, console=quiet_console())
    assert len(checkpoints(stopped)) == 3


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_hostile_one_does_not_run(stopped: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = pickle.dumps({"state_dict": Canary(canary)})
    pickle.loads(pickle.dumps(Canary(tmp_path / "it would")))
    assert (tmp_path / "it would").exists()
    hostile = stopped / "checkpoints" / f"step=000000009-{hashlib.sha256(content).hexdigest()[:16]}.ckpt"
    hostile.write_bytes(content)
    with pytest.raises(InputError, match=r"^resume: .*step=000000009.* cannot be read") as raised:
        pretrain("digits", stopped, SHORT, resume=True, console=quiet_console())
    assert "\n" not in str(raised.value)
    assert not canary.exists()


def test_what_killed_writes_left_is_swept(run: Path, stopped: Path) -> None:
    left = [
        stopped / "checkpoints" / ".step=000000005.ckpt.abcdefgh",
        stopped / ".metrics.csv.abcdefgh",
        stopped / ".encoder.safetensors.abcdefgh",
    ]
    for path in left:
        path.write_bytes(b"part")
    pretrain("digits", stopped, SHORT, resume=True, console=quiet_console())
    assert not [path for path in left if path.exists()]
    assert_same_run(stopped, run)


def test_of_a_step_written_twice_the_later_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, content in enumerate([b"later", b"earlier"]):
        path = folder / f"step=000000004-{hashlib.sha256(content).hexdigest()[:16]}.ckpt"
        path.write_bytes(content)
        os.utime(path, (1000 - age, 1000 - age))
    newest = latest_checkpoint(tmp_path, print)
    assert newest is not None
    assert newest.read_bytes() == b"later"
