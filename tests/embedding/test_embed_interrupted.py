"""Embeddings that are killed, done already, begun of others, or meet a full disk."""

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
from tests.evaluate.sized_images import encoder, photographs, read

whole = importlib.import_module("mec.embedding.embed")
module = importlib.import_module("mec.embedding.writer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(tmp_path_factory.mktemp("images"), 30)


KILLED = """
import importlib, os, signal, sys
module = importlib.import_module("mec.embedding.writer")
embed = importlib.import_module("mec.embedding.embed")
from mec.models.encoder import create_encoder
from mec.models.io import untrained
module.PART, module.BATCH = 32, 8
data = sys.argv[1]
for job in sys.argv[2:]:  # each in a process of its own, which need not import everything again
    out, after, workers = job.split(",")
    if not (child := os.fork()):
        class Making(module.Making):
            def _written(self, part):
                part = super()._written(part)
                if len(self.files) == int(after):
                    os.kill(os.getpid(), signal.SIGKILL)
                return part
        embed.Making = Making
        embed.embed(data, untrained(create_encoder("test_resnet", 32)), out, workers=int(workers))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(os.listdir(out + ".parts")) if after != "99" else "")
"""


def test_killed_and_called_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", 150)
    (folder / "class1" / "0100.png").write_bytes(b"broken")
    jobs = [f"{tmp_path}/{job}" for job in ("whole.parquet,99,2", "killed.parquet,2,2", "killed.parquet,99,1")]
    arguments = [sys.executable, "-c", KILLED, str(folder), *jobs]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[:3] == ["0 ", "-9 4", "0 "], ran.stderr  # two parts and two files
    assert "going on: 64 of 150 images are there" in ran.stderr
    for end in (".parquet", ".skipped.csv"):
        assert (tmp_path / f"whole{end}").read_bytes() == (tmp_path / f"killed{end}").read_bytes()
    ends = (".json", ".parquet", ".skipped.csv")
    assert sorted(os.listdir(tmp_path)) == [*(f"killed{e}" for e in ends), "images", *(f"whole{e}" for e in ends)]


def test_slow_ones_write_their_parts_in_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 10)
    monkeypatch.setattr(module, "PART_SECONDS", 0)
    monkeypatch.setattr(whole, "_assemble", lambda *_: None)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    embed(folder, encoder(), tmp_path / "e.npy", workers=0)
    assert len(list((tmp_path / "e.npy.parts").glob("*.safetensors"))) == 3


def test_what_is_there_is_not_made_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    before = out.stat().st_mtime_ns
    assert embed(folder, encoder(), out, workers=0) == out
    assert out.stat().st_mtime_ns == before
    assert "e.parquet is there already" in capsys.readouterr().err
    other = encoder()
    next(other.backbone.parameters()).data[0] += 1e-3
    for bad in ((folder / "class0", encoder()), (folder, encoder(40)), (folder, other)):
        with pytest.raises(InputError, match=r"^out: .*e.parquet exists, made of other weights or images \(test_res"):
            embed(*bad, out, workers=0)
    (tmp_path / "e.json").unlink()
    with pytest.raises(InputError, match=r"^out: .*e.parquet exists, and .*e.json does not say of what; remove it"):
        embed(folder, encoder(), out, workers=0)


def test_what_was_begun_of_others_is_refused_and_what_is_in_the_way(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(InputError, match=r"^out: .*e.json exists, and .*e.npy would have a file of that name; choose"):
        embed(folder, encoder(), tmp_path / "e.npy", workers=0)
    assert os.listdir(tmp_path) == ["e.json"]
    broken = encoder()
    next(broken.backbone.parameters()).data[0] = torch.nan
    with pytest.raises(InputError, match=r"^encoder: the embedding of .*0000.png has values that are not finite"):
        embed(folder, broken, tmp_path / "f.npy", workers=0)
    with pytest.raises(InputError, match=r"f.npy.parts exists, made of other .*; remove .*f.npy.parts or choose"):
        embed(folder, encoder(), tmp_path / "f.npy", workers=0)
    assert sorted(os.listdir(tmp_path)) == ["e.json", "f.npy.parts"]


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
        with pytest.raises(
            InputError, match=r"^out: the embeddings and their parts need 0.0 GiB, and 0.0 GiB are free"
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
        with pytest.raises(InputError, match=r"^out: .*whole cannot be written \(No space left on device"):
            embed(folder, encoder(), tmp_path / "e.parquet", workers=0)
    assert "e.parquet" not in os.listdir(tmp_path)
    assert len(read(embed(folder, encoder(), tmp_path / "e.parquet", workers=0))[0]) == 30
    assert sorted(os.listdir(tmp_path)) == ["e.json", "e.parquet"]
