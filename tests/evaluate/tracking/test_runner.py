"""What the five tasks do around their trackers: go on, refuse, pass over what is broken, and clean up."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import mec
from mec import evaluate
from mec.engine.progress import ProgressBar
from mec.errors import InputError
from mec.evaluate import Result
from mec.evaluate.tracking.dense_features import Dense
from mec.evaluate.tracking.runner import weights_digest
from mec.models.encoder import Encoder
from tests.evaluate.tracking.crossings import TASKS, crossing, narrow_encoder, write

ONE, TWO = "000001_one", "000002_two"
LENGTH = 3
FRAME = {
    "sot": "{}/img/0002.jpg", "vos": "JPEGImages/480p/{}/00001.jpg", "mot": "{}/img1/000002.jpg",
    "mots": "{}/img1/000002.jpg", "pose": "images/val/{}/000001.jpg",
}  # fmt: skip
"""The second frame of a sequence."""
TRUTH = {
    "sot": "{}/groundtruth_rect.txt", "vos": "Annotations/480p/{}/00000.png", "mot": "{}/gt/gt.txt",
    "mots": "{}/gt/gt.txt", "pose": "annotations/val/{}.json",
}  # fmt: skip


def call(task: str, data: Path, encoder: Encoder | Path, **options: Any) -> Result:
    result: Result = getattr(evaluate, task)(data, encoder, **options)
    return result


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def cut_short(file: Path, end: bytes = b"") -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] + end)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return narrow_encoder()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, scene = tmp_path_factory.mktemp("films"), crossing(LENGTH)
    for task in TASKS:
        for name in (ONE, TWO):
            write(task, scene, root, name)
    return root


@pytest.fixture
def data(films: Path, tmp_path: Path, task: str) -> Path:
    """Of the test's task, to be damaged at will."""
    return Path(shutil.copytree(films / task, tmp_path / "data" / task))


