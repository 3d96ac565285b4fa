"""The rooms of the package use each other as docs/design.md says, and its links into the source are true."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mec"
DESIGN = (ROOT / "docs" / "design.md").read_text()
OUTSIDE = {"__init__", "__main__"}
"""They hand on what others have: names of the package, the command."""


def table() -> dict[str, set[str]]:
    """Room -> rooms that it may use, in the order of the page."""
    section = DESIGN.split("## The rooms")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): set(re.findall(r"`(\w+)`", row[2] if len(row) > 2 else "")) for row in rows}


def files() -> dict[Path, str]:
    """Every file of the package, and the room that it is in."""
    return {f: f.relative_to(SOURCE).parts[0].removesuffix(".py") for f in sorted(SOURCE.rglob("*.py"))}


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of whatever a file imports, also within functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def uses(file: Path) -> Iterator[tuple[int, str]]:
    """Line and room of whatever a file imports from this package; its version is nobody's room."""
    for line, name in imported(file):
        top, _, rest = name.partition(".")
        if top == "mec" and rest != "__version__":
            yield line, rest.split(".")[0]


def test_a_room_is_in_the_table_or_hands_on() -> None:
    assert set(files().values()) - OUTSIDE == set(table())


def test_a_room_uses_rooms_above_it() -> None:
    rooms = list(table())
    for room, used in table().items():
        assert used <= set(rooms[: rooms.index(room)]), f"{room}: {used} has one below it"


@pytest.mark.parametrize("room", table())
def test_imports_are_those_of_the_table(room: str) -> None:
    allowed = table()[room] | {room}
    broken = [
        f"{file.relative_to(ROOT)}:{line}: {room} uses {used}"
        for file, own in files().items()
        if own == room
        for line, used in uses(file)
        if used not in allowed
    ]
    assert not broken, "\n".join(broken)


def test_the_table_names_nothing_that_is_not_used() -> None:
    used: dict[str, set[str]] = {}
    for file, room in files().items():
        if room not in OUTSIDE:
            used.setdefault(room, set()).update({other for _, other in uses(file)} - {room})
    assert used == table()


def test_the_theory_needs_torch_alone() -> None:
    known = {*sys.stdlib_module_names, "torch", "mec"}
    for file, room in files().items():
        if room == "coding":
            assert {name.split(".")[0] for _, name in imported(file)} <= known, file


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/.*])((?:[\w]+/)+[\w.]+\.py|(?:[\w]+/)+)(?=[`<\s])", DESIGN))
    assert len(named) > 20
    for name in named:
        assert any((place / name).exists() for place in (ROOT, SOURCE, ROOT / "src")), name
