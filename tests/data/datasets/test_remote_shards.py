import http.server
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mec.data import PixelFormat, TwoViews, open_dataset
from mec.data.loaders import training_loader, training_sampler
from mec.errors import InputError
from tests.data.datasets.shard_files import (
    CPU,
    IMAGES,
    SIZES,
    TOTAL,
    Members,
    an_epoch,
    lost_of,
    numbers_of,
    samples,
    species,
    views_of,
    write_shards,
    write_tar,
)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``.

    cuts: at which byte of a file the connection is closed, and how many times. silent: at which byte it stalls.
    busy: how many times a file is refused for now. key: what a client must send. hold: lets the stalled ones go.
    """

    daemon_threads = True

    def __init__(self, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = ranges
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, tuple[int, int]] = {}
        self.silent: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        self.key: str | None = None
        self.hold = threading.Event()
        self.date = 10**9
        self.asked: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, *_: object) -> None:
        """The client went away."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, name = self.server, self.path.lstrip("/")
        server.asked.append(name)
        if server.silent.get(name) == 0:
            server.hold.wait(30)
            return
        if name not in server.files or (server.key and self.headers.get("X-Key") != server.key):
            self.send_error(404 if name not in server.files else 403)
            return
        if server.busy.get(name, 0) > 0:
            server.busy[name] -= 1
            self.send_error(503)
            return
        content = server.files[name]
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        if asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Last-Modified", self.date_time_string(server.date))
        self.end_headers()
        if not body:
            return
        at, times = server.cuts.get(name, (0, 0))
        if times and start <= at < end:
            server.cuts[name] = (at, times - 1)
            end = at
        if name in server.silent and start <= server.silent[name] < end:
            self.wfile.write(content[start : server.silent[name]])
            server.hold.wait(30)
            return
        self.wfile.write(content[start:end])


