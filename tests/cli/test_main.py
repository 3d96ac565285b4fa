import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mec
from mec.cli.main import main
from mec.pretraining.recipe import ObjectiveSettings, Recipe
from mec.pretraining.recipe_files import load_recipe
from mec.results import Result

TINY = (
    "--image_size 16 --epochs 1 --workers 0 --projector.hidden_dim 16 --projector.output_dim 8 "
    "--backbone resnet18 --backbone_options.layers [1,1,1,1] --backbone_options.channels [16,16,16,16]"
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


def test_every_classification_task_appends_a_result(
    photographs: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, options in (
        ("knn", ["--k", "1,5"]),
        ("linear", []),
        ("linear", ["--protocol", "paper", "--epochs", 1, "--batch-size", 8, "--workers", 0]),
        ("few-shot", ["--shots=1"]),
        ("finetune", ["--label_fraction", 0.5, "--epochs", 1, "--trials", 2, "--workers", 0]),
    ):
        assert call("evaluate", task, photographs, "--encoder", run, *options) == 0
        captured = capsys.readouterr()
        assert "untrained" in captured.out
        assert f"encoder: encoder of {run}" in captured.err
    results = [Result.from_dict(json.loads(line)) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [result.task for result in results] == ["knn", "linear", "linear", "few-shot", "finetune"]
    assert [metric.name for metric in results[0].rows["encoder"]] == ["k=1", "k=5"]
    assert results[2].protocol.includes({"head": "BatchNorm and linear", "optimizer": "LARS"})
    assert results[4].protocol.includes({"labels": 10, "label_fraction": 0.5, "trials": 2})


def test_several_datasets_make_one_table(photographs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "results.jsonl").read_text().splitlines() if (run / "results.jsonl").exists() else []
    assert call("evaluate", "knn", photographs, photographs, "--encoder", run, "--k", 1) == 0
    assert "mean of 2" in capsys.readouterr().out
    assert len((run / "results.jsonl").read_text().splitlines()) == len(before) + 2


def test_embed_lists_near_duplicates(photographs: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npy"
    assert call("embed", photographs, "--encoder", run, "--out", out, "--near-duplicates", "--similarity", 0.5) == 0
    assert np.load(out).shape == (24, 16)
    assert (tmp_path / "e.near-duplicates.csv").exists()


def test_export_prints_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "e.safetensors"
    assert call("export", "--encoder", run, "--format", "safetensors", "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert mec.load_encoder(out).spec == mec.load_encoder(run).spec


def test_pretraining_probes_where_there_are_labels(photographs: Path, tmp_path: Path) -> None:
    for name, options, expected in (("a", [], True), ("b", ["--probe-every", 0], False)):
        assert call("pretrain", photographs, "--out", tmp_path / name, "--batch_size", 8, *TINY, *options) == 0
        assert (tmp_path / name / "probes.csv").exists() == expected


def test_options_reach_the_recipe(run: Path) -> None:
    from mec.pretraining import Run

    recipe = Run(run).recipe()
    assert (recipe.image_size, recipe.epochs, recipe.batch_size) == (16, 1, 8)
    assert recipe.projector.output_dim == 8
    assert recipe.backbone_options == {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}


def test_views_draws_a_contact_sheet(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    options = ["--pairs", 2, "--image-size", 16, "--view-1.blur=0"]
    assert call("views", photographs, "--out", sheet, "--subsample", 3, *options) == 0
    assert capsys.readouterr().out.strip() == str(sheet)
    assert Image.open(sheet).width > 300


def test_labels_csv_replaces_the_sub_folders(photographs: Path, run: Path, tmp_path: Path) -> None:
    rows = [f"{p.parent.name}/{p.name},{int(p.stem) % 2}" for p in sorted(photographs.rglob("*.jpg"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    options = ["--encoder", run, "--k", "[1]", "--out", tmp_path, "--labels_csv", tmp_path / "labels.csv"]
    assert call("evaluate", "knn", photographs, *options) == 0
    result = Result.from_dict(json.loads((tmp_path / "results.jsonl").read_text()))
    assert result.dataset.counts["classes"] == 2


def test_resume_of_a_finished_run_changes_nothing(photographs: Path, run: Path) -> None:
    before = (run / "encoder.safetensors").read_bytes()
    assert call("pretrain", photographs, "--out", run, "--resume") == 0
    assert (run / "encoder.safetensors").read_bytes() == before


def test_options_of_an_objective_and_no_others_apply_to_another_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr("mec.pretraining.pretrain", lambda *arguments, **_: recipes.append(arguments[2]))
    common = ["pretrain", "digits", "--out", "x", "--recipe", "imagenet-resnet50", "--probe_every", "0"]
    for options in (
        ["--objective.name", "simclr", "--objective.options.temperature", "0.2"],
        ["--objective.name", "simclr", "--objective.options", "{temperature: 0.2}"],
        ["--objective.name", "vicreg", "--teacher.enabled", "true"],
        ["--objective.distortion", "0.1"],
        ["--objective.form", "pooled", "--objective.rate-weight", "2"],
        ["--objective.distortion", "[0.001,1]"],
        ["--objective.distortion", "0.001,1"],
        ["--objective.form", "pooled", "--recipe", "small"],  # a sweep suits the reduction
    ):
        assert call(*common, *options) == 0
    expected = ObjectiveSettings(name="simclr", options={"temperature": 0.2})
    assert [recipe.objective for recipe in recipes[:2]] == [expected, expected]
    # the teacher of the paper's recipe belongs to the paper's objective
    assert [recipe.teacher.enabled for recipe in recipes] == [False, False, *[True] * 5, False]
    paper = load_recipe("imagenet-resnet50").objective
    assert recipes[3].objective == replace(paper, distortion=0.1)
    # the distortion of the recipe belongs to its form
    assert recipes[4].objective == replace(paper, form="pooled", rate_weight=2.0, distortion=None)
    assert recipes[5].objective == recipes[6].objective == replace(paper, distortion=(0.001, 1.0))
    assert recipes[7].setting("objective.distortion") == 1 / 32


def test_a_run_with_an_object_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("parts: {objective: losses.VICReg(sim=25.0)}\n")
    assert call("pretrain", "digits", "--out", tmp_path, "--resume") == 2
    assert "objective: the recipe is that of a run with losses.VICReg(sim=25.0)" in capsys.readouterr().err


E = "--encoder RUN"
ERRORS = {
    "pretrain /nonexistent --out OUT": "data: ",
    "pretrain EMPTY --out OUT": "no image in",
    "pretrain DATA --out OUT --epochs -1": "epochs: ",
    "pretrain DATA --out OUT --objective.distortion 0": "objective.distortion: ",
    "pretrain DATA --out OUT --objective.distortion [0.1]": "objective.distortion: ",
    "pretrain DATA --out OUT --objective.distortion 0.1,-1": "objective.distortion: ",
    "pretrain DATA --out OUT --objective.form cross --objective.rate_weight 2": "objective.rate_weight: ",
    "pretrain DATA --out OUT --objective.name simclr --objective.options.temp 1": "options temperature with simclr",
    "pretrain DATA --out OUT --objective.name simsiam --teacher.enabled true": "teacher.enabled: ",
    "pretrain DATA --out OUT --backbone resnet19": "backbone: ",
    "pretrain DATA --out OUT --recipe none": "recipe: ",
    "pretrain DATA --out OUT --devices 0": "devices: ",
    "pretrain DATA --out RUN": "out: ",
    "pretrain DATA --out OUT --max-corrupt 2": "max_corrupt: ",
    "pretrain DATA --out OUT --channels 4": "channels: ",
    "pretrain DATA --out OUT --background nocolor": "background: ",
    "pretrain DATA --out OUT --frame_stride 2": "frame_stride: ",
    "pretrain none-{0..3}.tar --out OUT": "data: none-0.tar",
    "pretrain none.parquet --out OUT": "data: none.parquet",
    "pretrain FLAT --out OUT --probe-every 3": "have no labels",
    "pretrain DATA --out OUT --probe-every -1": "every_n_epochs: ",
    "views DATA --out OUT": "out: ",
    "evaluate knn DATA --encoder nowhere": "encoder: ",
    f"evaluate knn DATA /nonexistent {E}": "data: ",
    f"evaluate linear FLAT {E}": "have no labels",
    f"evaluate linear ONE_CLASS {E}": "one class",
    f"evaluate linear SINGLE {E}": "class 'bee' of",
    f"evaluate linear ONE_EACH {E}": "no test images",
    f"evaluate linear DATA {E} --epochs 3": "epochs",
    "evaluate linear DATA --encoder FIVE_CHANNELS": "5 channels",
    f"evaluate finetune DATA {E} --label_list ABSENT": "label_list: ",
    f"evaluate finetune DATA {E} --label_fraction 2": "label_fraction: ",
    f"evaluate finetune DATA {E} --shots 50": "shots: ",
    f"evaluate finetune DATA {E} --shots 1 --label_list ABSENT": "label_list",
    f"evaluate few-shot DATA {E} --trials 0": "trials: ",
    f"embed DATA {E} --out OUT": "out: ",
    "export --encoder nowhere --format timm --out OUT": "encoder: ",
    "evaluate detect": "data: ",
    "evaluate detect DATA": "encoder: ",
    "evaluate detect DATA --encoder resnet18": "out: ",
    f"evaluate detect DATA {E} --out OUT": "data: ",
    "evaluate detect DATA --encoder nowhere --out OUT": "encoder: ",
    f"evaluate detect DATA {E} --batch-size 0": "batch_size: ",
    f"evaluate detect DATA {E} --predict EMPTY": "no image in",
    f"evaluate detect DATA {E} --predict DATA --threshold 2": "threshold: ",
    f"evaluate detect DATA DATA {E} --out OUT": "unexpected argument",
    "evaluate detect --predict DATA": "out: ",
    "evaluate detect --predict DATA --out OUT": "out: ",
    "evaluate detect --predict /nonexistent --out OUT": "data: ",
    "demo --epochs 0": "epochs: ",
    "report RUN --watch --out r.html": "out: ",
    "report RUN --port 1": "port: ",
}
"""Command line -> a part of the error that names the argument, or what is wrong with the data."""


@pytest.fixture(scope="module")
def places(photographs: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("unusable")
    (folder / "empty").mkdir()
    return {"DATA": photographs, "RUN": run, "EMPTY": folder / "empty", **unusable_inputs(photographs, folder)}


@pytest.mark.parametrize("arguments", ERRORS)
def test_user_errors_are_one_line_and_exit_2(
    arguments: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {"OUT": tmp_path / "out"}
    assert call(*((places | out).get(a, a) for a in arguments.split())) == 2
    captured = capsys.readouterr()
    *lines, error = captured.err.strip().splitlines()
    assert ERRORS[arguments] in error
    assert all(line.startswith(tuple(map(str, places.values()))) for line in lines)  # how the dataset was read
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def unusable_inputs(photographs: Path, folder: Path) -> dict[str, Path]:
    """Datasets that cannot be classified, and a label list and an encoder that do not fit the data."""
    images = sorted(photographs.rglob("*.jpg"))
    tables = {
        "FLAT": None,
        "ONE_CLASS": [(p, "ant") for p in images[:4]],
        "SINGLE": [(p, "ant") for p in images[:4]] + [(images[5], "bee")],
        "ONE_EACH": [(p, p.stem) for p in images[:12]],
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


def test_corrupt_image_is_skipped_and_listed(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for i, path in enumerate(photographs.rglob("*.jpg")):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(path.read_bytes()[: 100 if i == 20 else None])
    options = ["--workers", 1, "--image_size", 24, "--channels", 3]
    assert call("pretrain", tmp_path / "data", "--out", tmp_path / "run", *TINY, *options) == 0
    assert "skipped corrupt images: 1 " in capsys.readouterr().err
    assert "20.jpg" in (tmp_path / "run" / "corrupt.csv").read_text()


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("pretrain", "--recipe", "imagenet-resnet50", "--help") == 0
    assert "default: resnet50" in " ".join(capsys.readouterr().out.split())


def test_the_loss_imports_only_torch_and_the_list_of_commands_not_even_that() -> None:
    code = """
import contextlib, sys
from mec.cli.main import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print("torch" in sys.modules)
import mec
mec.MECLoss
print([name for name in ("timm", "lightning", "torchvision", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["False", "[]"]


def test_home_folder_after_an_equals_sign_is_expanded(
    photographs: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert call("embed", photographs, "--encoder", run, "--out=~/e.npy") == 0
    assert (tmp_path / "home" / "e.npy").exists()
    assert not (tmp_path / "~").exists()


def test_options_of_a_backbone_and_an_optimizer_apply_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr("mec.pretraining.pretrain", lambda *arguments, **_: recipes.append(arguments[2]))
    common = ["pretrain", "digits", "--out", "x", "--probe_every", "0"]
    # the recipe digits has options of a ResNet, cifar10-cpu has betas of AdamW
    for options in (
        ["--backbone", "compact_resnet"],
        ["--backbone", "compact_resnet", "--backbone_options.width_factor", "0.5"],
        ["--recipe", "cifar10-cpu", "--optimizer.name", "sgd"],
        ["--recipe", "cifar10-cpu", "--optimizer.name", "sgd", "--optimizer.options", "{nesterov: true}"],
        ["--recipe", "cifar10-cpu", "--optimizer.name", "adamw"],
        ["--backbone", "resnet18"],
    ):
        assert call(*common, *options) == 0
    assert [recipe.backbone_options for recipe in recipes[:2]] == [{}, {"width_factor": 0.5}]
    assert [recipe.optimizer.options for recipe in recipes[2:5]] == [{}, {"nesterov": True}, {"betas": [0.9, 0.99]}]
    assert recipes[5].backbone_options == load_recipe("digits").backbone_options


def test_a_warning_of_corrupt_images_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("twice", "twice", "another"):
        logging.getLogger("mec").warning(text, extra={"once": True})
        logging.getLogger("mec").info("a step")
    assert capsys.readouterr().err.splitlines() == [
        "warning: twice", "a step", "a step", "warning: another", "a step"
    ]  # fmt: skip
