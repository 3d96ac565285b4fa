import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from mec.evaluate import Result

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
