"""Feature extraction by several processes: each image once, in order, and the figures of one process."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from mec.cli.main import main
from mec.data import open_dataset
from mec.distributed import get_rank, process_group
from mec.embedding.embed import embed
from mec.errors import InputError
from mec.evaluate.features import features_of
from mec.evaluate.task import open_task
from mec.models.encoder import create_encoder
from mec.models.io import save_encoder, untrained
from mec.pretraining import OnlineProbe
from mec.pretraining.online_probe import MAX_IMAGES
from tests.evaluate.launched import launch

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
BATCH = 8
ONE_SIZE, SEVERAL = [(28, 28)], [(120, 90), (90, 120), (100, 100)]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("task", "features", "unfinished"):
        monkeypatch.setattr(importlib.import_module(f"mec.evaluate.{name}"), "BATCH", BATCH)
    monkeypatch.setattr("mec.distributed.ROWS", 16)


def photographs(folder: Path, count: int, sizes: list[tuple[int, int]], broken: tuple[int, ...] = ()) -> Path:
    """Two classes, in sub-folders; numbers ``broken`` cannot be read."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number // (count // 2)] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC).save(path)
        if number in broken:
            path.write_bytes(b"broken")
    return folder


def encoder() -> Any:
    return untrained(create_encoder("test_resnet", 32))


def in_several(count: int, work: Any, folder: Path) -> list[Any]:
    """What ``work()`` gives in each of the processes."""

    def together_at_it(number: int) -> Any:
        with process_group():
            return work()

    ended = launch(count, together_at_it, folder)
    assert [e.status for e in ended] == [0] * count, ended[0].err
    return ended


