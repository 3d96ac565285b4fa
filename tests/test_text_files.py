"""Text files as users' tools write them: encodings, delimiters, quotes, line ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from mec.text_files import TextError, read_lines, read_numbers, read_rows, read_text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends_give_the_same_lines(tmp_path: Path, encoding: str, newline: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(newline.join(["été.jpg", "", " my photo (0).jpg ", "naïve\u2028name.jpg"]).encode(encoding))
    assert read_lines(path) == [(1, "été.jpg"), (3, "my photo (0).jpg"), (4, "naïve\u2028name.jpg")]


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"caf\xe9", b"\x89PNG\r\n\x1a\n", b"a\0b"])
def test_other_content_is_refused_in_one_line_with_the_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(TextError, match="not text") as error:
        read_text(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"list\.txt cannot be read"):
        read_text(tmp_path / "list.txt")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_delimiter_gives_the_same_rows(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f'image{delimiter} "class"\n\na b.jpg{delimiter}"x{delimiter}y"\nc.jpg{delimiter}\n')
    assert read_rows(path) == [(1, ["image", "class"]), (3, ["a b.jpg", f"x{delimiter}y"]), (4, ["c.jpg", ""])]


def test_a_comma_within_a_cell_does_not_hide_the_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("file;price\na.jpg;1,5\nb.jpg;2\n")
    assert read_rows(path) == [(1, ["file", "price"]), (2, ["a.jpg", "1,5"]), (3, ["b.jpg", "2"])]


def test_a_quoted_cell_may_span_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('a.jpg,"two\nlines"\nb.jpg,c\n')
    assert read_rows(path) == [(1, ["a.jpg", "two\nlines"]), (3, ["b.jpg", "c"])]


def test_a_table_of_one_column_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a.jpg\nb.jpg\n")
    assert read_rows(path) == [(1, ["a.jpg"]), (2, ["b.jpg"])]


def test_an_unclosed_quote_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('a.jpg,x\n"b.jpg,y\nc.jpg,z\n')
    with pytest.raises(TextError, match="line 2"):
        read_rows(path)


@pytest.mark.parametrize("line", ["1,2.5,3", "1 2.5 3", "1\t2.5\t3", " 1 , 2.5 ; 3 "])
def test_numbers_have_any_separator(tmp_path: Path, line: str) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(f"{line}\n\n4 5 6\n", encoding="utf-8-sig")
    table = read_numbers(path, 3)
    assert (table.values.tolist(), list(table.lines)) == ([[1, 2.5, 3], [4, 5, 6]], [1, 3])
    with pytest.raises(TextError, match=r"line 3: expected below 4, got 4, 5, 6"):
        table.check(table.values[:, 0] < 4, "below 4")


@pytest.mark.parametrize("line", ["1,2", "1,2,x"])
def test_other_lines_are_refused_with_their_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(f"1,2,3\n{line}\n")
    with pytest.raises(TextError, match="line 2"):
        read_numbers(path, 3)
