from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from collectors import downloads
from collectors.downloads import Downloader, RejectedError, is_public
from tests.web import Pages, served

NOT_PUBLIC = r"^download failed: not a public address$"
getaddrinfo = socket.getaddrinfo


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "2002:0101:0101::"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "2002:7f00:0001::", "2002:0a00:0001::", "nothing", "",
    ],
)  # fmt: skip
def test_addresses_of_machines_and_their_networks_are_not(address: str) -> None:
    assert not is_public(address)


class Web(Pages):
    asked: list[str] = []  # noqa: RUF012  one list for all answers

    def page(self) -> None:
        self.asked.append(self.path)
        _, kind, *rest = self.path.split("/", 2)
        if kind == "to":
            return self.answer(302, b"", Location=rest[0])
        return self.answer(200, b"secret")


@pytest.fixture
def web() -> Iterator[str]:
    Web.asked.clear()
    with served(Web) as address:
        yield address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "127.1", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_asked_whatever_it_is_called(web: str, host: str) -> None:
    with pytest.raises(RejectedError, match=NOT_PUBLIC):
        Downloader(5.0).get(f"http://{host}:{web.rpartition(':')[2]}/x")
    assert Web.asked == []


def test_it_is_asked_on_purpose(web: str) -> None:
    assert Downloader(5.0, allow_private=True).get(f"{web}/x") == b"secret"


def resolved(monkeypatch: pytest.MonkeyPatch, answers: Callable[[str], list[str]]) -> list[str]:
    """Names are resolved by ``answers``; returns the names as they are asked for."""
    asked: list[str] = []

    def resolve(host: str, port: int, *args: Any) -> list[Any]:
        asked.append(host)
        return [entry for address in answers(host) for entry in getaddrinfo(address, port, *args)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(downloads, "is_public", lambda address: address == "127.0.0.1")  # where the test's web is
    return asked


@pytest.mark.parametrize("there", ["http://127.0.0.2:{port}/x", "http://inner.test:{port}/x", "//inner.test:{port}/x"])
def test_a_redirect_is_looked_at_as_the_first_address_is(web: str, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = web.rpartition(":")[2]
    resolved(monkeypatch, lambda host: {"outer.test": ["127.0.0.1"], "inner.test": ["127.0.0.2"]}.get(host, [host]))
    with pytest.raises(RejectedError, match=NOT_PUBLIC):
        Downloader(5.0).get(f"http://outer.test:{port}/to/{there.format(port=port)}")
    assert Web.asked == [f"/to/{there.format(port=port)}"]


@pytest.mark.parametrize("there", ["file:///etc/passwd", "ftp://outer.test/x", "gopher://outer.test/x"])
def test_a_redirect_to_another_protocol_is_not_followed(web: str, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, lambda host: ["127.0.0.1"])
    with pytest.raises(RejectedError, match=r"^download failed: not an address$"):
        Downloader(5.0).get(f"http://outer.test:{web.rpartition(':')[2]}/to/{there}")


def test_a_name_is_resolved_once_and_the_address_looked_at_is_the_one_asked(
    web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]])  # another one from the second question on
    asked = resolved(monkeypatch, lambda host: next(answers))
    assert Downloader(5.0).get(f"http://outer.test:{web.rpartition(':')[2]}/x") == b"secret"
    assert asked == ["outer.test"]


def test_of_several_addresses_only_public_ones_are_asked(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, lambda host: ["127.0.0.3", "127.0.0.1"])
    assert Downloader(5.0).get(f"http://outer.test:{web.rpartition(':')[2]}/x") == b"secret"


@contextlib.contextmanager
def speaking(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that says to everybody what ``speak`` does, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client, contextlib.suppress(OSError):
                        speak(client)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def drip(begin: bytes) -> Callable[[socket.socket], None]:
    def speak(client: socket.socket) -> None:
        client.sendall(begin)
        for _ in range(200):
            time.sleep(0.05)
            client.sendall(b"x")

    return speak


@pytest.mark.parametrize(
    "begin",
    [b"", b"HTTP", b"HTTP/1.1 200 OK\r\nX-Y: ", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
     b"HTTP/1.1 302 Found\r\nLocation: /y\r\nX-Y: "],
    ids=["status", "status line", "headers", "body", "redirect"],
)  # fmt: skip
def test_one_deadline_is_for_the_whole_request_however_it_drips(begin: bytes) -> None:
    with speaking(drip(begin)) as address:
        started = time.monotonic()
        with pytest.raises(RejectedError, match=r"^download failed: timed out$"):
            Downloader(0.4, allow_private=True).get(f"{address}/x")
        assert time.monotonic() - started < 2


def test_redirects_share_one_deadline() -> None:
    def speak(client: socket.socket) -> None:
        client.recv(1000)
        time.sleep(0.25)
        client.sendall(b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with speaking(speak) as address:
        started = time.monotonic()
        with pytest.raises(RejectedError, match=r"^download failed: timed out$"):
            Downloader(0.6, allow_private=True).get(f"{address}/x")
        assert time.monotonic() - started < 2


def test_a_name_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(1.5))
    started = time.monotonic()
    with pytest.raises(RejectedError, match=r"^download failed: timed out$"):
        Downloader(0.3).get("http://outer.test/x")
    assert time.monotonic() - started < 1.2


def test_a_body_that_unpacks_to_gigabytes_is_not_unpacked() -> None:
    """Encodings of encodings: 100 MB of zeros are 300 bytes after two."""
    body = gzip.compress(gzip.compress(bytes(100_000_000)))

    def speak(client: socket.socket) -> None:
        client.recv(1000)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)

    with speaking(speak) as address:
        assert Downloader(20.0, allow_private=True).get(f"{address}/x") == body
