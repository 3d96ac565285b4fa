"""Serve the report on localhost, and update it while a run trains."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mec.errors import InputError
from mec.models.io import WEIGHTS_FILE
from mec.report.page import MAP_IMAGES, RunContent, check_images, collect_content, render_page
from mec.report.record import RECORD_FILES, Record, read_records
from mec.results import RESULTS

logger = logging.getLogger("mec")

HOST = "127.0.0.1"  # only reachable from this machine
FIRST_PORT, NUM_PORTS = 8765, 20  # tried in turn


class LiveReport:
    """A page that is rendered again when the files of its runs change."""

    def __init__(self, runs: Sequence[str | os.PathLike[str]], data: str | None, images: int) -> None:
        self.data, self.images = data, images
        self.folders = [record.folder for record in read_records(runs)]
        self._contents: dict[Path, tuple[str, RunContent]] = {}
        self._page: tuple[str, bytes] = ("", b"")
        self._lock = threading.Lock()

    def revision(self) -> str:
        """Return an identifier that changes with the files of the runs."""
        return _revision(self.folders, RECORD_FILES)

    def page(self) -> bytes:
        """Return the page of the current revision."""
        with self._lock:
            revision = self.revision()
            if self._page[0] != revision:
                page = render_page([self._content(record) for record in read_records(self.folders)], revision)
                self._page = revision, page
            return self._page[1]

    def _content(self, record: Record) -> RunContent:
        """Collect the slow parts only when encoder or results have changed."""
        revision = _revision([record.folder], (WEIGHTS_FILE, RESULTS))
        if self._contents.get(record.folder, ("",))[0] != revision:
            content = collect_content(record, self.data, self.images // len(self.folders), only_finished=True)
            self._contents[record.folder] = revision, content
        return replace(self._contents[record.folder][1], record=record)


def _revision(folders: Iterable[Path], names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for file in [folder / name for folder in folders for name in names]:
        with suppress(OSError):
            stat = file.stat()
            digest.update(f"{file} {stat.st_mtime_ns} {stat.st_size}\n".encode(errors="replace"))
    return digest.hexdigest()[:16]


class RequestHandler(BaseHTTPRequestHandler):
    """Answers GET / with the page and GET /revision with its revision; refuses everything else."""

    live: LiveReport

    def do_GET(self) -> None:
        # DNS rebinding: a website may resolve its own name to 127.0.0.1 in order to read this page
        if self.headers.get("Host", "").lower().partition(":")[0] not in ("localhost", HOST):
            self._send(403, "text/plain", b"Only available as localhost.")
        elif self.path == "/revision":
            self._send(200, "application/json", json.dumps({"revision": self.live.revision()}).encode())
        elif self.path == "/":
            try:
                self._send(200, "text/html", self.live.page())
            except InputError as error:
                self._send(503, "text/plain", str(error).encode())
        else:
            self._send(404, "text/plain", b"Not found.")

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser has closed the page
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: an open page sends a request every few seconds."""


def create_server(live: LiveReport, port: int | None) -> ThreadingHTTPServer:
    """Create a server on ``port``; None: on the first free port."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"port: expected 1 to 65535, got {port}")
    handler = type("LiveRequestHandler", (RequestHandler,), {"live": live})
    if port is None:
        for candidate in range(FIRST_PORT, FIRST_PORT + NUM_PORTS):
            with suppress(OSError):
                return ThreadingHTTPServer((HOST, candidate), handler)
    try:
        return ThreadingHTTPServer((HOST, port or 0), handler)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise InputError(f"port: {port} {reason}; pass another, or none to use the first free one") from error


def watch(
    runs: Sequence[str | os.PathLike[str]], data: str | None = None, images: int = MAP_IMAGES, port: int | None = None
) -> None:
    """Serve the report on localhost until Ctrl-C, and log its address. An open page reloads when the runs change.

    ``runs``, ``data`` and ``images`` are those of ``write_report``. ``port`` None is the first free one from 8765 on.

    Raises:
        InputError: a folder contains no run, or the port cannot be used.
    """
    check_images(images)
    live = LiveReport(runs, data, images)
    with create_server(live, port) as server:
        try:
            live.page()  # render before logging the address: the first page may take minutes
            logger.info(f"Report: http://localhost:{server.server_port}/ (follows the runs; Ctrl-C stops the server)")
            server.serve_forever()
        except KeyboardInterrupt:
            logger.info("stopped")
