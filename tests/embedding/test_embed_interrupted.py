"""embed() when it is killed, called again, called with other inputs, or out of disk space."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from mec.embedding.embed import embed
from mec.errors import InputError
from tests.embedding.sized_images import encoder, photographs, read

embed_module = importlib.import_module("mec.embedding.embed")
writer = importlib.import_module("mec.embedding.writer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"), 30)


KILLED = """
import importlib, os, signal, sys
writer = importlib.import_module("mec.embedding.writer")
embed = importlib.import_module("mec.embedding.embed")
from mec.models.encoder import create_encoder
from mec.models.io import untrained
writer.PART_IMAGES, writer.BATCH = 32, 8
data = sys.argv[1]
for job in sys.argv[2:]:  # each in a forked process, which repeats no imports
    out, after, workers = job.split(",")
    if not (child := os.fork()):
        class EmbeddingWriter(writer.EmbeddingWriter):
            def _write(self, part):
                part = super()._write(part)
                if len(self.files) == int(after):
                    os.kill(os.getpid(), signal.SIGKILL)
                return part
        embed.EmbeddingWriter = EmbeddingWriter
        embed.embed(data, untrained(create_encoder("test_resnet", 32)), out, workers=int(workers))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(os.listdir(out + ".parts")) if after != "99" else "")
"""


def test_resume_after_sigkill_gives_identical_bytes(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", 150)
    (folder / "class1" / "0100.png").write_bytes(b"corrupt")
    jobs = [f"{tmp_path}/{job}" for job in ("undisturbed.parquet,99,2", "killed.parquet,2,2", "killed.parquet,99,1")]
    arguments = [sys.executable, "-c", KILLED, str(folder), *jobs]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[:3] == ["0 ", "-9 4", "0 "], ran.stderr  # two parts and two files
    assert "resuming: 64 of 150 images are embedded" in ran.stderr
    for end in (".parquet", ".corrupt.csv"):
        assert (tmp_path / f"undisturbed{end}").read_bytes() == (tmp_path / f"killed{end}").read_bytes()
    ends = (".corrupt.csv", ".json", ".parquet")
    files = [f"{name}{end}" for name in ("killed", "undisturbed") for end in ends]
    assert sorted(os.listdir(tmp_path)) == sorted([*files, "images"])


def test_slow_runs_write_parts_after_a_time_limit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BATCH", 10)
    monkeypatch.setattr(writer, "PART_SECONDS", 0)
    monkeypatch.setattr(embed_module, "_assemble", lambda *_: None)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    embed(folder, encoder(), tmp_path / "e.npy", workers=0)
    assert len(list((tmp_path / "e.npy.parts").glob("*.safetensors"))) == 3


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

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            InputError, match=r"^out: .*000000-0-\d+.safetensors cannot be written \(No space left on device"
        ):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(InputError, match=r"^out: .*complete cannot be written \(No space left on device"):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    assert "e.parquet" not in os.listdir(tmp_path)
    assert len(read(embed(folder, encoder(), tmp_path / "e.parquet", workers=0))[0]) == 30
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.parquet"]
