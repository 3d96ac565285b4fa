from pathlib import Path

import pytest

from mec.files import StepCsv, atomic_write

COLUMNS = ("epoch", "step", "kNN")
ROWS = "epoch,step,kNN\n1,10,0.5\n2,20,0.6\n3,30,0.7\n"


def test_rows_from_the_resumed_step_on_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "probes.csv"
    assert StepCsv(path, COLUMNS, 99).earlier == []
    path.write_text(ROWS)
    csv = StepCsv(path, COLUMNS, 30)
    assert [row["kNN"] for row in csv.earlier] == ["0.5", "0.6"]
    csv.append({"step": 30, "kNN": 0.123456789, "other": 1})
    assert path.read_text().splitlines() == ["epoch,step,kNN", "1,10,0.5", "2,20,0.6", ",30,0.123457"]
    assert StepCsv(path, COLUMNS, 10).earlier == []


@pytest.mark.parametrize("cut", ["4", "4,", "4,40"])
def test_a_truncated_last_row_is_dropped(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "probes.csv"
    path.write_text(ROWS + cut)
    assert [row["step"] for row in StepCsv(path, COLUMNS, 99).earlier] == ["10", "20", "30"]
    assert path.read_text() == ROWS


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
