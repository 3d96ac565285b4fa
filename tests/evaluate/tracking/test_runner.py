"""What the five tasks share: resuming, checks of settings, skipped sequences, and cleaning up."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import mec
from mec import evaluate
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate import Result
from mec.evaluate.tracking.runner import TrackingRun
from mec.models.encoder import Encoder
from mec.results import cells
from tests.evaluate.tracking.crossings import TASKS, crossing, narrow_encoder, write_scene

ONE, TWO = "000001_one", "000002_two"
LENGTH = 3
SECOND_FRAME = {
    "sot": "{}/img/0002.jpg", "vos": "JPEGImages/480p/{}/00001.jpg", "mot": "{}/img1/000002.jpg",
    "mots": "{}/img1/000002.jpg", "pose": "images/val/{}/000001.jpg",
}  # fmt: skip
GROUND_TRUTH = {
    "sot": "{}/groundtruth_rect.txt", "vos": "Annotations/480p/{}/00000.png", "mot": "{}/gt/gt.txt",
    "mots": "{}/gt/gt.txt", "pose": "annotations/val/{}.json",
}  # fmt: skip


def run_task(task: str, data: Path, encoder: Encoder | Path, **options: Any) -> Result:
    result: Result = getattr(evaluate, task)(data, encoder, **options)
    return result


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def truncate(file: Path, end: bytes = b"") -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + end)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return narrow_encoder()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, scene = tmp_path_factory.mktemp("datasets"), crossing(LENGTH)
    for task in TASKS:
        for name in (ONE, TWO):
            write_scene(task, scene, root, name)
    return root


@pytest.fixture
def data(datasets: Path, tmp_path: Path, task: str) -> Path:
    """A copy of the dataset of the test's task, which the test may damage."""
    return Path(shutil.copytree(datasets / task, tmp_path / "data" / task))


