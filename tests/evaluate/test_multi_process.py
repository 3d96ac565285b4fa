"""Feature extraction by several processes: each image once, in order, with the results of one process."""

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
from mec.distributed import process_group
from mec.embedding.embed import embed
from mec.embedding.parts import EmbeddingParts
from mec.errors import InputError
from mec.evaluate.task import features_of, open_task
from mec.models.encoder import create_encoder
from mec.models.io import save_encoder, untrained
from mec.pretraining import OnlineProbe
from mec.pretraining.online_probe import MAX_IMAGES
from mec.results import Result
from tests.evaluate.multi_process import launch
from tests.processes import needs_gloo

pytestmark = needs_gloo
BATCH = 8
ONE_SIZE, SEVERAL = [(28, 28)], [(120, 90), (90, 120), (100, 100)]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("embedding.extract", "embedding.parts", "evaluate.task"):
        monkeypatch.setattr(f"mec.{name}.BATCH", BATCH)
    monkeypatch.setattr("mec.distributed.ROWS_PER_MESSAGE", 16)


def photographs(folder: Path, count: int, sizes: list[tuple[int, int]], corrupt: tuple[int, ...] = ()) -> Path:
    """Write images of two classes into sub-folders; the images ``corrupt`` are unreadable."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number // (count // 2)] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(sizes[number % len(sizes)], Image.Resampling.BICUBIC).save(path)
        if number in corrupt:
            path.write_bytes(b"corrupt")
    return folder


def encoder() -> Any:
    return untrained(create_encoder("test_resnet", 32))


def in_processes(count: int, work: Any, folder: Path) -> list[Any]:
    """Run ``work()`` in several processes and return the result of each."""
    ended = launch(count, lambda rank: work(), folder)
    assert [e.status for e in ended] == [0] * count, ended[0].err
    return ended


@pytest.mark.parametrize(("sizes", "count"), [(ONE_SIZE, 2), (SEVERAL, 3)])
def test_features_equal_those_of_one_process(tmp_path: Path, sizes: list[Any], count: int) -> None:
    """All corrupt images may lie in one shard; images decoded into memory are batched again without them."""
    data = photographs(tmp_path / "images", 120, sizes, corrupt=(3, 4, 5))

    def work() -> Any:
        with process_group() as group:
            task = open_task(data, model, workers=0, group=group)
            rows = [(f.name, f.train, f.train_labels, f.test, f.test_labels) for f in features_of(task)]
        return [[field.numpy() if isinstance(field, torch.Tensor) else field for field in row] for row in rows]

    model = create_encoder("test_resnet", 32)
    expected = work()
    assert [row[0] for row in expected] == ["encoder", "untrained", "raw pixels"]
    first, *others = in_processes(count, work, tmp_path / "out")
    assert [e.value for e in others] == [[]] * (count - 1)
    assert sum(len(e.err) for e in others) == 0
    assert first.err.count("skipped") == 1
    for row, expected_row in zip(first.value, expected, strict=True):
        assert row[0] == expected_row[0]
        for actual, desired in zip(row[1:], expected_row[1:], strict=True):
            np.testing.assert_allclose(actual, desired, rtol=1e-4, atol=1e-5 * np.abs(desired).max())
    # raw pixels equal those of the readable files, in the order of the dataset
    if sizes == ONE_SIZE:
        dataset = open_dataset(data, "train")
        readable = [i for i in range(len(dataset)) if int(Path(dataset.title(i)).stem) not in (3, 4, 5)]
        pixels = np.stack([np.array(Image.open(dataset.title(i))).transpose(2, 0, 1).ravel() for i in readable])
        np.testing.assert_allclose(first.value[2][1], pixels / 255, atol=1e-6)


@pytest.mark.parametrize("sizes", [ONE_SIZE, SEVERAL])
def test_random_crops_equal_those_of_one_process(tmp_path: Path, sizes: list[Any]) -> None:
    data = photographs(tmp_path / "images", 50, sizes)
    model = encoder()

    def work() -> Any:
        with process_group() as group:
            rows = list(features_of(open_task(data, model, workers=0, group=group), crops_seed=3))
        assert len(rows) == (group.rank == 0)
        return [(f.train.numpy(), f.train_labels.numpy()) for f in rows]

    (expected,) = work()
    (first,) = in_processes(3, work, tmp_path / "out")[0].value
    np.testing.assert_allclose(first[0], expected[0], rtol=1e-4, atol=1e-5)
    assert first[1].tolist() == expected[1].tolist() == open_dataset(data, "train").labels.tolist()


def test_embedding_file_is_byte_identical_to_that_of_one_process(tmp_path: Path) -> None:
    data = photographs(tmp_path / "images", 100, SEVERAL, corrupt=(0, 57, 58, 59, 60))  # four at the start of a shard
    model = encoder()
    embed(data, model, tmp_path / "one.parquet", workers=0)
    ended = in_processes(3, lambda: embed(data, model, tmp_path / "several.parquet", workers=0), tmp_path / "out")
    for end in (".parquet", ".corrupt.csv", ".json"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"several{end}").read_bytes()
    assert not (tmp_path / "several.parquet.parts").exists()
    assert "skipped 5 corrupt images; the first: " in ended[0].err
    assert "".join(e.err for e in ended[1:]) == ""
    # a second call finds the complete file and writes nothing
    again = in_processes(2, lambda: embed(data, model, tmp_path / "several.parquet", workers=0), tmp_path / "out")
    assert again[0].err.count("exists already") == 1


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 3)])
def test_embedding_resumes_with_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    """Kill when some processes have written parts and others have not; one corrupt image is repaired in between."""
    monkeypatch.setattr(importlib.import_module("mec.embedding.embed"), "FINGERPRINT_IMAGES", 1)
    data = photographs(tmp_path / "images", 150, SEVERAL, corrupt=(2, 77))
    model, out = encoder(), tmp_path / "killed.parquet"
    write_part = EmbeddingParts._write_part

    def killed(rank: int) -> None:
        written = 0

        def write(*arguments: Any) -> None:
            nonlocal written
            write_part(*arguments)
            written += 1
            if written == 2 - rank % 2:
                os._exit(9)

        EmbeddingParts._write_part = write  # type: ignore[method-assign]  # in the forked process
        embed(data, model, out, workers=0)

    assert [e.status for e in launch(before, killed, tmp_path / "out")] == [9] * before
    parts = list((tmp_path / "killed.parquet.parts").glob("*.parquet"))
    assert len(parts) == {1: 2, 3: 5}[before]
    photographs(tmp_path / "images", 150, SEVERAL, corrupt=(77,))
    ended = in_processes(after, lambda: embed(data, model, out, workers=0), tmp_path / "out")
    # the part of the repaired image is embedded again
    assert f"resuming: {BATCH * (len(parts) - 1)} of 150 images are embedded" in ended[0].err
    embed(data, model, tmp_path / "one.parquet", workers=0)
    for end in (".parquet", ".corrupt.csv", ".json"):
        assert (tmp_path / f"one{end}").read_bytes() == (tmp_path / f"killed{end}").read_bytes()
    assert pq.read_table(out)["path"].to_pylist() == [str(p) for p in sorted(data.rglob("*.png")) if p.stem != "077"]


def test_rank_zero_prints_one_table_with_the_metrics_of_one_process(tmp_path: Path) -> None:
    save_encoder(create_encoder("test_resnet", 16, 1), tmp_path / "encoder")

    def work(number: int) -> int:
        command = f"evaluate knn digits --encoder {tmp_path / 'encoder'} --k [5,20] --workers 0 --out {tmp_path / out}"
        return main(command.split())

    out = "1"
    assert launch(1, work, tmp_path / "one", lambda *_: {})[0].value == 0
    out = "3"
    ended = launch(3, work, tmp_path / "three")
    assert [e.value for e in ended] == [0, 0, 0], ended[0].err
    assert ended[0].out.count("untrained") == 1
    assert ended[1].out + ended[2].out + ended[1].err + ended[2].err == ""
    one, several = ([json.loads(s) for s in (tmp_path / n / "results.jsonl").open()] for n in ("1", "3"))
    assert len(several) == 1
    for name, row in Result.from_dict(one[0]).rows.items():
        expected = {metric.name: metric.value for metric in row}
        # rounding may change the class of one of 450 images
        assert Result.from_dict(several[0]).values(name) == pytest.approx(expected, abs=1.1 / 450)


@pytest.mark.parametrize(
    "command", ["evaluate knn {} --encoder test_resnet", "embed {} --encoder test_resnet --out {}"]
)
def test_too_many_corrupt_images_in_one_shard_are_one_error_line(tmp_path: Path, command: str) -> None:
    """7 of 120 images, all in the last of three shards: more than a twentieth."""
    data = photographs(tmp_path / "images", 120, SEVERAL, corrupt=tuple(range(110, 117)))
    arguments = command.format(data, tmp_path / "e.parquet").split()
    ended = launch(3, lambda _: main([*arguments, "--workers", "0"]), tmp_path / "out")
    assert [e.value for e in ended] == [2, 2, 2]
    lines = [line for e in ended for line in e.err.splitlines() if line.startswith("mec: ")]
    assert len(lines) == 1
    assert lines[0] in ended[0].err
    assert "cannot be read, expected at most 0.05 of all; the first: " in lines[0]
    assert not (tmp_path / "e.parquet").exists()


def test_processes_that_see_different_data_or_folders_are_refused(tmp_path: Path) -> None:
    data = photographs(tmp_path / "images", 30, ONE_SIZE)
    copy = shutil.copytree(data, tmp_path / "copy")

    def work(number: int) -> Any:
        errors = []
        for images, out in ((data if number else copy, "e.parquet"), (data, f"{number}/e.parquet")):
            try:
                embed(images, encoder(), tmp_path / out, workers=0)
            except InputError as error:
                errors.append(str(error))
        return errors

    for ended in launch(2, work, tmp_path / "out"):
        assert ended.value[0].startswith(f"data, encoder: {copy} or test_resnet")
        assert "e.parquet.parts differs between the processes; expected a folder on a shared disk" in ended.value[1]


def test_online_probe_equals_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAX_IMAGES, "train", 300)
    monkeypatch.setitem(MAX_IMAGES, "test", 100)
    model = create_encoder("test_resnet", 16, 1)
    expected = OnlineProbe("digits", workers=0).evaluate(model, torch.device("cpu"))

    def work(number: int) -> Any:
        dist.init_process_group("gloo", rank=number, world_size=2)
        probe = OnlineProbe("digits", workers=0)
        metrics = [probe.evaluate(model, torch.device("cpu")) for _ in range(2)]
        return metrics, sum(len(dataset) for dataset in probe.datasets), probe.sizes

    ended = launch(2, work, tmp_path)
    for metrics, _, sizes in (e.value for e in ended):
        assert metrics == [pytest.approx(expected, abs=0.0101)] * 2  # one of 100 images
        assert sizes == pytest.approx([300, 100], abs=5)
    assert sum(images for _, images, _ in (e.value for e in ended)) == sum(ended[0].value[2])


@pytest.mark.slow
def test_embed_runs_under_torchrun(tmp_path: Path) -> None:
    save_encoder(create_encoder("test_resnet", 16, 1), tmp_path / "encoder")
    command = (
        f"-m torch.distributed.run --standalone --nproc-per-node 2 -m mec embed digits --encoder {tmp_path / 'encoder'}"
    )
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, *command.split(), "--out", str(tmp_path / "e.parquet"), "--workers", "0"]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=200, env=environ, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(tmp_path / "e.parquet")]
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["path"].to_pylist() == [f"digits[{i}]" for n in (1347, 450) for i in range(n)]
