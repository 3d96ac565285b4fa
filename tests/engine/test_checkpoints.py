"""Damaged, malicious and left-over checkpoint files."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mec import evaluate, load_encoder
from mec.engine.checkpoints import latest_checkpoint
from mec.errors import InputError
from mec.models.checkpoint_files import checkpoint_step
from mec.pretraining import TeacherSettings, pretrain
from tests.pretraining.test_resume_after_kill import assert_same_run
from tests.pretraining.test_run import TINY

SHORT = replace(TINY, epochs=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 3, 4 and 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_SECONDS", 0.0)
        patch.setattr("mec.engine.checkpoints.SAVE_INTERVAL_FACTOR", 0)
        return pretrain("digits", tmp_path_factory.mktemp("runs") / "run", SHORT).folder


@pytest.fixture
def stopped_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, stopped before its encoder was written."""
    shutil.copytree(run, tmp_path / "stopped")
    (tmp_path / "stopped" / "encoder.safetensors").unlink()
    return tmp_path / "stopped"


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step=*.ckpt"))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_the_last_three_checkpoints_are_kept_with_their_checksums(run: Path) -> None:
    assert [checkpoint_step(path) for path in checkpoints(run)] == [3, 4, 5]
    for path in checkpoints(run):
        assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty])
def test_resume_skips_a_damaged_checkpoint_and_logs_it(
    damage: Callable[[Path], None], run: Path, stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(stopped_run)[-1]
    damage(newest)
    pretrain("digits", stopped_run, SHORT, resume=True)
    _, _, *lines = capsys.readouterr().err.splitlines()  # the first ones name the dataset and the start
    assert lines[0] == f"warning: {newest} is damaged: its checksum does not match its name"
    assert lines[1] == f"resuming from {checkpoints(run)[-2]}".replace(str(run), str(stopped_run))
    assert newest.with_suffix(".damaged").exists()
    assert_same_run(stopped_run, run)


def test_resume_fails_if_all_checkpoints_are_damaged(stopped_run: Path) -> None:
    for path in checkpoints(stopped_run):
        flip_bit(path)
    with pytest.raises(InputError, match=r"^resume: all checkpoints in .* are damaged; start again in another folder$"):
        pretrain("digits", stopped_run, SHORT, resume=True)
    assert len(checkpoints(stopped_run)) == 3


class MakeFolder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_does_not_run(stopped_run: Path, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(MakeFolder(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()
    folder = tmp_path / "folder"
    content = pickle.dumps({"state_dict": MakeFolder(folder)}, protocol=2)
    malicious = stopped_run / "checkpoints" / f"step=000000009-{hashlib.sha256(content).hexdigest()[:16]}.ckpt"
    malicious.write_bytes(content)
    with pytest.raises(InputError, match=r"^resume: .*step=000000009.* cannot be read") as raised:
        pretrain("digits", stopped_run, SHORT, resume=True)
    assert "\n" not in str(raised.value)
    assert not folder.exists()


def test_resume_removes_temporary_files_of_a_killed_process(run: Path, stopped_run: Path) -> None:
    temporary_files = [
        stopped_run / "checkpoints" / ".step=000000005.ckpt.abcdefgh",
        stopped_run / ".metrics.csv.abcdefgh",
        stopped_run / ".encoder.safetensors.abcdefgh",
    ]
    for path in temporary_files:
        path.write_bytes(b"incomplete")
    pretrain("digits", stopped_run, SHORT, resume=True)
    assert not [path for path in temporary_files if path.exists()]
    assert_same_run(stopped_run, run)


def test_the_later_of_two_checkpoints_of_a_step_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for seconds_ago, content in enumerate([b"later", b"earlier"]):
        path = folder / f"step=000000004-{hashlib.sha256(content).hexdigest()[:16]}.ckpt"
        path.write_bytes(content)
        os.utime(path, (1000 - seconds_ago, 1000 - seconds_ago))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.read_bytes() == b"later"


def weights(source: Path | str) -> dict[str, Tensor]:
    return load_encoder(source).backbone.state_dict()


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_has_not_ended_stands_for_its_newest_checkpoint(
    run: Path, stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(weights(stopped_run), weights(run))  # the last checkpoint holds the final weights
    assert "using its checkpoint of step 5" in capsys.readouterr().err
    result = evaluate.knn("digits", stopped_run, k=[20], baselines=False)
    assert result.encoder == f"encoder of {stopped_run}, checkpoint of step 5"


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_loaded(
    damage: Callable[[Path], None], stopped_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, before, newest = checkpoints(stopped_run)
    expected = weights(before)
    damage(newest)
    assert_equal(weights(stopped_run), expected)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "checkpoint of step 4" in line
    assert newest.name in line
    assert newest.exists()  # only training moves damaged checkpoints


def test_a_run_without_an_intact_checkpoint_is_an_error_of_one_line(stopped_run: Path, tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(InputError, match=r"^encoder: ") as raised:
            load_encoder(folder)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for path in checkpoints(stopped_run):
        empty(path)
    assert "all 3 checkpoints are damaged" in message(stopped_run)
    shutil.rmtree(stopped_run / "checkpoints")
    assert "no checkpoint yet" in message(stopped_run)
    (tmp_path / "other").mkdir()
    assert "expected the folder of a run" in message(tmp_path / "other")


def test_of_student_and_teacher_the_final_encoder_is_chosen(tmp_path: Path) -> None:
    run = pretrain("digits", tmp_path / "run", replace(SHORT, teacher=TeacherSettings(True, 0.9, 8))).folder
    final = weights(run)
    (run / "encoder.safetensors").unlink()
    assert_equal(weights(run), final)
    teacher = weights(f"{run}:teacher")
    assert not all(torch.equal(teacher[key], final[key]) for key in final)
    assert load_encoder(f"{run}:teacher").origin.endswith("checkpoint of step 5, teacher")
