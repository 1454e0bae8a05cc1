"""Download untrusted addresses: from the public web only, within one limit on time and size.

A row of a source may name any address. So at every hop, redirects included, the host name is resolved once, addresses
that are not public are dropped, and the connection uses one of the checked addresses. DNS rebinding therefore cannot
reach this machine or its network. Only http and https are allowed, and certificates are checked.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as WaitingTimeoutError
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from pipeline.runtime.heartbeat import WORKER_PROGRESS

if TYPE_CHECKING:
    from urllib3.connection import HTTPConnection

MAX_DOWNLOAD_BYTES = 16 * 2**20
CHUNK_BYTES = 64 * 2**10
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
USER_AGENT = "jat-pipeline (dataset of image captions)"
NOT_AN_ADDRESS = "download failed: not an address"
NOT_PUBLIC = "download failed: not a public address"
TIMED_OUT = "download failed: timed out"
NO_CONNECTION = "download failed: no connection"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RejectedError(Exception):
    """The document is rejected. The message is a stable reason string, so equal failures can be counted together."""


class Downloader:
    """Downloads small files; each of several threads may run one download at a time.

    Args:
        seconds: time limit of one download, from resolving the first name to the last byte.
        connections: number of threads.
        allow_private: also allow addresses of this machine and its network.
    """

    def __init__(self, seconds: float, connections: int = 1, allow_private: bool = False) -> None:
        import urllib3

        self._seconds = seconds
        headers = {"User-Agent": USER_AGENT, "Accept": "image/*"}
        self._pool = urllib3.PoolManager(num_pools=4 * connections, maxsize=connections, headers=headers)
        resolver = _Resolver(connections, allow_private)
        self._pool.pool_classes_by_scheme = {
            scheme: type("Pool", (kind,), {"ConnectionCls": resolver.connection_class(scheme)})
            for scheme, kind in (("http", urllib3.HTTPConnectionPool), ("https", urllib3.HTTPSConnectionPool))
        }

    def get(self, address: str) -> bytes:
        """Download the file at an address.

        Raises:
            RejectedError: the download fails, times out, or is too large.
        """
        deadline = time.monotonic() + self._seconds
        for _ in range(MAX_REDIRECTS + 1):
            if not address.lower().startswith(("http://", "https://")):
                raise RejectedError(NOT_AN_ADDRESS)
            found = self._ask(address, deadline)
            if isinstance(found, bytes):
                return found
            address = found
        raise RejectedError("download failed: too many redirects")

    def _ask(self, address: str, deadline: float) -> bytes | str:
        """The body of the response, or the address that it redirects to."""
        import urllib3

        try:
            with _deadline_of_this_thread(deadline) as limit:
                left = limit.seconds_left()
                # Not decoded: encodings of encodings unpack to a million times their size, and images need none.
                response = self._pool.request(
                    "GET", address, preload_content=False, decode_content=False, redirect=False, retries=False,
                    timeout=urllib3.Timeout(connect=left, read=left),
                )  # fmt: skip
                try:
                    place = response.headers.get("Location")
                    if response.status in REDIRECTS and place:
                        return urljoin(address, place)
                    if response.status != 200:
                        raise RejectedError(f"download failed: HTTP {response.status}")
                    return _read(response, limit)
                finally:
                    # Otherwise the unread rest of the body would be read as the next response on this connection.
                    response.close()
        except urllib3.exceptions.NewConnectionError as error:  # urllib3 makes it a subclass of its timeout error
            raise RejectedError(NO_CONNECTION) from error
        except (urllib3.exceptions.TimeoutError, TimeoutError) as error:
            raise RejectedError(TIMED_OUT) from error
        except (urllib3.exceptions.LocationValueError, UnicodeError) as error:
            raise RejectedError(NOT_AN_ADDRESS) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            late = time.monotonic() >= deadline
            raise RejectedError(TIMED_OUT if late else "download failed: connection broken") from error


def _read(response: Any, limit: _Deadline) -> bytes:
    """The body, unless it takes too long or is too large."""
    chunks, num_bytes = [], 0
    while chunk := response.read1(CHUNK_BYTES):
        WORKER_PROGRESS.beats += 1
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > MAX_DOWNLOAD_BYTES:
            raise RejectedError(f"download failed: more than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
        limit.seconds_left()
    limit.seconds_left()  # a connection closed at the deadline looks like the end of the body
    return b"".join(chunks)


class _Deadline:
    """The deadline of a request. A socket's timeout applies to each read, so slowly dripping headers never reach it:
    at the deadline the socket is shut down, whatever is waiting for it."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def seconds_left(self) -> float:
        """Raises TimeoutError if none are left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the whole request took too long")
        return left

    def watch(self, sock: socket.socket) -> None:
        """Shut this socket down at the deadline, even if it is wrapped or closed in the meantime."""
        self.seconds_left()
        self.close()
        with self._lock:
            self._socket = socket.socket(fileno=os.dup(sock.fileno()))

    def cut(self) -> None:
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


_current = threading.local()  # deadline of the current request of a thread


@contextlib.contextmanager
def _deadline_of_this_thread(deadline: float) -> Iterator[_Deadline]:
    limit = _Deadline(deadline)
    timer = threading.Timer(limit.seconds_left(), limit.cut)
    timer.daemon = True
    timer.start()
    _current.limit = limit
    try:
        yield limit
    finally:
        timer.cancel()
        limit.close()
        _current.limit = None


class _Resolver:
    """Resolves names within a time limit and connects to public addresses only."""

    def __init__(self, connections: int, allow_private: bool) -> None:
        self._threads = ThreadPoolExecutor(connections, "resolve")
        self._allow_private = allow_private

    def connection_class(self, scheme: str) -> type[HTTPConnection]:
        """A urllib3 connection class that connects by ``connect`` instead of by host name."""
        from urllib3.connection import HTTPConnection, HTTPSConnection

        connect = self.connect
        kind = HTTPSConnection if scheme == "https" else HTTPConnection

        def new_connection(connection: HTTPConnection) -> socket.socket:
            return connect(connection)

        def request(connection: HTTPConnection, *args: Any, **options: Any) -> None:
            if connection.sock is not None:  # reused from an earlier request
                _current.limit.watch(connection.sock)
            kind.request(connection, *args, **options)

        return type("Connection", (kind,), {"_new_conn": new_connection, "request": request})

    def connect(self, connection: HTTPConnection) -> socket.socket:
        """A socket connected to one of the public addresses of a connection's host.

        Raises:
            RejectedError: the host has no public address.
            TimeoutError: it took too long.
            NewConnectionError: no address answers.
        """
        from urllib3.exceptions import NewConnectionError

        limit: _Deadline = _current.limit
        host, port = connection.host, connection.port
        resolving = self._threads.submit(socket.getaddrinfo, host.strip("[]"), port, 0, socket.SOCK_STREAM)
        try:
            found = resolving.result(limit.seconds_left())
        except WaitingTimeoutError:
            raise TimeoutError("the name was not resolved in time") from None
        except (OSError, UnicodeError) as error:
            raise NewConnectionError(connection, "the name cannot be resolved") from error
        public = [entry for entry in found if self._allow_private or is_public(str(entry[4][0]))]
        if not public:
            raise RejectedError(NOT_PUBLIC)
        for family, kind, protocol, _, place in public:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(limit.seconds_left())
                sock.connect(place)
                limit.watch(sock)
            except OSError:
                sock.close()
                continue
            return sock
        limit.seconds_left()
        raise NewConnectionError(connection, "no address answers")


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet; an embedded IPv4 address must be public too."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner and not is_public(str(inner)):
            return False
        if found.ipv4_mapped:
            return True
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)
