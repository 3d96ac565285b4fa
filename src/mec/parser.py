"""The parser of the command line: help in paragraphs, errors in one line."""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the paragraphs of a description."""


class Parser(ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Formatter, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).replace('Parser key "', "").replace('":', ":").split())
        line = re.sub(r"Expected a typing\.Literal\[(.*?)\]\.", r"expected one of \1.", line)
        print(f"{self.prog.replace(' [options]', '')}: {line}", file=sys.stderr)
        sys.exit(2)


def about(function: Callable[..., Any]) -> str:
    """What its docstring says before the arguments, to the width of the terminal."""
    paragraphs = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0].split("\n\n")
    return "\n\n".join(textwrap.fill(p, min(120, shutil.get_terminal_size().columns - 2)) for p in paragraphs)
