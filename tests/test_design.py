"""Imports between packages follow the table of docs/design.md, and the files it names exist."""

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
ENTRY_POINTS = {"__init__", "__main__"}
"""Modules that only re-export names, or run the command."""


def table() -> dict[str, set[str]]:
    """Package -> packages that it may import, in the order of the page."""
    section = DESIGN.split("## Packages")[1].split("\n## ")[0]
    rows = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): set(re.findall(r"`(\w+)`", row[2] if len(row) > 2 else "")) for row in rows}


def files() -> dict[Path, str]:
    """Every source file -> its top-level package."""
    return {f: f.relative_to(SOURCE).parts[0].removesuffix(".py") for f in sorted(SOURCE.rglob("*.py"))}


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every import, also within functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def internal_imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and top-level package of every import from mec, except for its version."""
    for line, name in imported(file):
        top, _, rest = name.partition(".")
        if top == "mec" and rest != "__version__":
            yield line, rest.split(".")[0]


def test_every_package_is_in_the_table() -> None:
    assert set(files().values()) - ENTRY_POINTS == set(table())


def test_packages_import_only_packages_above_them() -> None:
    packages = list(table())
    for package, imports in table().items():
        assert imports <= set(packages[: packages.index(package)]), f"{package}: one of {imports} is below it"


@pytest.mark.parametrize("package", table())
def test_imports_are_allowed_by_the_table(package: str) -> None:
    allowed = table()[package] | {package}
    violations = [
        f"{file.relative_to(ROOT)}:{line}: {package} imports {other}"
        for file, own in files().items()
        if own == package
        for line, other in internal_imports(file)
        if other not in allowed
    ]
    assert not violations, "\n".join(violations)


def test_the_table_lists_no_unused_import() -> None:
    imports: dict[str, set[str]] = {}
    for file, package in files().items():
        if package not in ENTRY_POINTS:
            others = {other for _, other in internal_imports(file)} - {package}
            imports.setdefault(package, set()).update(others)
    assert imports == table()


def test_coding_imports_only_torch() -> None:
    known = {*sys.stdlib_module_names, "torch", "mec"}
    for file, package in files().items():
        if package == "coding":
            assert {name.split(".")[0] for _, name in imported(file)} <= known, file


def test_files_named_by_the_page_exist() -> None:
    named = set(re.findall(r"(?<![\w/.*])((?:[\w]+/)+[\w.]+\.py|(?:[\w]+/)+)(?=[`<\s])", DESIGN))
    assert len(named) > 20
    for name in named:
        assert any((folder / name).exists() for folder in (ROOT, SOURCE, ROOT / "src")), name