@pytest.mark.parametrize("task", ["mots"])
def test_resume_after_an_interrupt_gives_the_same_files(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    complete, out = tmp_path / "complete", tmp_path / "out"
    expected = run_task(task, data, encoder, out=complete)
    advance, calls = ProgressBar.advance, [0]

    def interrupted_advance(self: ProgressBar, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == LENGTH + 2:
            raise KeyboardInterrupt
        advance(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressBar, "advance", interrupted_advance)
        run_task(task, data, encoder, out=out)
    tracks = {name for name in read_files(complete) if ONE in name and not name.startswith("previews")}
    assert set(read_files(out)) == {"settings.json", *tracks}
    capsys.readouterr()
    result = run_task(task, data, encoder, out=out, resume=True)
    log = capsys.readouterr().err
    assert TWO in log
    assert ONE not in log
    assert result.rows == expected.rows
    assert read_files(out) == read_files(complete)


@pytest.mark.parametrize("task", ["sot"])
def test_resume_of_a_complete_run_does_not_track(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_task(task, data, encoder, out=tmp_path / "out")
    monkeypatch.setattr("mec.evaluate.tracking.sot.track_box", None)
    second = run_task(task, data, encoder, out=tmp_path / "out", resume=True)
    assert second.rows == first.rows
    assert second.protocol == first.protocol
    assert second.note == "all tracks from an earlier run"
    assert "frames per second" in first.note


@pytest.mark.parametrize("task", TASKS)
def test_corrupt_tracks_are_tracked_again(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    run_task(task, data, encoder, out=tmp_path / "out")
    before = read_files(tmp_path / "out")
    file = sorted(f for f in (tmp_path / "out" / "tracks").rglob("*") if f.is_file() and TWO in str(f))[-1]
    truncate(file, b"\n?")
    run_task(task, data, encoder, out=tmp_path / "out", resume=True)
    assert read_files(tmp_path / "out") == before


@pytest.mark.parametrize("task", ["sot", "vos", "pose"])
def test_sequence_with_a_corrupt_frame_is_skipped(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    truncate(data / SECOND_FRAME[task].format(TWO))
    result = run_task(task, data, encoder, out=tmp_path / "both")
    alone = run_task(task, data, encoder, out=tmp_path / "one", sequences=[ONE])
    (name,) = result.skipped
    assert name == TWO
    assert SECOND_FRAME[task].format(TWO) in result.skipped[name]
    assert "\n" not in result.skipped[name]
    assert result.rows == alone.rows
    assert result.dataset.counts == {"sequences": 1, "frames": LENGTH}
    assert not any(TWO in name for name in read_files(tmp_path / "both"))
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert metrics["skipped"] == result.skipped
    assert metrics["metrics"] == json.loads((tmp_path / "one" / "metrics.json").read_text())["metrics"]


@pytest.mark.parametrize("task", ["vos", "mot"])
def test_dataset_without_usable_sequence_is_rejected(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    for name in (ONE, TWO):
        (data / GROUND_TRUTH[task].format(name)).write_text("one, two\n")
    with pytest.raises(InputError, match=f"^data: no sequence of .*{task} can be used; the first: {ONE}: [^\n]*$"):
        run_task(task, data, encoder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["mots"])
def test_dataset_with_corrupt_frames_only_is_rejected(task: str, data: Path, encoder: Encoder) -> None:
    for name in (ONE, TWO):
        truncate(data / SECOND_FRAME[task].format(name))
    with pytest.raises(InputError, match=f"^data: no sequence of .* can be used; the first: {ONE}: .*000002.jpg"):
        run_task(task, data, encoder)


@pytest.mark.parametrize("task", ["sot"])
def test_skipped_sequence_is_logged_once_for_all_trackers(
    task: str, data: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(data / SECOND_FRAME[task].format(TWO))
    result = run_task(task, data, encoder, tracker="both")
    assert list(result.rows) == ["dcf", "xcorr", "first box"]
    assert sum(line.startswith(f"warning: {TWO}: left out: ") for line in capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("task", ["mots"])
def test_resume_requires_the_same_settings_and_weights(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_task(task, data, encoder, out=out, sequences=[ONE])
    settings = json.loads((out / "settings.json").read_text())
    assert settings["task"] == "mots"
    assert settings["stage"] == "s3"
    assert settings["patience"] == 30
    assert settings["corrected"] is False
    assert "resnet18" in settings["encoder"]
    before = read_files(out)
    with pytest.raises(InputError, match=r"^out: .*out already contains results; .*--resume$"):
        run_task(task, data, encoder, out=out)
    for options, message in (
        ({"corrected": True}, "corrected: False -> True"),
        ({"stage": "s4"}, "stage: s3 -> s4"),
        ({"patience": 3}, "patience: 30 -> 3"),
        ({"motion": True}, "motion_weight: 0.0 -> 0.02"),
        ({"detections": str(tmp_path)}, "detections: ground truth -> .*"),
        ({"encoder": narrow_encoder(1)}, "weights: [0-9a-f]{16} -> [0-9a-f]{16}"),
    ):
        (tmp_path / f"{ONE}.txt").touch()  # a file of detections without objects
        with pytest.raises(InputError, match=f"^resume: .*{message}"):
            run_task(task, data, **{"encoder": encoder, "out": out, "resume": True, **options})
    assert read_files(out) == before
    run_task(task, data, narrow_encoder(), out=out, resume=True)  # the same weights, and one more sequence
    assert set(read_files(out)) == {*before, f"tracks/{TWO}.txt", f"previews/{TWO}.jpg"}


@pytest.mark.parametrize("task", ["sot"])
def test_trackers_share_an_output_folder(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    run_task(task, data, encoder, out=tmp_path, sequences=[ONE])
    before = (tmp_path / "tracks" / "dcf" / f"{ONE}.txt").stat()
    result = run_task(task, data, encoder, tracker="both", out=tmp_path, resume=True, sequences=[ONE])
    assert (tmp_path / "tracks" / "dcf" / f"{ONE}.txt").stat().st_mtime_ns == before.st_mtime_ns
    assert set(json.loads((tmp_path / "metrics.json").read_text())["metrics"]) == {
        f"dcf {ONE}", "dcf all", f"xcorr {ONE}", "xcorr all", "first box",
    }  # fmt: skip
    assert set(result.rows) == {"dcf", "xcorr", "first box"}


@pytest.mark.parametrize("task", ["mots"])
@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_resume_rejects_corrupt_settings(text: str, task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"^resume: .*(settings.json cannot be read|task: None -> mots)[^\n]*$"):
        run_task(task, data, encoder, out=tmp_path, resume=True)


@pytest.mark.parametrize("task", ["mots"])
def test_temporary_folder_is_removed_without_out(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    files: list[str] = []
    finish = TrackingRun.finish

    def recording_finish(*arguments: Any) -> Result:
        files.extend(read_files(tmp_path / "temporary"))
        return finish(*arguments)

    monkeypatch.setattr(TrackingRun, "finish", recording_finish)
    run_task(task, data, encoder)
    assert any(name.endswith(f"tracks/{TWO}.txt") for name in files)
    assert not list((tmp_path / "temporary").iterdir())


PROTOCOLS: dict[str, dict[str, Any]] = {
    "sot": {"corrected": False, "search_regions": 3, "search_size": 520, "cells": 65},
    "vos": {"neighbors": 10, "temperature": 0.05, "radius": 12.0, "context": 5},
    "mot": {"detections": "det.txt", "min_score": 0.5, "motion": False, "patience": 30, "corrected": False},
    "mots": {"detections": "ground truth", "motion": False, "patience": 30, "corrected": False},
    "pose": {"detections": "ground truth", "motion": False, "patience": 30, "corrected": False},
}


TABLES = {
    "sot": ("dcf", {"AUC": "fraction", "precision": "fraction"}),
    "vos": ("encoder", {"J&F": "fraction", "J decay": "fraction", "F recall": "fraction"}),
    "mot": ("encoder", {"HOTA": "fraction", "MOTA": "fraction", "ID switches": "count"}),
    "mots": ("encoder", {"sMOTSA": "fraction", "ID switches": "count"}),
    "pose": ("encoder", {"person IDF1": "fraction", "ID switches": "count"}),
}


@pytest.mark.parametrize("task", TASKS)
def test_result_has_the_protocol_and_formatted_metrics(task: str, data: Path, encoder: Encoder) -> None:
    result = run_task(task, data, encoder, sequences=[ONE], precision="bf16-mixed")
    assert result.protocol.id == f"{task}-unitrack"
    assert result.protocol.settings == {**PROTOCOLS[task], "stage": "s3", "precision": "bf16-mixed"}
    row, units = TABLES[task]
    for name, unit in units.items():
        metric = result.metric(name, row)
        assert metric.unit == unit
        expected = f"{100 * metric.value:.1f}" if unit == "fraction" else str(metric.value)
        assert cells(result.rows[row], [name]) == [expected]
        assert metric.title == (f"{name} (%)" if unit == "fraction" else name)


def test_unknown_settings_are_rejected(encoder: Encoder, datasets: Path) -> None:
    for task in TASKS:
        with pytest.raises(TypeError, match="unexpected keyword argument 'stages'"):
            run_task(task, datasets / task, encoder, stages="s3")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_resume_after_a_signal_gives_the_same_files(sent: signal.Signals, tmp_path: Path) -> None:
    """The signal arrives while the second sequence is tracked."""
    for name, length in ((ONE, LENGTH), (TWO, 40)):
        write_scene("mots", crossing(length), tmp_path / "data", name)
    # a larger encoder, so that the signal arrives before the end
    mec.save_encoder(mec.load_encoder("resnet18"), tmp_path / "encoder")
    command = [sys.executable, "-m", "mec", "evaluate", "mots", "data/mots", "--encoder", "encoder", "--out", "out"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by default in background jobs
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        while not next(lines).startswith(ONE):
            pass
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert out == ""
    assert (process.returncode, err) == ((130, "mec: interrupted\n") if sent == signal.SIGINT else (-sent, ""))
    assert set(read_files(tmp_path / "out")) == {"settings.json", f"tracks/{ONE}.txt"}
    resumed = run_task("mots", tmp_path / "data" / "mots", tmp_path / "encoder", out=tmp_path / "out", resume=True)
    expected = run_task("mots", tmp_path / "data" / "mots", tmp_path / "encoder", out=tmp_path / "complete")
    assert resumed.rows == expected.rows
    files = read_files(tmp_path / "out")
    complete = read_files(tmp_path / "complete")
    assert {name: files[name] for name in complete} == complete
