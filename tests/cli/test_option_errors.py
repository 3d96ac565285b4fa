"""Every mistake on the command line and in a recipe is one line: the option, the expected value, the actual value."""

from pathlib import Path

import pytest

from mec.cli.evaluate import TASKS
from mec.cli.main import main
from mec.errors import SYNONYMS, InputError, did_you_mean
from mec.pretraining.recipe_files import load_recipe

PRETRAIN = "pretrain x --out o "
KNN = "evaluate knn x --encoder y "
PRETRAIN_ERRORS = {
    "--epoch 3": "unrecognized option --epoch; did you mean --epochs?",
    "--lr 3": "unrecognized option --lr; did you mean --optimizer.lr?",
    "--optimiser.lr=3": "unrecognized option --optimiser.lr; did you mean --optimizer.lr?",
    "--learning-rate 3": "unrecognized option --learning_rate; did you mean --optimizer.lr?",
    "--num_workers=3": "unrecognized option --num_workers; did you mean --workers?",
    "--arch resnet50": "unrecognized option --arch; did you mean --backbone?",
    "--objectve.order 3": "unrecognized option --objectve.order; did you mean --objective.order?",
    "--zzzzzz": "unrecognized option --zzzzzz",
    "y": "unexpected argument 'y'",
    "--epochs ten": "--epochs: expected a whole number, got 'ten'",
    "--epochs": "--epochs: expected a whole number, got nothing",
    "--resume=yes": "--resume: expected no value, got 'yes'",
    "--views fats": "--views: expected fast or reference, got 'fats'; did you mean fast?",
    "--small_stem maybe": "--small_stem: expected true, false or null, got 'maybe'",
    "--devices many": "--devices: expected a whole number or auto, got 'many'",
    "--objective.order two": "--objective.order: expected a whole number or null, got 'two'",
    "--view_1.crop_scale 3": "--view_1.crop_scale: expected 2 numbers, such as 0.2,1, got '3'",
}
OTHER_ERRORS = {
    "pretrain --data x --out o": "mec pretrain: unrecognized option --data; DATA is given without an option name",
    "pretrain x --data y --out o": "mec pretrain: unrecognized option --data; DATA is given without an option name",
    KNN + "--weights z": "mec evaluate knn: unrecognized option --weights; did you mean --encoder?",
    PRETRAIN + "--view_2.flip 3": "mec: view_2.flip: expected a number in [0, 1], got 3.0",
    "pretrain": "mec pretrain: expected DATA and --out OUT",
    "evaluate knn x": "mec evaluate knn: expected --encoder ENCODER",
    KNN + "-k 5": "mec evaluate knn: unrecognized option -k; did you mean --k?",
    KNN + "--k a": "mec evaluate knn: --k: expected integers, such as 1,5, got 'a'",
    "evaluate kn x": "mec evaluate: unknown task 'kn'; did you mean knn?",
    "evaluate": f"mec evaluate: expected TASK, one of {', '.join(TASKS)}",
    "evaluate --encoder x knn y": "mec evaluate: unrecognized option --encoder; expected TASK first, then its options",
    "--epochs 3 pretrain x": "mec: unrecognized option --epochs; expected COMMAND first, then its options",
    "--verison": "mec: unrecognized option --verison; did you mean --version?",
    "pretrian x": "mec: unknown command 'pretrian'; did you mean pretrain?",
    "completion bsh": "mec completion: SHELL: expected bash, zsh or fish, got 'bsh'; did you mean bash?",
}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [*((PRETRAIN + a, f"mec pretrain: {line}") for a, line in PRETRAIN_ERRORS.items()), *OTHER_ERRORS.items()],
)
def test_invalid_arguments_are_one_line_and_exit_2(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(arguments.split())
    except SystemExit as end:
        assert isinstance(end.code, int)
        status = end.code
    captured = capsys.readouterr()
    assert (status, captured.out, captured.err) == (2, "", line + "\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "recipe: unknown setting epoch; did you mean epochs?"),
        ("optimiser: {lr: 3}", "recipe: unknown setting optimiser; did you mean optimizer?"),
        ("objective: {ordre: 3}", "recipe: unknown setting objective.ordre; did you mean objective.order?"),
        ("objective: 3", "recipe: objective: expected a mapping of settings, got 3"),
        ("epochs: ten", "recipe: epochs: expected a whole number, got 'ten'"),
        ("view_1: {flip: 3}", "view_1.flip: expected a number in [0, 1], got 3.0"),
    ],
)
def test_invalid_settings_of_a_recipe_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value) == message


