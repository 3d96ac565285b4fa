"""The served report: reachable from this machine only, rendered again when a run changes."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mec.errors import InputError
from mec.report import page
from mec.report.record import Missing
from mec.report.watch import HOST, LiveReport, create_server, watch
from tests.report.runs import make_views, metrics_row, write_metrics, write_run


@pytest.fixture
def slow_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the slow parts. Lists their calls in order."""
    calls: list[str] = []
    for name, content in (("analyze_features", Missing("analyzed")), ("embed_views", make_views())):
        monkeypatch.setattr(page, name, lambda *_, name=name, content=content: (calls.append(name), content)[1])
    monkeypatch.setattr(page, "load_gallery", lambda _: ([], []))
    return calls


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", num_steps=20, finished=False)


@pytest.fixture
def port(run: Path, slow_calls: list[str]) -> Iterator[int]:
    with create_server(LiveReport([run], None, 10), None) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, path: str = "/", host: str | None = "localhost", method: str = "GET") -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_page_contains_its_revision(port: int) -> None:
    status, html, headers = get(port, host=f"127.0.0.1:{port}")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"connect-src 'self'" in html
    revision = json.loads(get(port, "/revision")[1])["revision"]
    assert f'"revision": "{revision}"' in html.decode()


def test_other_hosts_paths_and_methods_are_refused(port: int) -> None:
    for host in (f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "[", "", None):
        assert get(port, host=host)[0] == 403
        assert get(port, "/revision", host=host)[0] == 403
    for path in ("/recipe.yaml", "/../recipe.yaml", "/revision/", "/?", "/encoder.safetensors", "*"):
        assert get(port, path)[0] == 404
    for method in ("POST", "PUT", "OPTIONS"):
        assert get(port, method=method)[0] == 501


def test_page_is_rendered_again_only_when_a_file_changes(port: int, run: Path, slow_calls: list[str]) -> None:
    first, second = get(port)[1], get(port)[1]
    assert first == second
    assert b"20 steps" in first
    before = get(port, "/revision")[1]
    write_metrics(run, [metrics_row(step) for step in range(30)])
    assert get(port, "/revision")[1] != before
    assert b"30 steps" in get(port)[1]
    assert slow_calls == ["embed_views"]  # not repeated while the run trains


def test_features_are_analyzed_once_the_encoder_is_written(port: int, run: Path, slow_calls: list[str]) -> None:
    assert b"as soon as its encoder is written" in get(port)[1]
    (run / "encoder.safetensors").write_bytes(b"")
    html = get(port)[1]
    assert b"as soon as its encoder is written" not in html
    assert b"analyzed" in html
    (run / "probes.csv").write_text("epoch,step,knn_top1\n")
    get(port)
    assert slow_calls == ["embed_views", "analyze_features", "embed_views"]


def test_a_deleted_run_is_an_error_page(port: int, run: Path) -> None:
    (run / "recipe.yaml").unlink()
    (run / "results.jsonl").unlink()
    status, text, _ = get(port)
    assert status == 503
    assert b"contains no run" in text


def test_taken_and_invalid_ports_are_errors(run: Path, slow_calls: list[str]) -> None:
    live = LiveReport([run], None, 10)
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port: {number} is taken"):
            create_server(live, number)
    with create_server(live, None) as first, create_server(live, None) as second:
        assert first.server_port != second.server_port
        assert first.server_address[0] == "127.0.0.1"
    for wrong in (0, 70_000, -1):
        with pytest.raises(InputError, match="port: expected 1 to 65535"):
            create_server(live, wrong)


def test_address_is_printed_and_ctrl_c_ends_normally(
    run: Path, slow_calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupt)
    watch([run])
    assert "http://localhost:" in capsys.readouterr().err
    with pytest.raises(InputError, match="contains no run"):
        watch([run.parent])
