"""Several values of an option of ``mec compare``, separated by commas: the runs that they are parsed to."""

from typing import Any

import pytest

from mec import comparison
from mec.cli.main import main, parse
from mec.cli.parser import split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("mec", ["mec"]),
        ("0,1, 2", ["0", "1", "2"]),
        ("[0.2,1],[0.5,1]", ["[0.2,1]", "[0.5,1]"]),
        ("{a: [1,2], b: {c: 1, d: 2}},{}", ["{a: [1,2], b: {c: 1, d: 2}}", "{}"]),
        ("a,,b,", ["a", "", "b", ""]),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ("", [{}]),
        ("--seed 3", [{}]),
        ("--objective.name mec,simclr --seed=0,1", [
            {"objective.name": name, "seed": seed} for name in ("mec", "simclr") for seed in "01"
        ]),
        ("--view_1.crop_scale 0.2,1", [{}]),  # a pair is one value
        ("--view_1.crop_scale [0.2,1],[0.5,1]", [{"view_1.crop_scale": v} for v in ("[0.2,1]", "[0.5,1]")]),
        ("--out a,b", [{}]),
        ("--optimizer.options.betas [0.9,0.99],[0.9,0.95]", [
            {"optimizer.options.betas": v} for v in ("[0.9,0.99]", "[0.9,0.95]")
        ]),
    ],
)  # fmt: skip
def test_the_grid_has_all_combinations(options: str, grid: list[dict[str, str]]) -> None:
    _, parsed = parse(["compare", "digits", "--out", "x", *options.split()])
    assert [values for values, _ in parsed["grid"]] == grid
    for values, settings in parsed["grid"]:
        for name, value in values.items():
            if name in ("seed", "objective.name"):
                inner = settings
                for key in name.split("."):
                    inner = inner[key]
                assert str(inner) == value


def test_variants_are_named_by_their_values_and_have_a_recipe_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def compare(data: str, out: str, variants: dict[str, Any], seeds: list[int]) -> None:
        calls.append({n: (v["recipe"].objective, v["recipe"].optimizer.lr) for n, v in variants.items()})
        assert (data, out, seeds) == ("digits", "x", [4, 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compare", compare)
    options = "--objective.name mec,vicreg --optimizer.lr 0.1,0.2 --seed 4,2 --backbone=resnet18"
    assert main(["compare", "digits", "--out", "x", *options.split()]) == 130
    ((variants),) = calls
    assert [*variants] == [f"{name},optimizer.lr={lr}" for name in ("mec", "vicreg") for lr in ("0.1", "0.2")]
    for name, (objective, lr) in variants.items():
        assert name == f"{objective.name},optimizer.lr={lr}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--objective.name mec,simcrl", "expected mec, simclr"),
        ("--seed 0,x", "--seed: expected a whole number, got 'x'"),
        ("--seed 0,", "--seed: expected a whole number, got ''"),
        ("--epochs 1,-1", "epochs: expected at least 1, got -1"),
        ("--objective.name mec,simclr --objective.distortion 0.1", "objective.distortion: expected none with"),
        ("--out a --objektive.name mec,simclr", "unrecognized option --objektive.name; did you mean --objective.name?"),
    ],
)
def test_a_wrong_value_among_several_is_one_line(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["compare", "digits", "--out", "/does-not-exist/x", *options.split()])
    except SystemExit as end:
        status = int(end.code or 0)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2
    assert message in line
