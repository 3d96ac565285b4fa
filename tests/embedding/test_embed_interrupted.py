"""embed() when it is killed, called again, called with other inputs, or out of disk space."""

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from mec.embedding import parts
from mec.embedding.embed import embed
from mec.errors import InputError
from tests.embedding.sized_images import encoder, photographs, read
from tests.evaluate.multi_process import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"), 30)


def test_resume_after_sigkill_gives_identical_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photographs(tmp_path / "images", 150)
    (folder / "class1" / "0100.png").write_bytes(b"corrupt")
    monkeypatch.setattr(parts, "BATCH", 32)
    write_part = parts.EmbeddingParts._write_part

    def run(name: str, workers: int, stop_after: int = 0) -> Any:
        def write(self: Any, part: Any, *arguments: Any) -> None:
            write_part(self, part, *arguments)
            if len(list(self.folder.glob("*.parquet"))) == stop_after:
                os.kill(os.getpid(), signal.SIGKILL)

        def work(_: int) -> None:
            parts.EmbeddingParts._write_part = write  # type: ignore[method-assign]  # in the forked process
            embed(folder, encoder(), tmp_path / f"{name}.parquet", workers=workers)

        return launch(1, work, tmp_path / "out", lambda *_: {})[0]

    assert run("undisturbed", workers=2).status == 0
    assert run("killed", workers=2, stop_after=2).status == -signal.SIGKILL
    assert sorted(p.suffix for p in (tmp_path / "killed.parquet.parts").iterdir()) == [".json", ".parquet", ".parquet"]
    assert "resuming: 64 of 150 images are embedded" in run("killed", workers=1).err
    for end in (".parquet", ".corrupt.csv", ".json"):
        assert (tmp_path / f"undisturbed{end}").read_bytes() == (tmp_path / f"killed{end}").read_bytes()
    assert len(list(tmp_path.glob("killed*"))) == 3


def test_existing_file_is_kept_and_other_inputs_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    before = out.stat().st_mtime_ns
    assert embed(folder, encoder(), out, workers=0) == out
    assert out.stat().st_mtime_ns == before
    assert "e.parquet exists already" in capsys.readouterr().err
    other = encoder()
    next(other.backbone.parameters()).data[0] += 1e-3
    for bad in ((folder / "class0", encoder()), (folder, encoder(40)), (folder, other)):
        with pytest.raises(InputError, match=r"^out: .*e.parquet exists with other weights or images \(test_res"):
            embed(*bad, out, workers=0)
    (tmp_path / "e.json").unlink()
    with pytest.raises(InputError, match=r"^out: .*e.parquet exists, but .*e.json does not record its inputs"):
        embed(folder, encoder(), out, workers=0)


def test_parts_of_other_inputs_and_files_in_the_way_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(InputError, match=r"^out: .*e.json exists, and .*e.npy would overwrite it"):
        embed(folder, encoder(), tmp_path / "e.npy", workers=0)
    assert os.listdir(tmp_path) == ["e.json"]
    diverged = encoder()
    next(diverged.backbone.parameters()).data[0] = torch.nan
    with pytest.raises(InputError, match=r"^encoder: expected finite embeddings, got NaN or infinity for .*0000.png"):
        embed(folder, diverged, tmp_path / "f.npy", workers=0)
    with pytest.raises(InputError, match=r"f.npy.parts exists with other .*; remove it or choose"):
        embed(folder, encoder(), tmp_path / "f.npy", workers=0)
    assert sorted(os.listdir(tmp_path)) == ["e.json", "f.npy.parts"]


def test_full_disk_is_an_error_and_the_call_can_be_repeated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
        with pytest.raises(
            InputError, match=r"^out: expected 0.0 GiB of free disk for the embeddings and their parts, got 0.0 GiB"
        ):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(InputError, match=r"^out: .*000000.parquet cannot be written \(No space left on device"):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(parts.EmbeddingParts, "_blocks", full)
        with pytest.raises(InputError, match=r"^out: .*complete cannot be written \(No space left on device"):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    assert "e.parquet" not in os.listdir(tmp_path)
    assert len(read(embed(folder, encoder(), tmp_path / "e.parquet", workers=0))[0]) == 30
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.parquet"]
