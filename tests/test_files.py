from pathlib import Path

import pytest

from mec.files import atomic_write, rows_before_step

ROWS = "epoch,step,kNN\n1,10,0.5\n2,20,0.6\n3,30,0.7\n"


def test_rows_before_the_resumed_step_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "probes.csv"
    assert rows_before_step(path, 99) == []
    path.write_text(ROWS)
    assert [row["kNN"] for row in rows_before_step(path, 30)] == ["0.5", "0.6"]
    assert rows_before_step(path, 10) == []


@pytest.mark.parametrize("cut", ["4", "4,", "4,40"])
def test_a_truncated_last_row_is_dropped(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "probes.csv"
    path.write_text(ROWS + cut)
    assert [row["step"] for row in rows_before_step(path, 99)] == ["10", "20", "30"]


def test_atomic_write_replaces_the_file_or_leaves_it_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.json"
    with atomic_write(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("incomplete")
        raise KeyError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]
