"""Pages on loopback for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Pages(BaseHTTPRequestHandler):
    """Answers requests for pages; a subclass says in ``page`` what is at a path."""

    def page(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.page()

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def served(pages: type[Pages]) -> Iterator[str]:
    """The address at which ``pages`` answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
