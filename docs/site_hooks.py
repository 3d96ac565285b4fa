"""Hooks of mkdocs: formulas as MathML, which browsers draw without a network; help texts of the commands."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from typing import Any

from latex2mathml.converter import convert

from mec.cli.main import COMMANDS, create_parsers

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.+?)\\[)\]]</\1>', re.DOTALL)
HELP = "<!-- help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark of the page of commands by the help of each of them."""
    return markdown.replace(HELP, "\n\n".join(_help_sections())) if HELP in markdown else markdown


def _help_sections() -> Iterator[str]:
    os.environ["COLUMNS"] = "84"  # the width to which argparse wraps
    for name, parser in create_parsers().items():
        if name not in ("mec", "mec evaluate"):
            COMMANDS[name.split()[1]][1](parser, [])  # adds its options
        yield f"## {name}\n\n```text\n{parser.format_help().rstrip()}\n```"


def on_page_content(content: str, **_: Any) -> str:
    """Convert the formulas of a page from LaTeX."""

    def mathml(match: re.Match[str]) -> str:
        return convert(html.unescape(match[2]), display="inline" if match[1] == "span" else "block")

    return FORMULA.sub(mathml, content)
