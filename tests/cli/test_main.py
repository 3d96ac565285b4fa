import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mec
from mec.cli.main import main

TINY = (
    "--image_size 16 --epochs 1 --workers 0 --projector.hidden 16 --projector.outputs 8 "
    "--backbone_options.layers [1,1,1,1] --backbone_options.channels [16,16,16,16]"
).split()


def call(*arguments: object) -> int:
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, color in (("ant", 60), ("bee", 190)):
        (folder / name).mkdir()
        for i in range(12):
            noise = rng.integers(-40, 40, (40, 50, 3)) + color
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert call("pretrain", photographs, "--out", out, "--batch_size", 8, *TINY) == 0
    return out


def test_from_a_folder_to_all_evaluations(photographs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, options in (
        ("knn", ["--k", "[1,5]"]),
        ("linear", []),
        ("linear", ["--protocol", "paper", "--epochs", 1, "--batch-size", 8, "--workers", 0]),
        ("few-label", ["--labels", "[1]"]),
        ("finetune", ["--labels", "50%", "--epochs", 1, "--seeds", 2, "--workers", 0]),
    ):
        assert call("evaluate", task, photographs, "--encoder", run, *options) == 0
        captured = capsys.readouterr()
        assert "untrained" in captured.out
        assert f"encoder: encoder of {run}" in captured.err
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["knn", "linear", "linear", "few-label", "finetune"]
    assert "BatchNorm and linear layer, LARS" in lines[2]["protocol"]
    assert "10 labeled images (50%)" in lines[4]["protocol"]


def test_several_sources_make_one_table(photographs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.jsonl").read_text().splitlines() if (run / "results.jsonl").exists() else []
    assert call("evaluate", "knn", photographs, photographs, "--encoder", run, "--k", "[1]") == 0
    assert "mean of 2" in capsys.readouterr().out
    assert len((run / "results.jsonl").read_text().splitlines()) == len(before) + 2


def test_embeddings_and_near_duplicates(photographs: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    assert call("embed", photographs, "--encoder", run, "--out", out, "--near-duplicates", "--similarity", 0.5) == 0
    assert np.load(out).shape == (24, 16)
    assert (tmp_path / "e.near-duplicates.csv").exists()


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.safetensors"
    assert call("export", "--encoder", run, "--format", "safetensors", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert mec.load_encoder(out).spec == mec.load_encoder(run).spec


def test_probes_beside_pretraining_where_there_are_labels(photographs: Path, tmp_path: Path) -> None:
    for name, options, expected in (("a", [], True), ("b", ["--probe-every", 0], False)):
        assert call("pretrain", photographs, "--out", tmp_path / name, "--batch_size", 8, *TINY, *options) == 0
        assert (tmp_path / name / "probes.csv").exists() == expected


def test_options_reach_the_recipe(run: Path) -> None:
    from mec.pretraining import Run

    recipe = Run(run).recipe()
    assert (recipe.image_size, recipe.epochs, recipe.batch_size) == (16, 1, 8)
    assert recipe.projector.outputs == 8
    assert recipe.backbone_options == {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}


def test_views_are_drawn_before_training(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    options = ["--pairs", 2, "--image-size", 16, "--view-1.blur=0"]
    assert call("views", photographs, "--out", sheet, "--every", 3, *options) == 0
    assert capsys.readouterr().out.strip() == str(sheet)
    assert Image.open(sheet).width > 300


def test_a_table_of_labels_stands_for_the_folders(photographs: Path, run: Path, tmp_path: Path) -> None:
    rows = [f"{p.parent.name}/{p.name},{int(p.stem) % 2}" for p in sorted(photographs.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options = ["--encoder", run, "--k", "[1]", "--out", tmp_path, "--labels", tmp_path / "labels.csv"]
    assert call("evaluate", "knn", photographs, *options) == 0
    assert "2 classes" in (tmp_path / "results.jsonl").read_text()


def test_resume_of_a_run_that_ended_changes_nothing(photographs: Path, run: Path) -> None:
    before = (run / "encoder.safetensors").read_bytes()
    assert call("pretrain", photographs, "--out", run, "--resume") == 0
    assert (run / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "/nonexistent", "--out", "OUT"], "data: /nonexistent does not exist"),
        (["pretrain", "EMPTY", "--out", "OUT"], "no image in"),
        (["pretrain", "DATA"], "mec pretrain: expected --out OUT"),
        (["pretrain", "DATA", "--out", "OUT", "--epochs", "-1"], "epochs: expected at least 1, got -1"),
        (["pretrain", "DATA", "--out", "OUT", "--epochs", "ten"], "--epochs: expected a whole number, got 'ten'"),
        (["pretrain", "DATA", "--out", "OUT", "--objective.nonsense", "1"], "objective.nonsense"),
        (["pretrain", "DATA", "--out", "OUT", "--objective.distortion", "0"], "objective.distortion: expected"),
        (["pretrain", "DATA", "--out", "OUT", "--backbone", "resnet19"], "did you mean"),
        (["pretrain", "DATA", "--out", "OUT", "--recipe", "none"], "recipe: 'none'"),
        (["pretrain", "DATA", "--out", "OUT", "--devices", "0"], "devices: expected"),
        (["pretrain", "DATA", "--out", "RUN"], "already holds a run"),
        (["pretrain", "DATA", "--out", "OUT", "--max-broken", "2"], "max_corrupt: expected a share in [0, 1], got 2"),
        (["pretrain", "DATA", "--out", "OUT", "--channels", "4"], "channels: expected an image with 4 channels"),
        (["pretrain", "DATA", "--out", "OUT", "--background", "nocolor"], "background: expected a color"),
        (["pretrain", "DATA", "--out", "OUT", "--views", "slow"], "--views: expected fast or reference, got 'slow'"),
        (["pretrain", "DATA", "--out", "OUT", "--every", "0"], "every: expected at least 1"),
        (["pretrain", "none-{0..3}.tar", "--out", "OUT"], "data: none-0.tar does not exist (4 of 4 shards)"),
        (["pretrain", "none.parquet", "--out", "OUT"], "data: none.parquet does not exist"),
        (["views", "DATA", "--out", "OUT"], "has no suffix of an image"),
        (["views", "DATA"], "mec views: expected --out OUT"),
        (["views", "/nonexistent", "--out", "OUT"], "out"),
        (["evaluate", "knn", "DATA", "--encoder", "nowhere"], "encoder: 'nowhere'"),
        (["evaluate", "knn", "/nonexistent", "--encoder", "RUN"], "data: /nonexistent"),
        (["evaluate", "knn", "DATA"], "mec evaluate knn: expected --encoder ENCODER"),
        (["evaluate", "knn", "--encoder", "RUN"], "mec evaluate knn: expected DATA"),
        (["evaluate", "knn", "DATA", "/nonexistent", "--encoder", "RUN"], "data: /nonexistent"),
        (["evaluate", "linear", "FLAT", "--encoder", "RUN"], "has no labels; expected a sub-folder per class"),
        (["evaluate", "linear", "ONE", "--encoder", "RUN"], "has one class (ant), expected at least 2"),
        (["evaluate", "linear", "LONELY", "--encoder", "RUN"], "class 'bee' of"),
        (["evaluate", "linear", "EACH_ITS_OWN", "--encoder", "RUN"], "has no test images"),
        (["evaluate", "linear", "DATA", "--encoder", "RUN", "--protocol", "best"], "protocol"),
        (["evaluate", "linear", "DATA", "--encoder", "RUN", "--epochs", "3"], "the fast protocol has none"),
        (
            ["evaluate", "linear", "DATA", "--encoder", "FIVE_CHANNELS"],
            "takes 5 channels, the images of",
        ),
        (["evaluate", "finetune", "DATA", "--encoder", "RUN", "--labels", "ABSENT"], "nowhere.jpg, which is not among"),
        (["evaluate", "finetune", "DATA", "--encoder", "RUN", "--labels", "200%"], "labels: expected a share"),
        (["evaluate", "finetune", "DATA", "--encoder", "RUN", "--labels", "50"], "labels: expected at most"),
        (["embed", "DATA", "--encoder", "RUN", "--out", "OUT"], "ends with neither .parquet nor .npy"),
        (["embed", "/nonexistent", "--encoder", "RUN", "--out", "OUT.npy"], "data: /nonexistent"),
        (["export", "--encoder", "RUN", "--format", "caffe", "--out", "OUT"], "format"),
        (["export", "--encoder", "nowhere", "--format", "timm", "--out", "OUT"], "encoder: 'nowhere'"),
        (["pretrain", "FLAT", "--out", "OUT", "--probe-every", "3"], "has no labels"),
        (["pretrain", "DATA", "--out", "OUT", "--probe-every", "-1"], "every: expected at least 1"),
        (["evaluate", "detect"], "data: expected a VOCdevkit; or COCO"),
        (["evaluate", "detect", "DATA"], "encoder: expected what the detector begins with"),
        (["evaluate", "detect", "DATA", "--encoder", "resnet18"], "out: expected a folder for the detectors"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--out", "OUT"], "data: no annotations in"),
        (["evaluate", "detect", "/nonexistent", "--encoder", "RUN"], "data: /nonexistent does not exist"),
        (["evaluate", "detect", "DATA", "--encoder", "nowhere", "--out", "OUT"], "encoder: 'nowhere'"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--batch-size", "0"], "batch_size: expected at least 1"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--side=ten"], "--side: expected a whole number or null"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--schedule", "long"], "schedule"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--predict", "EMPTY"], "no image in"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--predict", "DATA", "--threshold", "2"], "threshold: exp"),
        (["evaluate", "detect", "DATA", "--encoder", "RUN", "--out", "OUT", "--resume"], "holds no detectors"),
        (["evaluate", "detect", "DATA", "DATA", "--encoder", "RUN", "--out", "OUT"], "unexpected argument"),
        (["evaluate", "detect", "--predict", "DATA"], "out: expected a folder for the detectors"),
        (["evaluate", "detect", "--predict", "DATA", "--out", "OUT"], "holds no trained detector"),
        (["evaluate", "detect", "--predict", "/nonexistent", "--out", "OUT"], "data: /nonexistent does not exist"),
        (["evaluate", "fly", "DATA"], "unknown task 'fly'; expected knn, linear,"),
        (["evaluate", "few-label", "DATA", "--encoder", "RUN", "--draws", "0"], "draws: expected"),
        (["demo", "--epochs", "0"], "epochs: expected"),
        (["nonsense"], "unknown command 'nonsense'; expected demo,"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    photographs: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"DATA": photographs, "RUN": run, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    places |= {"OUT.npy": tmp_path / "out.npy"} | odd_sources(photographs, tmp_path)
    assert call(*(places.get(a, a) for a in arguments)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def odd_sources(photographs: Path, folder: Path) -> dict[str, Path]:
    """Sources that cannot be classified, a list and an encoder that do not fit them."""
    images = sorted(photographs.rglob("*.jpg"))
    tables = {
        "FLAT": None,
        "ONE": [(p, "ant") for p in images[:4]],
        "LONELY": [(p, "ant") for p in images[:4]] + [(images[5], "bee")],
        "EACH_ITS_OWN": [(p, p.stem) for p in images[:12]],
    }
    places = {name: folder / f"{name}.csv" for name in tables}
    for name, rows in tables.items():
        if rows is not None:
            places[name].write_text("".join(f"{path},{label}\n" for path, label in rows))
    places["FLAT"] = photographs / "ant"
    places["ABSENT"] = folder / "absent.txt"
    places["ABSENT"].write_text("ant/0.jpg\nnowhere.jpg\n")
    places["FIVE_CHANNELS"] = folder / "five"
    mec.save_encoder(mec.create_encoder("test_resnet", 32, 5), places["FIVE_CHANNELS"])
    return places


def test_a_broken_image_is_passed_over_and_listed(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i, path in enumerate(photographs.rglob("*.jpg")):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(path.read_bytes()[: 100 if i == 20 else None])
    command = [sys.executable, "-m", "mec", "pretrain", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *TINY]
    command[command.index("--workers") + 1] = "1"
    command += ["--image_size", "24", "--channels", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 that could not be read" in done.stderr
    assert "20.jpg" in (tmp_path / "run" / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], ["pretrain", "evaluate", "demo"]),
        (["views", "--help"], ["--pairs", "--view_1.blur", "--every", "example:"]),
        (["pretrain", "--help"], ["--recipe", "--epochs", "--objective.distortion", "--view_2.solarize", "example:"]),
        (["evaluate", "--help"], ["knn", "linear", "few-label"]),
        (["evaluate", "knn", "--help"], ["--encoder", "--temperature", "example:"]),
        (["evaluate", "linear", "--help"], ["--iterations", "example:"]),
        (["evaluate", "few-label", "--help"], ["--draws", "example:"]),
        (["evaluate", "linear", "--help"], ["paper: the probe of the paper's code", "--protocol", "--head_lr"]),
        (["evaluate", "finetune", "--help"], ["SwAV", "--labels", "--seeds", "swav:", "barlow:", "example:"]),
        (["evaluate", "detect", "--help"], ["voc07+12", "--predict", "--batch_size", "--architecture", "example:"]),
        (["embed", "--help"], ["--near_duplicates", "--outliers", "--similarity", "example:"]),
        (["export", "--help"], ["--format", "detectron2", "--license", "--push", "example:"]),
        (["demo", "--help"], ["--out", "example:"]),
    ],
)
def test_help(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in expected)


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "--recipe", "imagenet-resnet50", "--help") == 0
    assert "default: resnet50" in " ".join(capsys.readouterr().out.split())


def test_only_the_loss_costs_torch_alone() -> None:
    heavy = "('timm', 'lightning', 'torchvision', 'sklearn')"
    code = f"import mec, sys; mec.MECLoss; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_home_folder_behind_the_sign(
    photographs: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert call("embed", photographs, "--encoder", run, "--out=~/e.npy") == 0
    assert (tmp_path / "home" / "e.npy").exists()
    assert not (tmp_path / "~").exists()