@pytest.fixture(params=[True, False], ids=["ranges", "whole"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("mec.data.datasets.webdataset.PAUSE", 0.01)
    server = Server(ranges=request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.hold.set()
    server.shutdown()
    server.server_close()
    thread.join()


def serve(server: Server, folder: Path) -> str:
    """The pattern of the four shards on the server."""
    server.files = {f.name: f.read_bytes() for f in write_shards(folder).iterdir()}
    return server.url("x-{0000..0003}.tar")


def middle_of(content: bytes, number: int) -> int:
    """A byte within the image of sample ``number``."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        (at,) = [m.offset_data + m.size // 2 for m in tar if m.name == f"{number:04}.jpg"]
    return at


def serve_large(server: Server, tmp_path: Path, breaks_in: int) -> Members:
    """A shard of 20 images of 200 kB, whose connection breaks within one of them, and a whole shard.

    aiohttp keeps to itself what it has received last before a break: some 400 kB.
    """
    members = [(f"{i:04}.jpg", IMAGES[i] + bytes(200_000)) for i in range(20)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    server.files["b.tar"] = write_tar(tmp_path / "b.tar", samples(range(20, 24), labeled=False)).read_bytes()
    server.files["sizes.json"] = b'{"a.tar": 20, "b.tar": 4}'
    server.cuts["a.tar"] = (middle_of(server.files["a.tar"], breaks_in), 1000)
    return members


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards(server: Server, tmp_path: Path, expected: dict[int, torch.Tensor], workers: int) -> None:
    images = open_dataset(serve(server, tmp_path))
    assert [images.classes[i] for i in images.labels] == [species(i) for i in range(TOTAL)]
    assert [images.load(i) for i in range(TOTAL)] == IMAGES
    (batches,) = an_epoch(images, workers=workers, epoch=2, batch=2)
    assert sorted(numbers_of(batches)) == list(range(TOTAL))
    for i, views in views_of(batches).items():
        assert torch.equal(views, expected[i])


def test_remote_contents_are_kept_until_the_shard_changes(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    open_dataset(source)
    before = len(server.asked)
    assert len(open_dataset(source)) == TOTAL
    # what the size and date are asked with, HEAD, for each
    assert len(server.asked) - before == len(SIZES)
    size = len(server.files["x-0001.tar"])
    server.files["x-0001.tar"] = write_tar(tmp_path / "x-0001.tar", samples(range(2))).read_bytes()
    assert len(server.files["x-0001.tar"]) == size
    server.date += 60
    assert len(open_dataset(source)) == TOTAL + 1


def test_stated_counts_of_remote_shards(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    counts = {f"x-{shard:04}.tar": size for shard, size in enumerate(SIZES)}
    server.files["sizes.json"] = json.dumps(counts).encode()
    assert len(open_dataset(source, "pretrain")) == TOTAL
    assert set(server.asked) == {"sizes.json"}


def test_a_shard_larger_than_a_block(server: Server, tmp_path: Path) -> None:
    """fsspec asks for 5 MB at a time, which a server without ranges does not give."""
    arrays = [np.random.default_rng(i).integers(0, 256, (1000, 1000), dtype=np.uint8) for i in range(7)]
    members = []
    for i, array in enumerate(arrays):
        file = io.BytesIO()
        np.save(file, array)
        members.append((f"{i}.npy", file.getvalue()))
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    images = open_dataset(server.url("a.tar"))
    assert [images.load(i) for i in range(7)] == [content for _, content in members]
    assert images.ignored_files == 0


def test_a_slow_reader_is_no_silent_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.datasets.tar_reader.SILENCE", 1.0)
    members = [(f"{i}.jpg", IMAGES[i] + bytes(2**21)) for i in range(7)]
    server.files["a.tar"] = write_tar(tmp_path / "a.tar", members).read_bytes()
    images = open_dataset(server.url("a.tar"))
    before = len(server.asked)
    for i in range(7):
        assert images.load(i) == members[i][1]
        time.sleep(1.3 if i == 1 else 0)
    # none is opened again
    assert len(server.asked) - before <= (6 if server.ranges else 4)


def test_a_connection_that_breaks_once_is_made_again(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    at = middle_of(server.files["x-0002.tar"], 15)
    server.cuts["x-0002.tar"] = (at, 1)
    images = open_dataset(source)
    assert (len(images), images.ignored_files, server.cuts["x-0002.tar"]) == (TOTAL, 0, (at, 0))
    server.cuts["x-0002.tar"] = (at, 2)
    assert [images.load(i) for i in range(TOTAL)] == IMAGES
    assert server.cuts["x-0002.tar"] == (at, 0)


def test_a_server_that_is_busy_is_asked_again(server: Server, tmp_path: Path) -> None:
    source = serve(server, tmp_path)
    server.busy = {"x-0001.tar": 4}
    assert len(open_dataset(source)) == TOTAL


def test_a_connection_that_always_breaks_gives_what_comes_before(server: Server, tmp_path: Path) -> None:
    members = serve_large(server, tmp_path, breaks_in=14)
    images = open_dataset(server.url("{a,b}.tar"))
    assert images.ignored_files == 1
    before = len(images) - 4
    assert 9 <= before <= 14
    assert [images.load(i) for i in range(9)] == [content for _, content in members[:9]]
    assert [images.load(before + i) for i in range(4)] == IMAGES[20:24]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_over_a_connection_that_always_breaks(server: Server, tmp_path: Path, workers: int) -> None:
    serve_large(server, tmp_path, breaks_in=14)
    images = open_dataset(server.url("{a,b}.tar"), "pretrain")
    sampler = training_sampler(images, 2, seed=0)
    loader = training_loader(images, TwoViews(16, seed=3), sampler, PixelFormat(), CPU, workers)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert sorted(numbers_of(batches)) == list(range(24))
        assert all(len(b.images) == 2 for b in batches)
        lost = {title.rpartition(" ")[2] for title in lost_of(batches)}
        assert {str(i) for i in range(14, 20)} <= lost <= {str(i) for i in range(9, 20)}


def test_what_a_server_lacks_is_said_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.datasets.webdataset.PAUSE", 60)
    source = serve(server, tmp_path)
    del server.files["x-0003.tar"]
    with pytest.raises(InputError, match=r"x-0003\.tar cannot be read \(404, message='Not FrameObjects'") as raised:
        open_dataset(source)
    assert "\n" not in str(raised.value)
    server.key = "secret"
    with pytest.raises(InputError, match=r"x-0000\.tar cannot be read \(403"):
        open_dataset(source)


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mec.data.datasets.webdataset.PAUSE", 0.01)
    with pytest.raises(InputError, match=r"a\.tar cannot be read \(.*[Cc]onnect"):
        open_dataset("http://127.0.0.1:9/a.tar")


@pytest.mark.parametrize("at", [0, 4000])
def test_a_server_that_falls_silent_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr("mec.data.datasets.tar_reader.SILENCE", 0.1)
    source = serve(server, tmp_path)
    server.silent = {"x-0000.tar": at}
    begun = time.monotonic()
    if at == 0:
        with pytest.raises(InputError, match=r"x-0000\.tar cannot be read \(.*[Tt]ime"):
            open_dataset(source)
    else:
        images = open_dataset(source)
        assert images.ignored_files == 1
        assert images.load(0) == IMAGES[0]
    assert time.monotonic() - begun < 60


def test_settings_for_fsspec_are_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    source = serve(server, tmp_path)
    server.key = "secret"
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": {"X-Key": "secret"}}})
    assert len(open_dataset(source)) == TOTAL
