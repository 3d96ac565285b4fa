"""The project uses the vocabulary of its field and American spelling."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AVOIDED_WORDS = re.compile(
    r"(?<![A-Za-z])(pictures?|optimisers?|optimise|grey|solarise|normalised?|normalisation|coloured|colours?"
    r"|learnt|few-label|licences?|neighbours?|centred?|centres?|labelled|unlabelled|behaviour)(?![A-Za-z])",
    re.IGNORECASE,
)
"""Underscores and digits separate words, so that a name such as max_pictures is found."""
COLUMN_NAME = '"picture"'
"""A column that users' tables have."""
MISSPELLED_ON_PURPOSE = {Path(__file__), ROOT / "tests" / "cli" / "test_option_errors.py"}
CHECKED = {
    "src": ("*.py", "*.yaml", "*.jinja", "*.css", "*.js"),
    "docs": ("*.md",),
    "examples": ("*.py", "*.ipynb"),
    "benchmarks": ("*.py",),
    "tests": ("*.py",),
}


def checked_files() -> Iterator[Path]:
    for folder, patterns in CHECKED.items():
        for pattern in patterns:
            yield from sorted((ROOT / folder).rglob(pattern))
    yield ROOT / "README.md"


def avoided_words(line: str) -> list[str]:
    return AVOIDED_WORDS.findall(line.replace(COLUMN_NAME, ""))


def test_words_are_those_of_the_field() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {', '.join(words)}"
        for file in checked_files()
        if file not in MISSPELLED_ON_PURPOSE
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if (words := avoided_words(line))
    ]
    assert not found, "\n".join(found)


def test_avoided_words_are_found_within_names() -> None:
    assert avoided_words("max_pictures of Grey, normalise2, coloured") == ["pictures", "Grey", "normalise", "coloured"]
    assert not avoided_words("color, gray, normalize, learned, images, license, center, colored")
