"""The report on this machine's own address, made anew while a run trains."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console

from mec.errors import InputError
from mec.report.gallery import gallery
from mec.report.page import IMAGES, Say, Shown, check_images, gather, make_page
from mec.report.record import ENCODER, READ, Record, read_records
from mec.report.schema import Missing
from mec.report.views import views
from mec.results import RESULTS

ADDRESS = "127.0.0.1"
"""Of this machine alone: nobody else in the network sees the page."""
PORT, PORTS = 8765, 20
"""The first that is tried, and how many after it."""
TRAINS = Missing("The run trains; what it has learned is shown as soon as its encoder is written.")


class Live:
    """The page of some runs, as their folders are now."""

    def __init__(self, runs: Sequence[str | os.PathLike[str]], data: str | None, images: int, say: Say) -> None:
        self.runs, self.data, self.images, self.say = runs, data, images, say
        self.folders = [record.folder for record in read_records(runs)]
        self.looked: dict[Path, tuple[str, Shown]] = {}
        self.made: tuple[str, bytes] = ("", b"")
        self.making = threading.Lock()

    def stamp(self) -> str:
        """Changes with the files that the page is made of."""
        return _stamp(folder / name for folder in self.folders for name in READ)

    def page(self) -> bytes:
        with self.making:
            stamp = self.stamp()
            if self.made[0] != stamp:
                self.made = stamp, make_page([self._shown(record) for record in read_records(self.runs)], stamp)
            return self.made[1]

    def _shown(self, record: Record) -> Shown:
        """What takes long is looked at again only when there is another encoder or result."""
        stamp = _stamp(record.folder / name for name in (ENCODER, RESULTS))
        if self.looked.get(record.folder, ("",))[0] != stamp:
            self.looked[record.folder] = stamp, self._look(record)
        return replace(self.looked[record.folder][1], record=record)

    def _look(self, record: Record) -> Shown:
        if record.ended or not record.recipe:
            return gather(record, self.data, self.images // len(self.folders), self.say)
        return Shown(record, TRAINS, views(record.folder, self.data, self.say), gallery(record.folder))


def _stamp(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            about = file.stat()
            digest.update(f"{file} {about.st_mtime_ns} {about.st_size}\n".encode(errors="replace"))
        except OSError:
            continue
    return digest.hexdigest()[:16]


class Answer(BaseHTTPRequestHandler):
    """The page, and whether it has changed: nothing else, and only to this machine."""

    live: Live

    def do_GET(self) -> None:
        # a name that someone else's server gives this address would let their pages read ours
        if self.headers.get("Host", "").lower().partition(":")[0] not in ("localhost", ADDRESS):
            self._send(403, "text/plain", b"Only as localhost.")
        elif self.path == "/changed":
            self._send(200, "application/json", json.dumps({"stamp": self.live.stamp()}).encode())
        elif self.path == "/":
            try:
                self._send(200, "text/html", self.live.page())
            except InputError as error:
                self._send(503, "text/plain", str(error).encode())
        else:
            self._send(404, "text/plain", b"There is only /.")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "frame-ancestors 'none'"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the page was closed before it was there
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a page asks every few seconds."""


def server_of(live: Live, port: int | None) -> ThreadingHTTPServer:
    """Bound to ``port``, or to the first free one.

    Raises:
        InputError: the port that was asked for is taken, or is none.
    """
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"port: expected 1 to 65535, got {port}")
    answer = type("Answer", (Answer,), {"live": live})
    for candidate in [*range(PORT, PORT + PORTS), 0] if port is None else [port]:
        try:
            return ThreadingHTTPServer((ADDRESS, candidate), answer)
        except OSError as error:
            if port is not None:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise InputError(f"port: {port} {why}; expected a free one, or none to take the first free") from error
    raise InputError("port: no port of this machine is free")


def watch(
    runs: Sequence[str | os.PathLike[str]],
    data: str | None = None,
    images: int = IMAGES,
    port: int | None = None,
    console: Console | None = None,
) -> None:
    """Serve the report on this machine alone; pages that are open follow the runs as they train. Ends with Ctrl-C.

    Args:
        runs: run folders, as of ``write_report``.
        data: as there.
        images: as there.
        port: of 127.0.0.1; None is the first free one from 8765 on.
        console: where the address goes; None is standard error.

    Raises:
        InputError: a folder holds no run, or the port is taken.
    """
    check_images(images)
    console = console or Console(stderr=True)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    live = Live(runs, data, images, say)
    with server_of(live, port) as server:
        try:
            live.page()  # what takes long is told before there is an address to open
            say(f"http://localhost:{server.server_port}/ shows the report and follows the runs; Ctrl-C ends it")
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")
