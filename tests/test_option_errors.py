"""Every mistake on the command line and in a recipe is one line: the option, what came, what was expected."""

from pathlib import Path

import pytest

from mec.cli.main import main
from mec.errors import InputError, did_you_mean
from mec.pretraining.recipe_files import load_recipe

TRAIN = "pretrain x --out o "


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (TRAIN + "--epoch 3", "mec pretrain: unrecognized option --epoch; did you mean --epochs?"),
        (TRAIN + "--lr 3", "mec pretrain: unrecognized option --lr; did you mean --optimizer.lr?"),
        (
            TRAIN + "--optimizer.lr=3",
            "mec pretrain: unrecognized option --optimizer.lr; did you mean --optimizer.lr?",
        ),
        (
            TRAIN + "--objectve.order 3",
            "mec pretrain: unrecognized option --objectve.order; did you mean --objective.order?",
        ),
        (TRAIN + "--zzzzzz", "mec pretrain: unrecognized option --zzzzzz"),
        (TRAIN + "y", "mec pretrain: unexpected argument 'y'"),
        (TRAIN + "--epochs ten", "mec pretrain: --epochs: expected a whole number, got 'ten'"),
        (TRAIN + "--epochs", "mec pretrain: --epochs: expected a whole number, got nothing"),
        (TRAIN + "--resume=yes", "mec pretrain: --resume: expected no value, got 'yes'"),
        (TRAIN + "--views fats", "mec pretrain: --views: expected fast or reference, got 'fats'; did you mean fast?"),
        (TRAIN + "--small_stem maybe", "mec pretrain: --small_stem: expected true, false or null, got 'maybe'"),
        (TRAIN + "--devices many", "mec pretrain: --devices: expected a whole number or auto, got 'many'"),
        (
            TRAIN + "--objective.order two",
            "mec pretrain: --objective.order: expected a whole number or null, got 'two'",
        ),
        (
            TRAIN + "--view_1.crop_scale 3",
            "mec pretrain: --view_1.crop_scale: expected 2 numbers in brackets, such as [0.2,1], got '3'",
        ),
        (TRAIN + "--view_2.flip 3", "mec: view_2.flip: expected a number in [0, 1], got 3.0"),
        ("pretrain", "mec pretrain: expected DATA and --out OUT"),
        ("evaluate knn x", "mec evaluate knn: expected --encoder ENCODER"),
        ("evaluate knn x --encoder y --k a", "mec evaluate knn: --k: expected a list, such as [1,5], got 'a'"),
        ("evaluate kn x", "mec evaluate: unknown task 'kn'; did you mean knn?"),
        (
            "evaluate",
            "mec evaluate: expected TASK, one of knn, linear, few-label, finetune, detect, sot, vos, mot, mots, pose",
        ),
        (
            "evaluate --encoder x knn y",
            "mec evaluate: unrecognized option --encoder; expected TASK first, then its options",
        ),
        ("--epochs 3 pretrain x", "mec: unrecognized option --epochs; expected COMMAND first, then its options"),
        ("--verison", "mec: unrecognized option --verison; did you mean --version?"),
        ("pretrian x", "mec: unknown command 'pretrian'; did you mean pretrain?"),
        ("completion bsh", "mec completion: unknown shell 'bsh'; did you mean bash?"),
    ],
)
def test_one_line_that_names_what_is_wrong(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        ("epoch: 3", "recipe: no setting is called epoch; did you mean epochs?"),
        ("optimizer: {lr: 3}", "recipe: no setting is called optimizer; did you mean optimizer?"),
        ("objective: {ordre: 3}", "recipe: no setting is called objective.ordre; did you mean objective.order?"),
        ("objective: 3", "recipe: objective: expected settings by name, got 3"),
        ("epochs: ten", "recipe: epochs: expected a whole number, got 'ten'"),
        ("view_1: {flip: 3}", "view_1.flip: expected a number in [0, 1], got 3.0"),
    ],
)
def test_settings_of_a_recipe_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert str(caught.value) == message


def test_settings_that_the_architecture_names_are_free(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("backbone_options: {layers: [1, 1, 1, 1]}")
    assert load_recipe(tmp_path / "recipe.yaml").backbone_options == {"layers": [1, 1, 1, 1]}


def test_a_recipe_that_is_nearly_one_of_the_package() -> None:
    with pytest.raises(InputError, match=r"'smal' is neither .* did you mean small"):
        load_recipe("smal")


@pytest.mark.parametrize(
    ("word", "proposed"),
    [
        ("--optimizer.weight-decay", "--optimizer.weight_decay"),
        ("--lr", "--optimizer.lr"),
        ("--batch", "--batch_size"),
        ("--projector.dim", None),
    ],
)
def test_what_is_did_you_mean(word: str, proposed: str | None) -> None:
    names = [
        "--epochs", "--batch_size", "--seed", "--optimizer.name", "--optimizer.lr",
        "--optimizer.weight_decay", "--teacher.momentum",
    ]  # fmt: skip
    assert did_you_mean(word, names) == (f"; did you mean {proposed}?" if proposed else "")
