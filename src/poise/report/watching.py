"""The page of a run while it trains, served to one browser on this machine.

Nothing but three addresses is answered, all behind a random token; no part of an address ever becomes the name of a
file. Requests that another site could have caused, by its origin or under another host name, are refused.
"""

import secrets
import threading
from collections.abc import Callable
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from poise.report.page import content_policy, packed, page
from poise.report.page_data import metric_lines, page_head, page_rollouts
from poise.report.rollout_files import RolloutReader
from poise.storage.run_directory import RunDirectory

HOST = "127.0.0.1"


class WatchServer(ThreadingHTTPServer):
    """Serves the page of a run on `127.0.0.1`.

    Args:
        directory: The run.
        port: 0 for any that is free.

    Attributes:
        address: What to open, token and all.

    Raises:
        FileNotFoundError: If the folder holds no run.
        OSError: If the port is taken.
    """

    daemon_threads = True

    def __init__(self, directory: RunDirectory, port: int = 0) -> None:
        metric_lines(directory)
        super().__init__((HOST, port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"
        self._directory, self._reader = directory, RolloutReader(directory)
        self._made: dict[str, tuple[object, bytes]] = {}
        self._one_at_a_time = threading.Lock()
        self._makers: dict[str, Callable[[RolloutReader], Any]] = {"head": page_head, "rollouts": page_rollouts}

    def answer(self, path: str) -> tuple[str, bytes, str] | None:
        """Type, content and mark of what stands at a path; None where nothing does."""
        token, _, name = path.removeprefix("/").partition("/")
        if not compare_digest(token.encode(), self.token.encode()):
            return None
        if name == "":
            return "text/html; charset=utf-8", page().encode(), "page"
        if name not in self._makers:
            return None
        with self._one_at_a_time:
            state = self._state()
            if self._made.get(name, (None,))[0] != state:
                self._made[name] = state, packed(self._makers[name](self._reader))
            return "application/json", self._made[name][1], f"{hash(state):x}"

    def _state(self) -> tuple[Any, ...]:
        """What changes whenever there is something new to see."""
        found = self._directory
        paths = (found.metrics, found.summary, found.rollouts, found.config, found.ungradable)
        return tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in paths)


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if refusal := self._refusal():
            return self._send(HTTPStatus.FORBIDDEN, "text/plain; charset=utf-8", f"{refusal}\n".encode())
        try:
            found = self.server.answer(self.path)
        except OSError as error:  # the run was taken away
            return self._send(HTTPStatus.GONE, "text/plain; charset=utf-8", f"{error.strerror or error}\n".encode())
        if found is None:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"nothing is here\n")
        kind, content, mark = found
        if self.headers.get("If-None-Match") == f'"{mark}"':
            return self._send(HTTPStatus.NOT_MODIFIED, kind, b"", mark=mark)
        return self._send(HTTPStatus.OK, kind, content, mark=mark, compressed=kind == "application/json")

    def _refusal(self) -> str:
        """Why the request is not answered; empty where it is."""
        own = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in own:
            return "the page is there for this machine alone, under its own address"
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in own:
            return "another site asks for the page"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "another site asks for the page"
        return ""

    def _send(self, status: HTTPStatus, kind: str, content: bytes, *, mark: str = "", compressed: bool = False) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-cache" if mark else "no-store",
            "Content-Security-Policy": content_policy(live=True),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        headers |= {"ETag": f'"{mark}"'} if mark else {}
        headers |= {"Content-Encoding": "gzip"} if compressed else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the token."""
