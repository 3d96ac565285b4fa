"""Help of ``mec evaluate sot|vos|mot|mots|pose`` and ``mec track``, and lists of names on the command line."""

import re
import shlex

import pytest

from mec.cli.evaluate import split_names
from mec.cli.main import main, parse
from tests.evaluate.tracking.crossings import TASKS


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, None),
        ("one", ["one"]),
        ("one,two", ["one", "two"]),
        ("[one, two three]", ["one", "two three"]),
        ("*-FRCNN", ["*-FRCNN"]),
        ("[*-FRCNN]", ["*-FRCNN"]),
        ("['*-FRCNN', \"0002 car\"]", ["*-FRCNN", "0002 car"]),
        ("000[12]_*", ["000[12]_*"]),
    ],
)
def test_lists_of_names_may_have_brackets_quotes_and_patterns(text: str | None, names: list[str] | None) -> None:
    assert split_names(text) == names


@pytest.mark.parametrize("command", [*(f"evaluate {task}" for task in TASKS), "track"])
def test_help_describes_every_option_and_has_a_valid_example(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    options = re.findall(r"^  (-\S+|[A-Z]\w*)(.*(?:\n   .*)*)", text, re.MULTILINE)
    assert len(options) > 8
    for name, help_text in options:
        description = re.sub(r"\((type|default|required)[^)]*\)|--?\w+\+?|[A-Z_]{2,}\b|\{.*?\}", "", help_text)
        assert len(re.findall(r"[a-z]+", description)) >= 3, (name, help_text)
    (example,) = re.findall(r"^example: mec (.*)$", text, re.MULTILINE)
    assert example.startswith(command)
    arguments = shlex.split(example)
    parse(arguments)
