"""The report as it is served: to this machine alone, anew when a run's files change, and nothing but the page."""

import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mec.errors import InputError
from mec.report import page
from mec.report.schema import Missing
from mec.report.watch import ADDRESS, Live, server_of, watch
from tests.report import folders
from tests.report.folders import metric, write_metrics, write_run


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What took long, in order."""
    asked: list[str] = []

    def learned(folder: Path, *_: Any) -> Missing:
        asked.append("learned")
        return Missing("seen")

    def views(folder: Path, *_: Any) -> Any:
        asked.append("views")
        return folders.views()

    monkeypatch.setattr(page, "learned", learned)
    for module in (page, sys.modules[watch.__module__]):
        monkeypatch.setattr(module, "views", views)
        monkeypatch.setattr(module, "gallery", lambda _: [])
    return asked


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", steps=20, ended=False)


@pytest.fixture
def port(run: Path, looks: list[str]) -> Iterator[int]:
    with server_of(Live([run], None, 10, lambda _: None), None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, path: str = "/", host: str | None = "localhost", method: str = "GET") -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_page_and_its_stamp(port: int) -> None:
    status, html, headers = get(port, host=f"127.0.0.1:{port}")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"connect-src 'self'" in html
    stamp = json.loads(get(port, "/changed")[1])["stamp"]
    assert f'"stamp": "{stamp}"' in html.decode()


def test_only_this_machine_is_answered_and_only_the_page(port: int) -> None:
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "[",
        "",
        None,
    ):
        assert get(port, host=host)[0] == 403
        assert get(port, "/changed", host=host)[0] == 403
    for path in ("/recipe.yaml", "/../recipe.yaml", "/changed/", "/?", "/encoder.safetensors", "*"):
        assert get(port, path)[0] == 404
    for method in ("POST", "PUT", "OPTIONS"):
        assert get(port, method=method)[0] == 501


def test_nobody_else_can_reach_it(run: Path, looks: list[str]) -> None:
    with server_of(Live([run], None, 10, lambda _: None), None) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_page_is_made_anew_when_a_file_changes_and_not_before(port: int, run: Path, looks: list[str]) -> None:
    first, again = get(port)[1], get(port)[1]
    assert first == again
    assert b"20 steps" in first
    before = get(port, "/changed")[1]
    write_metrics(run, [metric(step) for step in range(30)])
    assert get(port, "/changed")[1] != before
    assert b"30 steps" in get(port)[1]
    assert looks == ["views"]  # nothing is looked at twice while the run trains


def test_encoder_is_looked_through_when_it_is_there(port: int, run: Path, looks: list[str]) -> None:
    assert b"as soon as its encoder is written" in get(port)[1]
    (run / "encoder.safetensors").write_bytes(b"")
    html = get(port)[1]
    assert b"as soon as its encoder is written" not in html
    assert b"seen" in html
    (run / "probes.csv").write_text("epoch,step,kNN\n")
    get(port)
    assert looks == ["views", "learned", "views"]


def test_run_that_is_gone_is_told(port: int, run: Path) -> None:
    (run / "recipe.yaml").unlink()
    (run / "results.jsonl").unlink()
    status, text, _ = get(port)
    assert status == 503
    assert b"holds no run" in text


def test_ports(run: Path, looks: list[str]) -> None:
    live = Live([run], None, 10, lambda _: None)
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port: {number} is taken"):
            server_of(live, number)
    with server_of(live, None) as first, server_of(live, None) as second:
        assert first.server_port != second.server_port
    for wrong in (0, 70_000, -1):
        with pytest.raises(InputError, match="port: expected 1 to 65535"):
            server_of(live, wrong)


def test_address_is_told_and_ctrl_c_is_a_normal_end(
    run: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupted)
    console = Console(record=True, width=200)
    watch([run], console=console)
    assert "http://localhost:" in console.export_text()
    with pytest.raises(InputError, match="holds no run"):
        watch([run.parent])
