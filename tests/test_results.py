import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from mec.evaluate import Result
from mec.results import table

RESULT = Result(
    "few-label", "protocol", "data", "encoder", {"encoder": {"1": 0.5, "1 std": 0.025}, "raw pixels": {"1": 0.25}}, 1.5
)


def test_one_line_a_result(tmp_path: Path) -> None:
    for _ in range(2):
        RESULT.append_to(tmp_path / "new")
    lines = (tmp_path / "new" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["figures"] == RESULT.figures
    assert set(json.loads(lines[0])) >= {"task", "protocol", "data", "figures", "seconds", "command", "time"}


def test_table_shows_percent_and_spread() -> None:
    console = Console(width=100, file=StringIO())
    console.print(RESULT.table())
    text = console.file.getvalue()
    assert "50.0 ± 2.5" in text
    assert "25.0" in text


def test_one_table_of_several_sources() -> None:
    few = replace(
        RESULT, task="linear", data="pets[1]", figures={"encoder": {"top-1": 0.5}, "untrained": {"top-1": 0.1}}
    )
    many = replace(few, data="birds", figures={"encoder": {"top-1": 0.7, "top-5": 0.9}, "untrained": {"top-1": 0.2}})
    console = Console(width=100, file=StringIO())
    console.print(table([few, many]))
    lines = [[c.strip() for c in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines() if "│" in line]
    assert lines == [
        ["pets[1]", "encoder", "50.0", "-"],
        ["", "untrained", "10.0", "-"],
        ["birds", "encoder", "70.0", "90.0"],
        ["", "untrained", "20.0", "-"],
        ["mean of 2", "encoder", "60.0", "-"],
        ["mean of 2", "untrained", "15.0", "-"],
    ]


def test_top_5_stands_beside_the_column_it_belongs_to() -> None:
    console = Console(width=100, file=StringIO())
    console.print(replace(RESULT, figures={"encoder": {"k=20": 0.5, "k=20 top-5": 0.875}}).table())
    assert "50.0 / 87.5" in console.file.getvalue()