@pytest.mark.parametrize("sizes", [ONE_SIZE, SEVERAL])
@pytest.mark.parametrize("count", [2, 3])
def test_features_are_those_of_one_process(tmp_path: Path, sizes: list[Any], count: int) -> None:
    """Broken ones too, of which all may be in one share; what is decoded into memory is batched anew without them."""
    data = photographs(tmp_path / "images", 120, sizes, broken=(3, 4, 5))

    def work() -> Any:
        task = open_task(data, of, workers=0)
        found = [(f.name, f.train, f.train_labels, f.test, f.test_labels) for f in features_of(task)]
        return [[part.numpy() if isinstance(part, torch.Tensor) else part for part in row] for row in found]

    of = create_encoder("test_resnet", 32)
    expected = work()
    assert [row[0] for row in expected] == ["encoder", "untrained", "raw pixels"]
    first, *others = in_several(count, work, tmp_path / "out")
    assert [e.value for e in others] == [[]] * (count - 1)
    assert sum(len(e.err) for e in others) == 0
    assert first.err.count("skipped") == (len(expected) if sizes == SEVERAL else 1)
    for row, wanted in zip(first.value, expected, strict=True):
        assert row[0] == wanted[0]
        for found, part in zip(row[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(found, part, rtol=1e-4, atol=1e-5 * np.abs(part).max())
    # against the images themselves: raw pixels of the readable ones, in the order of the source
    if sizes == ONE_SIZE:
        images = open_dataset(data, "train")
        kept = [i for i in range(len(images)) if int(Path(images.title(i)).stem) not in (3, 4, 5)]
        pixels = np.stack([np.array(Image.open(images.title(i))).transpose(2, 0, 1).ravel() for i in kept])
        np.testing.assert_allclose(first.value[2][1], pixels / 255, atol=1e-6)


@pytest.mark.parametrize("sizes", [ONE_SIZE, SEVERAL])
def test_random_crops_are_the_same(tmp_path: Path, sizes: list[Any]) -> None:
    data = photographs(tmp_path / "images", 50, sizes)
    of = encoder()

    def work() -> Any:
        (f,) = features_of(open_task(data, of, workers=0), crops_seed=3) if get_rank() == 0 else _none(data, of)
        return f and (f.train.numpy(), f.train_labels.numpy())

    wanted = work()
    first = in_several(3, work, tmp_path / "out")[0].value
    np.testing.assert_allclose(first[0], wanted[0], rtol=1e-4, atol=1e-5)
    assert first[1].tolist() == wanted[1].tolist() == open_dataset(data, "train").labels.tolist()


def _none(data: Path, of: Any) -> list[None]:
    assert list(features_of(open_task(data, of, workers=0), crops_seed=3)) == []
    return [None]


@pytest.mark.parametrize("count", [2, 3])
def test_the_file_is_the_same_to_the_byte(tmp_path: Path, count: int) -> None:
    data = photographs(tmp_path / "images", 100, SEVERAL, broken=(0, 57, 58, 59, 60))  # four at the start of a share
    of = encoder()
    embed(data, of, tmp_path / "one.parquet", workers=0)
    ended = in_several(count, lambda: embed(data, of, tmp_path / "several.parquet", workers=0), tmp_path / "out")
    for end in (".parquet", ".skipped.csv", ".json"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"several{end}").read_bytes()
    assert not (tmp_path / "several.parquet.parts").exists()
    assert "skipped 5 that could not be read; the first: " in ended[0].err
    assert "".join(e.err for e in ended[1:]) == ""
    # with all labels and paths: a second call finds the file, and nothing is made again
    again = in_several(2, lambda: embed(data, of, tmp_path / "several.parquet", workers=0), tmp_path / "out")
    assert again[0].err.count("is there already") == 1


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 1), (1, 3)])
def test_another_number_of_processes_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    """Killed when some have written parts and others have not; an image that was broken is mended meanwhile."""
    data = photographs(tmp_path / "images", 150, SEVERAL, broken=(2, 77))
    of, out = encoder(), tmp_path / "killed.parquet"
    monkeypatch.setattr("mec.embedding.writer.PART", 16)
    monkeypatch.setattr(importlib.import_module("mec.embedding.embed"), "SAMPLED", 1)
    making = importlib.import_module("mec.embedding.writer").Making
    written = making._written

    def dies(self: Any, part: Any) -> Any:
        part = written(self, part)
        if self.serial >= 2 - get_rank() % 2:
            os._exit(9)
        return part

    def killed(number: int) -> None:
        making._written = dies
        with process_group():
            embed(data, of, out, workers=0)

    assert [e.status for e in launch(before, killed, tmp_path / "out")] == [9] * before
    parts = list((tmp_path / "killed.parquet.parts").glob("*.safetensors"))
    assert len(parts) == {1: 2, 2: 3, 3: 5}[before]
    photographs(tmp_path / "images", 150, SEVERAL, broken=(77,))
    photographs(tmp_path / "mended", 150, SEVERAL, broken=(77,))
    ended = in_several(after, lambda: embed(data, of, out, workers=0), tmp_path / "out")
    assert f"going on: {16 * len(parts)} of 150 images are there" in ended[0].err
    embed(data, of, tmp_path / "one.parquet", workers=0)
    paths, found = (pq.read_table(out)[name] for name in ("path", "embedding"))
    assert paths.to_pylist() == [str(p) for p in sorted(data.rglob("*.png")) if p.stem != "077"]
    wanted = pq.read_table(tmp_path / "one.parquet")["embedding"]
    # the mended one is a batch of its own
    np.testing.assert_allclose(np.stack(found.to_numpy()), np.stack(wanted.to_numpy()), rtol=1e-4, atol=1e-5)


