import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mec.data import open_dataset
from mec.errors import InputError
from tests.data.datasets.shard_files import (
    IMAGES,
    SIZES,
    TOTAL,
    Members,
    class_name,
    corrupt_titles,
    indices_of,
    load_epoch,
    sample_members,
    views_of,
    write_shards,
    write_tar,
)
from tests.data.datasets.shard_server import Server


@pytest.fixture(params=[True])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("mec.data.datasets.tar_reader.RETRY_DELAY", 0.01)
    server = Server(ranges=request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def serve(server: Server, folder: Path) -> str:
    """Serve the four shards of ``write_shards`` and return their URL pattern."""
    server.files = {f.name: f.read_bytes() for f in write_shards(folder).iterdir()}
    return server.url("x-{0000..0003}.tar")


def middle_of_image(content: bytes, number: int) -> int:
    """Return the position of the middle of the image of sample ``number`` in a shard."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        (position,) = [m.offset_data + m.size // 2 for m in tar if m.name == f"{number:04}.jpg"]
    return position


def serve_large(server: Server, tmp_path: Path, breaks_in: int) -> Members:
    """Serve a shard of 20 images of 200 kB, whose connection always breaks in one of them, and an intact shard.

    The images are large because aiohttp drops about 400 kB that it has received before a break.
    """
    members = [(f"{i:04}.jpg", IMAGES[i] + bytes(200_000)) for i in range(20)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    server.files["b.tar"] = write_tar(tmp_path / "b.tar", sample_members(range(20, 24), labeled=False)).read_bytes()
    server.files["sizes.json"] = b'{"a.tar": 20, "b.tar": 4}'
    server.breaks["a.tar"] = (middle_of_image(server.files["a.tar"], breaks_in), 1000)
    return members


with_and_without_ranges = pytest.mark.parametrize("server", [True, False], ids=["ranges", "no-ranges"], indirect=True)


@pytest.mark.parametrize(("server", "workers"), [(True, 2), (False, 0)], indirect=["server"])
def test_remote_shards_train_like_files(
    server: Server, tmp_path: Path, expected: dict[int, torch.Tensor], workers: int
) -> None:
    dataset = open_dataset(serve(server, tmp_path))
    assert [dataset.classes[i] for i in dataset.labels] == [class_name(i) for i in range(TOTAL)]
    assert [dataset.load(i) for i in range(TOTAL)] == IMAGES
    (batches,) = load_epoch(dataset, workers=workers, epoch=2, batch_size=2)
    assert sorted(indices_of(batches)) == list(range(TOTAL))
    for i, views in views_of(batches).items():
        assert torch.equal(views, expected[i])


def test_labels_of_remote_shards_are_cached_until_the_shard_changes(server: Server, tmp_path: Path) -> None:
    url = serve(server, tmp_path)
    open_dataset(url)
    before = len(server.requests)
    assert len(open_dataset(url)) == TOTAL
    # one HEAD request per shard, for its size and date
    assert len(server.requests) - before == len(SIZES)
    size = len(server.files["x-0001.tar"])
    server.files["x-0001.tar"] = write_tar(tmp_path / "x-0001.tar", sample_members(range(2))).read_bytes()
    assert len(server.files["x-0001.tar"]) == size
    server.date += 60
    assert len(open_dataset(url)) == TOTAL + 1


def test_sizes_json_of_remote_shards(server: Server, tmp_path: Path) -> None:
    url = serve(server, tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    server.files["sizes.json"] = json.dumps(counts).encode()
    assert len(open_dataset(url, "pretrain")) == TOTAL
    assert set(server.requests) == {"sizes.json"}


@with_and_without_ranges
def test_shard_larger_than_a_block(server: Server, tmp_path: Path) -> None:
    """fsspec requests ranges of 5 MB, which the server without range requests does not support."""
    arrays = [np.random.default_rng(i).integers(0, 256, (1000, 1000), dtype=np.uint8) for i in range(7)]
    members = []
    for i, array in enumerate(arrays):
        file = io.BytesIO()
        np.save(file, array)
        members.append((f"{i}.npy", file.getvalue()))
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    dataset = open_dataset(server.url("a.tar"))
    assert [dataset.load(i) for i in range(7)] == [content for _, content in members]
    assert sum(map(len, dataset.skipped.values())) == 0


@with_and_without_ranges
def test_slow_reader_does_not_time_out(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.datasets.tar_reader.READ_TIMEOUT", 0.5)
    members = [(f"{i}.jpg", IMAGES[i] + bytes(2**21)) for i in range(7)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    dataset = open_dataset(server.url("a.tar"))
    before = len(server.requests)
    for i in range(7):
        assert dataset.load(i) == members[i][1]
        time.sleep(0.8 if i == 1 else 0)
    # the shard is opened once
    assert len(server.requests) - before <= (6 if server.ranges else 4)


@with_and_without_ranges
def test_broken_connection_is_retried(server: Server, tmp_path: Path) -> None:
    url = serve(server, tmp_path)
    position = middle_of_image(server.files["x-0002.tar"], 15)
    server.breaks["x-0002.tar"] = (position, 1)
    server.unavailable = {"x-0001.tar": 4}
    dataset = open_dataset(url)
    assert (len(dataset), sum(map(len, dataset.skipped.values())), server.breaks["x-0002.tar"]) == (
        TOTAL,
        0,
        (position, 0),
    )
    server.breaks["x-0002.tar"] = (position, 2)
    assert [dataset.load(i) for i in range(TOTAL)] == IMAGES
    assert server.breaks["x-0002.tar"] == (position, 0)


@with_and_without_ranges
def test_connection_that_always_breaks_gives_the_images_before(server: Server, tmp_path: Path) -> None:
    members = serve_large(server, tmp_path, breaks_in=14)
    dataset = open_dataset(server.url("{a,b}.tar"))
    assert sum(map(len, dataset.skipped.values())) == 1
    num_before = len(dataset) - 4
    assert 9 <= num_before <= 14
    assert [dataset.load(i) for i in range(9)] == [content for _, content in members[:9]]
    assert [dataset.load(num_before + i) for i in range(4)] == IMAGES[20:24]


def test_training_continues_over_a_connection_that_always_breaks(server: Server, tmp_path: Path) -> None:
    serve_large(server, tmp_path, breaks_in=14)
    dataset = open_dataset(server.url("{a,b}.tar"), "pretrain")
    (batches,) = load_epoch(dataset, batch_size=2)
    assert sorted(indices_of(batches)) == list(range(24))
    assert all(len(b.images) == 2 for b in batches)
    corrupt = {title.rpartition(" ")[2] for title in corrupt_titles(batches)}
    assert {str(i) for i in range(14, 20)} <= corrupt <= {str(i) for i in range(9, 20)}


def test_refused_requests_are_not_retried(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.datasets.tar_reader.RETRY_DELAY", 60)
    url = serve(server, tmp_path)
    del server.files["x-0003.tar"]
    with pytest.raises(InputError, match=r"cannot read .*x-0003\.tar \(404, message='Not Found'") as raised:
        open_dataset(url)
    assert "\n" not in str(raised.value)
    server.key = "secret"
    with pytest.raises(InputError, match=r"cannot read .*x-0000\.tar \(403"):
        open_dataset(url)
    monkeypatch.setattr("mec.data.datasets.tar_reader.RETRY_DELAY", 0.01)
    with pytest.raises(InputError, match=r"cannot read .*a\.tar \(.*[Cc]onnect"):
        open_dataset("http://127.0.0.1:9/a.tar")


@pytest.mark.parametrize("position", [0, 4000])
def test_stalled_server_times_out(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    monkeypatch.setattr("mec.data.datasets.tar_reader.READ_TIMEOUT", 0.1)
    url = serve(server, tmp_path)
    server.stalls = {"x-0000.tar": position}
    start = time.monotonic()
    if position == 0:
        with pytest.raises(InputError, match=r"cannot read .*x-0000\.tar \(.*[Tt]ime"):
            open_dataset(url)
    else:
        dataset = open_dataset(url)
        assert sum(map(len, dataset.skipped.values())) == 1
        assert dataset.load(0) == IMAGES[0]
    assert time.monotonic() - start < 60


def test_fsspec_settings_of_the_user_apply(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    url = serve(server, tmp_path)
    server.key = "secret"
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": {"X-Key": "secret"}}})
    assert len(open_dataset(url)) == TOTAL
