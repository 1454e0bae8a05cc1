"""The plumbing below ``tests.hub_server``: which method answers which request, bodies, injected faults, the log."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Fault:
    """What goes wrong with requests whose ``METHOD /path`` matches the regular expression ``match``."""

    match: str
    times: int = 1
    """How often, then it is over."""
    skip: int = 0
    """Matching requests that go well before."""
    status: int | None = None
    """The answer, instead of what was asked for."""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    """Headers of that answer."""
    message: str = "injected"
    """Error text of that answer."""
    reset_after: int | None = None
    """Bytes of the body to read before the connection is reset."""
    bytes_per_s: float | None = None
    """How fast the body is read."""
    lose_answer: bool = False
    """Do what was asked for, then reset the connection."""


class RefusalError(Exception):
    """An answer that is an error, with the Hub's own error code if it has one."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class ResetError(Exception):
    """The connection ends here."""


ROUTES: list[tuple[re.Pattern[str], str]] = []


def route(pattern: str) -> Callable[[Any], Any]:
    """Register a method for requests ``METHOD path`` that match; named groups become its arguments."""

    def register(method: Any) -> Any:
        ROUTES.append((re.compile(pattern.replace("REPO", r"(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+?)")), method))
        return method

    return register


class Connection(BaseHTTPRequestHandler):
    """One connection: reads bodies, answers, does what faults say, notes every request."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        self._shared, self._received, self._sent = self.server.shared, 0, 0
        parts = urlsplit(self.path)
        self._path, self._query = parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}
        request = f"{self.command} {self._path}"
        if self._path.startswith("/_") and not self._path.startswith("/_storage"):
            self._control()
            return
        self._fault = self._shared.next_fault(request)
        self._status = 0
        try:
            if self._fault is not None and self._fault.status is not None:
                self._read_body()
                raise RefusalError(self._fault.status, self._fault.message)
            for pattern, method in ROUTES:
                match = pattern.fullmatch(request)
                if match:
                    method(self, **match.groupdict())
                    break
            else:
                raise RefusalError(404, f"no such page: {request}", "EntryNotFound")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            extra = self._fault.headers if self._fault is not None else {}
            headers |= {"X-Error-Message": refusal.message, **extra}
            self._answer({"error": refusal.message}, refusal.status, headers)
        except ResetError:
            # A linger of nothing: the other side sees the connection reset, not closed.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        finally:
            entry = {
                "request": request,
                "time": time.monotonic(),
                "status": self._status,
                "received": self._received,
                "sent": self._sent,
                "has_token": "Authorization" in self.headers,
                "leaked": self.server.is_storage and "Authorization" in self.headers,
            }
            with self._shared.lock:
                self._shared.log.append(entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _control(self) -> None:
        shared = self._shared
        self._fault, self._status = None, 0
        body = self._read_body()
        with shared.lock:
            if self.command == "POST":
                shared.faults = [Fault(**fault) for fault in json.loads(body)]
            if self.command == "DELETE":
                shared.log.clear()
            self._answer({"log": list(shared.log)})

    def _blocks(self) -> Iterator[bytes]:
        """The body, as it comes: of a stated length or in chunks."""
        chunked = self.headers.get("Transfer-Encoding", "") == "chunked"
        left = 0 if chunked else int(self.headers.get("Content-Length", 0))
        while True:
            if chunked and left == 0:
                left = int(self.rfile.readline().split(b";")[0], 16)
                if left == 0:
                    self.rfile.readline()
                    return
            if left == 0:
                return
            fault = self._fault
            if fault is not None and fault.reset_after is not None and self._received >= fault.reset_after:
                raise ResetError
            block = self.rfile.read(min(left, 16384 if fault is None else 500))
            if not block:
                raise ResetError
            self._received += len(block)
            if fault is not None and fault.bytes_per_s:
                time.sleep(len(block) / fault.bytes_per_s)
            left -= len(block)
            if chunked and left == 0:
                self.rfile.readline()
            yield block

    def _read_body(self) -> bytes:
        return b"".join(self._blocks())

    def _json(self) -> Any:
        return json.loads(self._read_body() or b"{}")

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self._fault is not None and self._fault.lose_answer:
            raise ResetError
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self._status = status
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self._sent += len(content)