def test_one_table_one_line_and_the_figures_of_one_process(tmp_path: Path) -> None:
    save_encoder(create_encoder("test_resnet", 16, 1), tmp_path / "of")

    def work(number: int) -> int:
        words = f"evaluate knn digits --encoder {tmp_path / 'of'} --k [5,20] --workers 0 --out {tmp_path / out}"
        return main(words.split())

    out = "1"
    assert launch(1, work, tmp_path / "one", lambda *_: {})[0].value == 0
    out = "3"
    ended = launch(3, work, tmp_path / "three")
    assert [e.value for e in ended] == [0, 0, 0], ended[0].err
    assert ended[0].out.count("untrained") == 1
    assert ended[1].out + ended[2].out + ended[1].err + ended[2].err == ""
    one, several = ([json.loads(s) for s in (tmp_path / n / "results.jsonl").open()] for n in ("1", "3"))
    assert len(several) == 1
    for name, row in one[0]["figures"].items():
        assert several[0]["figures"][name] == pytest.approx(row, abs=1.1 / 450)  # rounding may turn one of 450


@pytest.mark.parametrize(
    "command", ["evaluate knn {} --encoder test_resnet", "embed {} --encoder test_resnet --out {}"]
)
def test_too_many_broken_in_one_share_are_one_line(tmp_path: Path, command: str) -> None:
    """7 of the last of three shares of 120: more than a twentieth of all."""
    data = photographs(tmp_path / "images", 120, SEVERAL, broken=tuple(range(110, 117)))
    words = command.format(data, tmp_path / "e.parquet").split()
    ended = launch(3, lambda _: main([*words, "--workers", "0"]), tmp_path / "out")
    assert [e.value for e in ended] == [2, 2, 2]
    lines = [line for e in ended for line in e.err.splitlines() if line.startswith("mec: ")]
    assert len(lines) == 1
    assert lines[0] in ended[0].err
    assert "cannot be read, expected at most 0.05 of all; the first: " in lines[0]
    assert not (tmp_path / "e.parquet").exists()


def test_processes_that_see_other_things_are_refused(tmp_path: Path) -> None:
    data = photographs(tmp_path / "images", 30, ONE_SIZE)
    other = shutil.copytree(data, tmp_path / "others")

    def work(number: int) -> Any:
        errors = []
        for images, out in ((data if number else other, "e.parquet"), (data, f"{number}/e.parquet")):
            try:
                with process_group():
                    embed(images, encoder(), tmp_path / out, workers=0)
            except InputError as error:
                errors.append(str(error))
        return errors

    for ended in launch(2, work, tmp_path / "out"):
        assert ended.value[0].startswith(f"data, encoder: {other} or test_resnet")
        assert "e.parquet.parts is not the same for all processes; take a disk that all of them see" in ended.value[1]


def test_the_probe_beside_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_IMAGES, "train", 300)
    monkeypatch.setitem(MAX_IMAGES, "test", 100)
    of = create_encoder("test_resnet", 16, 1)
    wanted = OnlineProbe("digits", workers=0).evaluate(of, torch.device("cpu"))

    def work(number: int) -> Any:
        dist.init_process_group("gloo", rank=number, world_size=2)
        probe = OnlineProbe("digits", workers=0)
        figures = [probe.evaluate(of, torch.device("cpu")) for _ in range(2)]
        return figures, sum(len(dataset) for dataset in probe.datasets), probe.sizes

    ended = launch(2, work, tmp_path)
    for figures, _, sizes in (e.value for e in ended):
        assert figures == [pytest.approx(wanted, abs=0.0101)] * 2  # one of 100
        assert sizes == pytest.approx([300, 100], abs=5)
    assert sum(images for _, images, _ in (e.value for e in ended)) == sum(ended[0].value[2])


def test_torchrun(tmp_path: Path) -> None:
    save_encoder(create_encoder("test_resnet", 16, 1), tmp_path / "of")
    command = (
        f"-m torch.distributed.run --standalone --nproc-per-node 2 -m mec embed digits --encoder {tmp_path / 'of'}"
    )
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command.split(), "--out", str(tmp_path / "e.parquet"), "--workers", "0"]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=environ, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / "e.parquet")]
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["path"].to_pylist() == [f"digits[{i}]" for n in (1347, 450) for i in range(n)]
