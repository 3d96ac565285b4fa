"""``mec evaluate sot|vos|mot|mots|pose`` on the command line: output, error messages and written files."""

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
from tests.evaluate.tracking.crossings import TASKS, crossing, narrow_encoder, write_scene
from tests.evaluate.tracking.scenes import Scene

ONE, TWO = "000001_one", "000002_two"
ASSOCIATION_TASKS = ("mot", "mots", "pose")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return crossing(3)


@pytest.fixture(scope="module")
def datasets(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    for task in TASKS:
        for name in (ONE, TWO):
            write_scene(task, scene, root, name)
    mec.save_encoder(narrow_encoder(), root / "encoder")
    return root


@pytest.fixture
def work(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with links to the datasets of all tasks and an encoder, an empty folder and a text file."""
    for name in (*TASKS, "encoder"):
        (tmp_path / name).symlink_to(datasets / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    return tmp_path


RunMec = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def run_mec(capsys: pytest.CaptureFixture[str]) -> RunMec:
    """Run a command; return exit status, standard output, and the lines of standard error."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


INVALID = [
    ("sot nowhere", r"data: .*nowhere.*"),
    ("vos nowhere", r"data: .*nowhere.*"),
    ("mot empty", r"data: (?=.*empty).*expected .*"),
    ("mots empty", r"data: (?=.*empty).*expected .*"),
    ("pose file", r"data: .*file.*"),
    ("sot vos", r"data: (?=.*vos).*expected .*"),
    ("pose sot", r"data: (?=.*sot).*expected .*"),
    ("vos vos --sequences 00001_on", rf"sequences: .*'00001_on'.*{ONE}.*"),
    ("mot mot --sequences 00001_on", rf"sequences: .*'00001_on'.*{ONE}.*"),
    ("mots mots --stage s5", r"stage: .*'s5'"),
    ("pose pose --resume", r"out: .*"),
    ("sot sot --render video.avi", r"render: .*video.avi"),
    ("vos vos --out file", r"out: file is not writable .*"),
    ("mot mot --out file/inner", r"out: file/inner is not writable .*"),
    *((f"{task} {task} --detections empty", rf"detections: .*empty.*{ONE}.*") for task in ASSOCIATION_TASKS),
    ("mots mots --detections nowhere", r"detections: .*nowhere.*"),
    ("pose pose --patience -1", r"patience: .*-1"),
    ("mot mot --patience soon", r"--patience: .*'soon'"),
    ("sot sot --tracker dfc", r"tracker: .*'dfc'"),
    ("sot sot --render file/video.mp4", r"render: .*file is not a folder"),
    ("mot mot --min-score high", r"--min_score: .*'high'"),
    ("vos vos --neighbors 0", r"neighbors: .*0"),
    ("vos vos --corrected", r".*--corrected.*"),
    ("pose pose --encoder resnet81", r"encoder: .*'resnet81'.*"),
    ("pose pose --sequences ,", r"sequences: .*"),
]


@pytest.mark.parametrize(("arguments", "message"), INVALID, ids=[arguments for arguments, _ in INVALID])
def test_invalid_arguments_give_one_line_and_no_files(
    arguments: str, message: str, work: Path, run_mec: RunMec
) -> None:
    before = sorted(p.name for p in work.iterdir())
    status, out, err = run_mec("evaluate", *arguments.split()[:2], "--encoder", "encoder", *arguments.split()[2:])
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"mec( evaluate \w+)?: {message}", err[-1]), err[-1]
    assert not any(line.startswith(("mec", "Traceback", " ")) for line in err[:-1])
    assert sorted(p.name for p in work.iterdir()) == before


def test_missing_encoder_and_unknown_task_give_one_line(work: Path, run_mec: RunMec) -> None:
    (line,) = run_mec("evaluate", "sot", "sot")[2]
    assert line == "mec evaluate sot: expected --encoder ENCODER"
    status, _, (line,) = run_mec("evaluate", "sott", "sot", "--encoder", "encoder")
    assert status == 2
    assert "did you mean sot?" in line


def replace_text(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a function that replaces the first match of ``old``."""

    def replace(folder: Path) -> None:
        text, count = re.subn(old, new, (folder / file).read_text(), count=1)
        assert count
        (folder / file).write_text(text)

    return replace


def delete(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def shrink_mask(file: str) -> Callable[[Path], None]:
    return lambda folder: Image.new("P", (32, 24), 1).save(folder / file)


BOX_FILE = "{}/groundtruth_rect.txt"
TRACK_FILE = "{}/gt/gt.txt"
POSE_FILE = "annotations/val/{}.json"


CORRUPTIONS: dict[str, list[tuple[Callable[..., Callable[[Path], None]], tuple[str, ...], str]]] = {
    "sot": [
        (replace_text, (BOX_FILE, r"\n\d+,", "\nnan,"), "nan"),
        (replace_text, (BOX_FILE, r"\n.*\n$", "\n"), "2 boxes"),
        (replace_text, (BOX_FILE, r"\n\d+,", "\n2000,"), "320 x 240"),
        (delete, ("{}/img/0002.jpg",), "img"),
        (delete, (BOX_FILE,), "groundtruth_rect.txt"),
    ],
    "vos": [
        (shrink_mask, ("Annotations/480p/{}/00001.png",), "32 x 24"),
        (delete, ("JPEGImages/480p/{}/00001.jpg",), "00001"),
        (delete, ("Annotations/480p/{}/00000.png",), "mask"),
    ],
    "mot": [
        (replace_text, (TRACK_FILE, r"^(\d+,\d+),\d+", r"\1,nan"), "gt.txt: line 1"),
        (replace_text, ("{}/det/det.txt", r"^1,", "one,"), "det.txt: line 1"),
        (delete, ("{}/img1/000002.jpg",), "img1"),
        (delete, (TRACK_FILE,), "gt"),
    ],
    "mots": [
        (replace_text, (TRACK_FILE, " 240 320 ", " 320 240 "), "320x240"),
        (replace_text, (TRACK_FILE, " 240 320 ", " 24 320 "), "gt.txt: line 1"),
        (delete, ("{}/img1/000002.jpg",), "img1"),
    ],
    "pose": [
        (replace_text, (POSE_FILE, r'("keypoints": \[)\d+\.\d+', r"\1NaN"), "annotations"),
        (delete, ("images/val/{}/000001.jpg",), "000001.jpg"),
        (replace_text, (POSE_FILE, "[]}]*$", ""), "JSON"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_corrupt_sequences_are_reported_and_the_others_evaluated(
    task: str, scene: Scene, tmp_path: Path, work: Path, run_mec: RunMec
) -> None:
    write_scene(task, scene, tmp_path / "mixed", ONE)
    for number, (corrupt, arguments, _) in enumerate(CORRUPTIONS[task], 2):
        name = f"{number:06}_bad"
        write_scene(task, scene, tmp_path / "mixed", name)
        corrupt(*(argument.replace("{}", name) for argument in arguments))(tmp_path / "mixed" / task)
    status, out, err = run_mec("evaluate", task, f"mixed/{task}", "--encoder", "encoder", "--out", "out")
    assert status == 2
    count = len(CORRUPTIONS[task])
    assert err[-1].startswith(f"mec: data: {count} sequences of mixed/{task} could not be used; the first: 000002_bad")
    for i, (_, _, reason) in enumerate(CORRUPTIONS[task], 2):
        (line,) = {line for line in err if line.startswith(f"warning: {i:06}_bad: left out: ")}
        assert reason in line
    assert "(1 sequence, 3 frames)" in out
    expected = run_mec("evaluate", task, task, "--encoder", "encoder", "--sequences", ONE)[1]
    row = "dcf" if task == "sot" else "encoder"
    assert table_row(out, row) == table_row(expected, row)
    (line,) = (work / "out" / "results.jsonl").read_text().splitlines()
    assert len(json.loads(line)["skipped"]) == count


def table_row(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if re.match(rf"│ {name} ", line))
    return re.findall(r"[\d.]+", line)


@pytest.mark.parametrize("task", TASKS)
def test_names_may_have_spaces_and_non_ascii_letters(
    task: str, scene: Scene, tmp_path: Path, work: Path, run_mec: RunMec
) -> None:
    name = "000007 Gänse, [am] Süd-Ufer (2)"
    folder = write_scene(task, scene, tmp_path / "Müllers Filme", name)
    out, video = "out/für 鳥", "out/video ü.mp4"
    command = ("evaluate", task, folder.relative_to(work), "--encoder", "encoder", "--out", out, "--render", video)
    status, table, err = run_mec(*command)
    assert (status, err[-1]) == (0, f"wrote {video}")
    assert "Müllers Filme" in table
    assert f"added to {out}/results.jsonl; tracks in {out}" in table
    metrics = json.loads((work / out / "metrics.json").read_text())["metrics"]
    assert f"dcf {name}" in metrics if task == "sot" else name in metrics
    (line,) = (work / out / "results.jsonl").read_text().splitlines()
    assert not any("Gänse" in row for row in json.loads(line)["rows"])
    import av

    with av.open(str(work / video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3
    status, resumed, _ = run_mec(*command, "--resume")
    assert status == 0
    row = "dcf" if task == "sot" else "encoder"
    assert table_row(resumed, row) == table_row(table, row)


@pytest.mark.parametrize("task", ASSOCIATION_TASKS)
def test_detections_may_be_empty(task: str, work: Path, run_mec: RunMec) -> None:
    for name in (ONE, TWO):
        if task == "pose":
            raw = json.loads((work / task / "annotations" / "val" / f"{name}.json").read_text())
            (work / "empty" / f"{name}.json").write_text(json.dumps({**raw, "annotations": []}))
        else:
            (work / "empty" / f"{name}.txt").touch()
    status, out, _ = run_mec("evaluate", task, task, "--encoder", "encoder", "--detections", "empty", "--out", "out")
    assert status == 0
    assert set(table_row(out, "encoder")) <= {"0.0", "0"}
    metrics = json.loads((work / "out" / "metrics.json").read_text())["metrics"]
    assert metrics["all"].get("FN", 1) > 0


def test_tracks_are_written_to_the_run_folder_of_the_encoder(work: Path, datasets: Path, run_mec: RunMec) -> None:
    shutil.copytree(datasets / "encoder", work / "run")
    (work / "run" / "recipe.yaml").touch()
    for task, options, folder in (
        ("mots", ("--motion", "--corrected"), "mots-s3-corrected-motion-mots"),
        ("vos", ("--stage", "s4"), "vos-s4-vos"),
        ("sot", ("--sequences", TWO, "--tracker", "xcorr"), "sot-xcorr-s3-sot"),
    ):
        status, out, _ = run_mec("evaluate", task, task, "--encoder", "run", *options)
        assert status == 0
        assert f"added to run/results.jsonl; tracks in run/{folder}" in out
        assert (work / "run" / folder / "tracks").is_dir()
        assert (work / "run" / folder / "metrics.json").exists()
    assert run_mec("evaluate", "vos", "vos", "--encoder", "run", "--stage", "s4")[:2] == (2, "")
    assert run_mec("evaluate", "vos", "vos", "--encoder", "run", "--stage", "s4", "--resume")[0] == 0
    lines = [json.loads(line) for line in (work / "run" / "results.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["mots", "vos", "sot", "vos"]
    assert lines[1]["rows"] == lines[3]["rows"]
    assert set(lines[0]) == {
        "task", "protocol", "dataset", "encoder", "rows", "seconds", "skipped", "note", "command", "time",
    }  # fmt: skip
    assert lines[0]["protocol"]["id"] == "mots-unitrack"
    assert lines[0]["protocol"]["settings"]["corrected"] is True
    assert lines[0]["protocol"]["settings"]["motion"] is True
    assert lines[0]["encoder"] == "encoder of run, s3"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output_folder_gives_one_line(work: Path, run_mec: RunMec) -> None:
    (work / "empty").chmod(0o500)
    for options in (("--out", "empty/out"), ("--render", "empty/video.mp4")):
        status, out, err = run_mec("evaluate", "mots", "mots", "--encoder", "encoder", *options)
        assert (status, out) == (2, "")
        assert re.match(r"mec: (out|render): .*empty.* is not writable", err[-1])
