"""Every Python block of the README and the docs runs; every mec command in a shell block is one the parser accepts."""

import re
import shlex
from pathlib import Path

import pytest

from mec.cli import _parser, _with_underscores

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for n, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append(pytest.param(block, id=f"{page.name}-{n}"))
    return found


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("block", blocks("sh"))
def test_commands_are_accepted(block: str) -> None:
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    for line in lines:
        if line and line[0] == "mec":
            arguments = [_with_underscores(a) for a in line[1:]]
            if "--help" in arguments:
                with pytest.raises(SystemExit, match="0"):
                    _parser(arguments).parse_args(arguments)
            else:
                _parser(arguments).parse_args(arguments)


def test_links_within_the_repository_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
