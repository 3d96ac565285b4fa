"""An HTTP server of shards, with the failures of real ones."""

import http.server
import re
import threading


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges = ranges  # support range requests
        self.files: dict[str, bytes] = {}
        self.breaks: dict[str, tuple[int, int]] = {}  # byte at which the connection closes, and how many times it does
        self.stalls: dict[str, int] = {}  # byte at which the server stops sending
        self.unavailable: dict[str, int] = {}  # how many requests get the status 503
        self.key: str | None = None  # value of the header X-Key that requests need
        self.date = 10**9  # modification time of all files
        self.requests: list[str] = []  # names in the order of the requests
        self.release = threading.Event()  # ends stalled requests

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that close the connection."""


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
        server.requests.append(name)
        if server.stalls.get(name) == 0:
            server.release.wait(30)
            return
        if name not in server.files or (server.key and self.headers.get("X-Key") != server.key):
            self.send_error(404 if name not in server.files else 403)
            return
        if server.unavailable.get(name, 0) > 0:
            server.unavailable[name] -= 1
            self.send_error(503)
            return
        content = server.files[name]
        start, end = 0, len(content)
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        if byte_range:
            start, end = int(byte_range[1]), min(int(byte_range[2]) + 1, end)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Last-Modified", self.date_time_string(server.date))
        self.end_headers()
        if not body:
            return
        position, times = server.breaks.get(name, (0, 0))
        if times and start <= position < end:
            server.breaks[name] = (position, times - 1)
            end = position
        if name in server.stalls and start <= server.stalls[name] < end:
            self.wfile.write(content[start : server.stalls[name]])
            server.release.wait(30)
            return
        self.wfile.write(content[start:end])