@pytest.mark.parametrize("task", TASKS)
def test_what_was_interrupted_goes_on(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = call(task, data, encoder, out=whole)
    advance, seen = ProgressBar.advance, [0]

    def stops(self: ProgressBar, *arguments: Any) -> None:
        seen[0] += 1
        if seen[0] == LENGTH + 2:
            raise KeyboardInterrupt
        advance(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressBar, "advance", stops)
        call(task, data, encoder, out=out)
    there = files_of(out)
    kept = {name for name in files_of(whole) if ONE in name and not name.startswith("drawn")}
    assert set(there) == {"settings.json", *kept}
    capsys.readouterr()
    result = call(task, data, encoder, out=out, resume=True)
    said = capsys.readouterr().err
    assert TWO in said
    assert ONE not in said
    assert result.figures == expected.figures
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize("task", ["sot"])
def test_all_that_was_done_is_only_read(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(task, data, encoder, out=tmp_path / "out")
    monkeypatch.setattr("mec.evaluate.tracking.sot.track_box", None)
    again = call(task, data, encoder, out=tmp_path / "out", resume=True)
    assert again.figures == first.figures
    assert "tracks from before" in again.protocol
    assert "frames a second" in first.protocol


@pytest.mark.parametrize("task", TASKS)
def test_damaged_tracks_are_made_anew(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    call(task, data, encoder, out=tmp_path / "out")
    before = files_of(tmp_path / "out")
    file = sorted(f for f in (tmp_path / "out" / "tracks").rglob("*") if f.is_file() and TWO in str(f))[-1]
    cut_short(file, b"\n?")
    call(task, data, encoder, out=tmp_path / "out", resume=True)
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize("task", TASKS)
def test_one_with_a_broken_frame_does_not_lose_the_other(
    task: str, data: Path, encoder: Encoder, tmp_path: Path
) -> None:
    cut_short(data / FRAME[task].format(TWO))
    result = call(task, data, encoder, out=tmp_path / "both")
    alone = call(task, data, encoder, out=tmp_path / "one", sequences=[ONE])
    (name,) = result.broken
    assert name == TWO
    assert FRAME[task].format(TWO) in result.broken[name]
    assert "\n" not in result.broken[name]
    assert result.figures == alone.figures
    assert f"(1 of 2 sequences, {LENGTH} frames)" in result.data
    assert not any(TWO in name for name in files_of(tmp_path / "both"))
    kept = json.loads((tmp_path / "both" / "figures.json").read_text())
    assert kept["broken"] == result.broken
    assert kept["figures"] == json.loads((tmp_path / "one" / "figures.json").read_text())["figures"]


@pytest.mark.parametrize("task", TASKS)
def test_none_that_can_be_used(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    for name in (ONE, TWO):
        (data / TRUTH[task].format(name)).write_text("one, two\n")
    with pytest.raises(InputError, match=f"^data: no sequence of .*{task} can be used; the first: {ONE}: [^\n]*$"):
        call(task, data, encoder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["mots"])
def test_no_frames_that_can_be_read(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    for name in (ONE, TWO):
        cut_short(data / FRAME[task].format(name))
    with pytest.raises(InputError, match=f"^data: no sequence of .* can be used; the first: {ONE}: .*000002.jpg"):
        call(task, data, encoder)


@pytest.mark.parametrize("task", ["sot"])
def test_a_sequence_that_breaks_is_said_once(
    task: str, data: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(data / FRAME[task].format(TWO))
    result = call(task, data, encoder, tracker="both")
    assert list(result.figures) == ["dcf", "xcorr", "first box"]
    assert sum(line.startswith(f"{TWO}: ") for line in capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("task", ["mots"])
def test_settings_decide_what_may_be_gone_on_with(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(task, data, encoder, out=out, sequences=[ONE])
    settings = json.loads((out / "settings.json").read_text())
    assert settings["task"] == "mots"
    assert settings["stage"] == "s3"
    assert settings["patience"] == 30
    assert settings["corrected"] is False
    assert "resnet18" in settings["encoder"]
    before = files_of(out)
    with pytest.raises(
        InputError, match=r"^out: .*out has tracks already; --resume goes on with them, --out with another folder"
    ):
        call(task, data, encoder, out=out)
    for options, words in (
        ({"corrected": True}, "corrected False, expected True"),
        ({"stage": "s4"}, "stage 's3', expected 's4'"),
        ({"patience": 3}, "patience 30, expected 3"),
        ({"motion": True}, "motion 0.0, expected 0.02"),
        ({"detections": str(tmp_path)}, "detections None, expected"),
        ({"encoder": narrow_encoder(1)}, "weights '[0-9a-f]{16}', expected '[0-9a-f]{16}'"),
    ):
        (tmp_path / f"{ONE}.txt").touch()  # detections of nobody
        with pytest.raises(InputError, match=f"^out: the tracks in .*out are of {words}"):
            call(task, data, **{"encoder": encoder, "out": out, "resume": True, **options})
    assert files_of(out) == before
    call(task, data, narrow_encoder(), out=out, resume=True)  # the same weights, and one sequence more
    assert set(files_of(out)) == {*before, f"tracks/{TWO}.txt", f"drawn/{TWO}.jpg"}


@pytest.mark.parametrize("task", ["sot"])
def test_trackers_share_a_folder(task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    call(task, data, encoder, out=tmp_path, sequences=[ONE])
    before = (tmp_path / "tracks" / "dcf" / f"{ONE}.txt").stat()
    both = call(task, data, encoder, tracker="both", out=tmp_path, resume=True, sequences=[ONE])
    assert (tmp_path / "tracks" / "dcf" / f"{ONE}.txt").stat().st_mtime_ns == before.st_mtime_ns
    assert set(json.loads((tmp_path / "figures.json").read_text())["figures"]) == {
        f"dcf {ONE}", "dcf all", f"xcorr {ONE}", "xcorr all", "first box",
    }  # fmt: skip
    assert set(both.figures) == {"dcf", "xcorr", "first box"}


@pytest.mark.parametrize("task", ["mots"])
@pytest.mark.parametrize("text", ["{", "[]", '"text"', "null", "3"])
def test_damaged_settings(text: str, task: str, data: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(InputError, match=r"^out: .*(settings.json is damaged|are of task None)[^\n]*$"):
        call(task, data, encoder, out=tmp_path, resume=True)


@pytest.mark.parametrize("task", ["mots"])
def test_nothing_stays_where_nothing_was_asked_for(
    task: str, data: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen = []
    monkeypatch.setattr(
        "mec.evaluate.tracking.track_objects.film", lambda call, *_: seen.extend(files_of(tmp_path / "temporary"))
    )
    call(task, data, encoder)
    assert any(name.endswith(f"tracks/{TWO}.txt") for name in seen)
    assert not list((tmp_path / "temporary").iterdir())


def test_digests_tell_weights_apart(encoder: Encoder) -> None:
    assert len({weights_digest(Dense(encoder)), weights_digest(Dense(narrow_encoder(1)))}) == 2
    assert weights_digest(Dense(encoder)) == weights_digest(Dense(narrow_encoder()))
    half = Dense(encoder)
    half.body.to(torch.bfloat16)
    assert weights_digest(half) != weights_digest(Dense(encoder))


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_process_that_was_ended(sent: signal.Signals, tmp_path: Path) -> None:
    """While it follows the second sequence. What is left is whole, and gone on with gives what would have been."""
    for name, length in ((ONE, LENGTH), (TWO, 40)):
        write("mots", crossing(length), tmp_path / "data", name)
    # an encoder that takes its time, for the signal must come before the end
    mec.save_encoder(mec.load_encoder("resnet18"), tmp_path / "encoder")
    command = [sys.executable, "-m", "mec", "evaluate", "mots", "data/mots", "--encoder", "encoder", "--out", "out"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it is ignored in what a shell began with &
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        while not next(lines).startswith(ONE):
            pass
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert out == ""
    assert (process.returncode, err) == ((130, "mec: interrupted\n") if sent == signal.SIGINT else (-sent, ""))
    assert set(files_of(tmp_path / "out")) == {"settings.json", f"tracks/{ONE}.txt"}
    again = call("mots", tmp_path / "data" / "mots", tmp_path / "encoder", out=tmp_path / "out", resume=True)
    fresh = call("mots", tmp_path / "data" / "mots", tmp_path / "encoder", out=tmp_path / "whole")
    assert again.figures == fresh.figures
    there = files_of(tmp_path / "out")
    assert {name: there[name] for name in files_of(tmp_path / "whole")} == files_of(tmp_path / "whole")
