"""``mec evaluate sot|vos|mot|mots|pose`` as users call them: what is printed, refused, kept and left."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import mec
from mec.cli.main import main
from tests.evaluate.tracking.crossings import TASKS, crossing, narrow_encoder, write
from tests.evaluate.tracking.scenes import Scene

ONE, TWO = "000001_one", "000002_two"
FOUND = ("mot", "mots", "pose")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return crossing(3)


@pytest.fixture(scope="module")
def films(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for task in TASKS:
        for name in (ONE, TWO):
            write(task, scene, root, name)
    mec.save_encoder(narrow_encoder(), root / "encoder")
    return root


@pytest.fixture
def work(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the data of all tasks, not to be written to, an encoder, and what is none of both."""
    for name in (*TASKS, "encoder"):
        (tmp_path / name).symlink_to(films / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


Calls = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def mec_says(capsys: pytest.CaptureFixture[str]) -> Calls:
    """Exit status, standard output, and the lines of standard error."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return call


OTHER = {"sot": "vos", "vos": "sot", "mot": "vos", "mots": "vos", "pose": "sot"}
REFUSED = [
    *((f"{task} nowhere", r"data: .*nowhere.*") for task in TASKS),
    *((f"{task} empty", r"data: (?=.*empty).*expected .*") for task in TASKS),
    *((f"{task} file", r"data: .*file.*") for task in TASKS),
    *((f"{task} {OTHER[task]}", rf"data: (?=.*{OTHER[task]}).*expected .*") for task in TASKS),
    *((f"{task} {task} --sequences 00001_on", rf"sequences: .*'00001_on'.*{ONE}.*") for task in TASKS),
    *((f"{task} {task} --stage s5", r"stage: expected s3 or s4, got 's5'") for task in TASKS),
    *((f"{task} {task} --resume", r"out: expected the folder that --resume goes on with") for task in TASKS),
    *((f"{task} {task} --render film.avi", r"render: expected a file ending in .mp4, got film.avi") for task in TASKS),
    *((f"{task} {task} --out file", r"out: file cannot be written to \(.*\)") for task in TASKS),
    *((f"{task} {task} --out file/inner", r"out: file/inner cannot be written to \(.*\)") for task in TASKS),
    *((f"{task} {task} --detections empty", rf"detections: .*in empty, such as {ONE}.*") for task in FOUND),
    *((f"{task} {task} --detections nowhere", r"detections: .*nowhere.*") for task in FOUND),
    *((f"{task} {task} --patience -1", r"patience: expected a number of frames, got -1") for task in FOUND),
    *((f"{task} {task} --patience soon", r"--patience: expected a whole number, got 'soon'") for task in FOUND),
    ("sot sot --tracker dfc", r"tracker: expected dcf, xcorr or both, got 'dfc'"),
    ("sot sot --render file/film.mp4", r"render: .*file is no folder"),
    ("sot sot --render empty --resume --out new", r"render: expected a file ending in .mp4, got empty"),
    ("mot mot --least-score high", r"--min_score: expected a number, got 'high'"),
    ("vos vos --neighbors 0", r"neighbors: expected at least 1, got 0"),
    ("vos vos --context=-1", r"context: expected at least 0, got -1"),
    ("vos vos --temperature 0", r"temperature: expected a positive number, got 0.0"),
    ("vos vos --radius=-2", r"radius: expected a positive number, got -2.0"),
    ("vos vos --corrected", r".*--corrected.*"),
    ("pose pose --encoder resnet81", r"encoder: 'resnet81' is neither .*"),
    ("pose pose --sequences ,", r"sequences: .*"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_refused_in_a_line(arguments: str, words: str, work: Path, mec_says: Calls) -> None:
    before = sorted(p.name for p in work.iterdir())
    status, out, err = mec_says("evaluate", *arguments.split()[:2], "--encoder", "encoder", *arguments.split()[2:])
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"mec( evaluate \w+)?: {words}", err[-1]), err[-1]
    assert not any(line.startswith(("mec", "Traceback", " ")) for line in err[:-1])
    assert sorted(p.name for p in work.iterdir()) == before


def test_no_encoder_and_no_such_task(work: Path, mec_says: Calls) -> None:
    (line,) = mec_says("evaluate", "sot", "sot")[2]
    assert line == "mec evaluate sot: expected --encoder ENCODER"
    status, _, (line,) = mec_says("evaluate", "sott", "sot", "--encoder", "encoder")
    assert status == 2
    assert "did you mean sot?" in line


def lines_changed(file: str, old: str, new: str) -> Callable[[Path], None]:
    """What matches ``old`` first."""

    def change(folder: Path) -> None:
        text, count = re.subn(old, new, (folder / file).read_text(), count=1)
        assert count
        (folder / file).write_text(text)

    return change


def gone(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def small(file: str) -> Callable[[Path], None]:
    return lambda folder: Image.new("P", (32, 24), 1).save(folder / file)


BOXES = "{}/groundtruth_rect.txt"
ROWS = "{}/gt/gt.txt"
POSES = "annotations/val/{}.json"


BROKEN: dict[str, list[tuple[Callable[..., Callable[[Path], None]], tuple[str, ...], str]]] = {
    "sot": [
        (lines_changed, (BOXES, r"\n\d+,", "\nnan,"), "line 2: expected a finite box with an area, got nan"),
        (lines_changed, (BOXES, r"\n.*\n$", "\n"), "2 boxes for 3 frames"),
        (lines_changed, (BOXES, r"\n\d+,", "\n2000,"), "line 2: expected a box within the image of 320 x 240"),
        (gone, ("{}/img/0002.jpg",), "lacks 1 of the frames 1 to 3, the first is number 2"),
        (gone, (BOXES,), "No such file"),
    ],
    "vos": [
        (small, ("Annotations/480p/{}/00001.png",), "32 x 24 pixels, expected 320 x 240 as in its frame"),
        (gone, ("JPEGImages/480p/{}/00001.jpg",), "00001.png: a mask without a frame"),
        (gone, ("Annotations/480p/{}/00000.png",), "no mask of the first frame"),
    ],
    "mot": [
        (lines_changed, (ROWS, r"^(\d+,\d+),\d+", r"\1,nan"), "gt.txt: line 1: expected finite numbers"),
        (lines_changed, ("{}/det/det.txt", r"^1,", "one,"), "det.txt: line 1: expected numbers"),
        (gone, ("{}/img1/000002.jpg",), "1 frames before 3 are missing, the first is 2"),
        (gone, (ROWS,), "no "),
    ],
    "mots": [
        (lines_changed, (ROWS, " 240 320 ", " 320 240 "), "a mask of 240x320, expected 320x240"),
        (lines_changed, (ROWS, " 240 320 ", " 24 320 "), "line 1: expected run lengths of 24 x 320 pixels in all"),
        (gone, ("{}/img1/000002.jpg",), "1 frames before 3 are missing, the first is 2"),
    ],
    "pose": [
        (lines_changed, (POSES, r'("keypoints": \[)\d+\.\d+', r"\1NaN"), "expected finite numbers"),
        (gone, ("images/val/{}/000001.jpg",), "1 of 3 frames"),
        (lines_changed, (POSES, "[]}]*$", ""), "cannot be read as JSON"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_broken_sequence_is_told_and_the_others_measured(
    task: str, scene: Scene, tmp_path: Path, work: Path, mec_says: Calls
) -> None:
    write(task, scene, tmp_path / "mixed", ONE)
    for number, (how, arguments, _) in enumerate(BROKEN[task], 2):
        name = f"{number:06}_bad"
        write(task, scene, tmp_path / "mixed", name)
        how(*(word.replace("{}", name) for word in arguments))(tmp_path / "mixed" / task)
    status, out, err = mec_says("evaluate", task, f"mixed/{task}", "--encoder", "encoder", "--out", "out")
    assert status == 2
    number = len(BROKEN[task])
    assert err[-1].startswith(f"mec: data: {number} sequences of mixed/{task} could not be used; the first: 000002_bad")
    for i, (_, _, words) in enumerate(BROKEN[task], 2):
        (line,) = (line for line in err if line.startswith(f"{i:06}_bad: "))
        assert words in line
    assert f"(1 of {number + 1} sequences, 3 frames)" in out
    whole = mec_says("evaluate", task, task, "--encoder", "encoder", "--sequences", ONE)[1]
    row = "dcf" if task == "sot" else "encoder"
    assert table_row(out, row) == table_row(whole, row)
    (line,) = (work / "out" / "results.jsonl").read_text().splitlines()
    assert len(json.loads(line)["broken"]) == number


def table_row(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if re.match(rf"│ {name} ", line))
    return re.findall(r"[\d.]+", line)


@pytest.mark.parametrize("task", TASKS)
def test_names_of_any_letters(task: str, scene: Scene, tmp_path: Path, work: Path, mec_says: Calls) -> None:
    name = "000007 Gänse, [am] Süd-Ufer (2)"
    folder = write(task, scene, tmp_path / "Müllers Filme", name)
    out, film = "out/für 鳥", "out/film ü.mp4"
    command = ("evaluate", task, folder.relative_to(work), "--encoder", "encoder", "--out", out, "--render", film)
    status, told, err = mec_says(*command)
    assert (status, err[-1]) == (0, f"drawn: {film}")
    assert "Müllers Filme" in told
    assert f"added to {out}/results.jsonl; tracks in {out}" in told
    kept = json.loads((work / out / "figures.json").read_text())["figures"]
    assert f"dcf {name}" in kept if task == "sot" else name in kept
    (line,) = (work / out / "results.jsonl").read_text().splitlines()
    assert not any("Gänse" in row for row in json.loads(line)["figures"])
    import av

    with av.open(str(work / film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    status, again, _ = mec_says(*command, "--resume")
    assert status == 0
    row = "dcf" if task == "sot" else "encoder"
    assert table_row(again, row) == table_row(told, row)


@pytest.mark.parametrize("task", FOUND)
def test_nobody_was_detected(task: str, work: Path, mec_says: Calls) -> None:
    for name in (ONE, TWO):
        if task == "pose":
            raw = json.loads((work / task / "annotations" / "val" / f"{name}.json").read_text())
            (work / "empty" / f"{name}.json").write_text(json.dumps({**raw, "annotations": []}))
        else:
            (work / "empty" / f"{name}.txt").touch()
    status, out, _ = mec_says("evaluate", task, task, "--encoder", "encoder", "--detections", "empty", "--out", "out")
    assert status == 0
    assert set(table_row(out, "encoder")) <= {"0.0", "0"}
    told = json.loads((work / "out" / "figures.json").read_text())["figures"]
    assert told["all"].get("missed", 1) > 0


def test_beside_the_run(work: Path, films: Path, mec_says: Calls) -> None:
    shutil.copytree(films / "encoder", work / "run")
    (work / "run" / "recipe.yaml").touch()
    for task, options, folder in (
        ("mots", ("--motion", "--corrected"), "mots-s3-corrected-motion-mots"),
        ("vos", ("--stage", "s4"), "vos-s4-vos"),
        ("sot", ("--sequences", TWO, "--tracker", "xcorr"), "sot-xcorr-s3-sot"),
    ):
        status, out, _ = mec_says("evaluate", task, task, "--encoder", "run", *options)
        assert status == 0
        assert f"added to run/results.jsonl; tracks in run/{folder}" in out
        assert (work / "run" / folder / "tracks").is_dir()
        assert (work / "run" / folder / "figures.json").exists()
    assert mec_says("evaluate", "vos", "vos", "--encoder", "run", "--stage", "s4")[:2] == (2, "")
    assert mec_says("evaluate", "vos", "vos", "--encoder", "run", "--stage", "s4", "--resume")[0] == 0
    lines = [json.loads(line) for line in (work / "run" / "results.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["mots", "vos", "sot", "vos"]
    assert lines[1]["figures"] == lines[3]["figures"]
    assert set(lines[0]) == {
        "task", "protocol", "data", "encoder", "figures", "seconds", "broken", "command", "time",
    }  # fmt: skip
    assert "corrected (UniTrack)" in lines[0]["protocol"]
    assert "with motion" in lines[0]["protocol"]
    assert lines[0]["encoder"] == "encoder of run, s3"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(work: Path, mec_says: Calls) -> None:
    (work / "empty").chmod(0o500)
    for options in (("--out", "empty/out"), ("--render", "empty/film.mp4")):
        status, out, err = mec_says("evaluate", "mots", "mots", "--encoder", "encoder", *options)
        assert (status, out) == (2, "")
        assert re.match(r"mec: (out|render): .*empty.* cannot be written to", err[-1])