def test_backbone_options_accept_any_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("backbone_options: {layers: [1, 1, 1, 1]}")
    assert load_recipe(tmp_path / "recipe.yaml").backbone_options == {"layers": [1, 1, 1, 1]}


def test_misspelled_name_of_a_packaged_recipe_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'smal' is neither .* did you mean small"):
        load_recipe("smal")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("--optimizer.weight-decay", "--optimizer.weight_decay"),
        ("--lr", "--optimizer.lr"),
        ("--batch", "--batch_size"),
        ("--projector.dim", None),
    ],
)
def test_similar_names_are_suggested(name: str, suggestion: str | None) -> None:
    known_names = [
        "--epochs", "--batch_size", "--seed", "--optimizer.name", "--optimizer.lr",
        "--optimizer.weight_decay", "--teacher.momentum",
    ]  # fmt: skip
    assert did_you_mean(name, known_names) == (f"; did you mean {suggestion}?" if suggestion else "")


PRETRAIN_OPTIONS = [
    "--out", "--backbone", "--epochs", "--batch_size", "--workers", "--devices", "--optimizer.name", "--optimizer.lr",
]  # fmt: skip
FINETUNE_OPTIONS = ["--encoder", "--out", "--epochs", "--batch_size", "--backbone_lr", "--head_lr", "--workers"]
LINEAR_OPTIONS = ["--encoder", "--out", "--epochs", "--batch_size", "--head_lr", "--workers"]


@pytest.mark.parametrize(
    ("name", "known_names", "suggestion"),
    [
        ("--lr", PRETRAIN_OPTIONS, "--optimizer.lr"),
        ("--learning_rate", PRETRAIN_OPTIONS, "--optimizer.lr"),
        ("--learning-rate", PRETRAIN_OPTIONS, "--optimizer.lr"),
        ("--optimizer.learning_rate", PRETRAIN_OPTIONS, "--optimizer.lr"),
        ("--learning_rate", LINEAR_OPTIONS, "--head_lr"),
        ("--learning_rate", FINETUNE_OPTIONS, "--head_lr or --backbone_lr"),
        ("--lr", ["--lr", "--out"], "--lr"),
        ("--num_workers", PRETRAIN_OPTIONS, "--workers"),
        ("--model", PRETRAIN_OPTIONS, "--backbone"),
        ("--arch", PRETRAIN_OPTIONS, "--backbone"),
        ("--model", LINEAR_OPTIONS, "--encoder"),
        ("--arch", LINEAR_OPTIONS, "--encoder"),
        ("--checkpoint", LINEAR_OPTIONS, "--encoder"),
        ("--weights", LINEAR_OPTIONS, "--encoder"),
        ("--output", PRETRAIN_OPTIONS, "--out"),
        ("--output-dir", PRETRAIN_OPTIONS, "--out"),
        ("--bs", PRETRAIN_OPTIONS, "--batch_size"),
        ("--batch", PRETRAIN_OPTIONS, "--batch_size"),
        ("--num_epochs", PRETRAIN_OPTIONS, "--epochs"),
        ("--gpus", PRETRAIN_OPTIONS, "--devices"),
        ("learning_rate", ["epochs", "optimizer", "optimizer.lr"], "optimizer.lr"),
    ],
)
def test_option_names_of_other_libraries_are_translated(name: str, known_names: list[str], suggestion: str) -> None:
    assert did_you_mean(name, known_names) == f"; did you mean {suggestion}?"


def test_a_synonym_is_only_suggested_if_the_command_has_the_option() -> None:
    for synonym in SYNONYMS:
        assert did_you_mean(f"--{synonym}", ["--zzzzzz"]) == ""
