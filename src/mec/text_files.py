"""Text files of users, read by the same functions everywhere: lists, tables with any delimiter, columns of numbers."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DELIMITERS = "\t,;|"  # in order of preference
NUMBER_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")


class TextError(ValueError):
    """A text file that cannot be used. The message begins with its path and has one line."""


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 or UTF-32 with one.

    Raises:
        TextError: the file cannot be read, or is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TextError(f"{path} cannot be read ({error.strerror or error})") from error
    encoding = next((e for mark, e in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start:,}"
        raise TextError(f"{path} is not text in {encoding.removesuffix('-sig').upper()} ({reason})") from error
    if "\0" in text:
        raise TextError(f"{path} is not text (it contains zero bytes)")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return number, counted from 1, and text of each line that is not blank, without spaces around it. Raises as
    ``read_text``."""
    # not splitlines, which also splits at characters such as U+2028 that may be in a name
    lines = (line.strip() for line in read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return [(number, line) for number, line in enumerate(lines, 1) if line]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return line number, counted from 1, and cells of each row of a table that is not blank.

    The delimiter is the one of tab, comma, semicolon and | that gives every row the same number of cells; else the one
    that gives most rows more than one cell. Cells may be in double quotes; spaces around them are removed.

    Raises:
        TextError: as ``read_text``; or an opening quote without a closing one.
    """
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    candidates: list[tuple[bool, int, list[tuple[int, list[str]]]]] = []
    for delimiter in DELIMITERS:
        reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, skipinitialspace=True, strict=True)
        rows, start = [], 1
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    rows.append((start, cells))
                start = reader.line_num + 1
        except csv.Error as error:
            if delimiter == DELIMITERS[-1] and not candidates:
                raise TextError(f"{path}: line {start}: {error}") from error
            continue
        widths = [len(cells) for _, cells in rows]
        is_table = len(set(widths)) == 1 and widths[0] > 1
        candidates.append((is_table, sum(width > 1 for width in widths), rows))
    return max(candidates, key=lambda candidate: candidate[:2])[2]


@dataclass(frozen=True)
class NumberTable:
    """The numbers of a file, (rows, columns), and the number of the line of each row, counted from 1."""

    file: Path
    values: NDArray[np.float64]
    lines: Sequence[int]

    def check(self, valid: Any, expected: str) -> None:
        """Raise TextError with the first row that is not ``valid``, flags (rows,)."""
        if not np.all(valid):
            row = int(np.argmin(valid))
            got = ", ".join(f"{value:g}" for value in self.values[row])
            raise TextError(f"{self.file}: line {self.lines[row]}: expected {expected}, got {got}")


def read_numbers(path: Path, columns: int, more: bool = False) -> NumberTable:
    """Read lines of numbers with any separator; with ``more``, of at least ``columns``, all of one length.

    Raises:
        TextError: as ``read_text``; or a line with other content.
    """
    rows: list[list[float]] = []
    lines = []
    for number, line in read_lines(path):
        try:
            row = [float(field) for field in NUMBER_SEPARATOR.split(line)]
        except ValueError:
            raise TextError(f"{path}: line {number}: expected numbers, got {line[:60]!r}") from None
        if not rows and more:
            columns = max(columns, len(row))
        if len(row) != columns:
            raise TextError(f"{path}: line {number}: expected {columns} numbers, got {line[:60]!r}")
        rows.append(row)
        lines.append(number)
    return NumberTable(path, np.array(rows, np.float64).reshape(-1, columns), lines)
