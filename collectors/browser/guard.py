"""Keeps other sites out of a server on loopback: names in requests are checked, and the pages load nothing foreign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class LoopbackGuard:
    """An ASGI application in front of another.

    A site whose name was made to lead to 127.0.0.1 (DNS rebinding) sends its own name as ``Host``, and a form or script
    of another site sends its own ``Origin``; both are refused.

    Args:
        app: the application.
        port: port of the server.
    """

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["method"])
        if refusal:
            await PlainTextResponse(refusal, 403, HEADERS)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))

    def _refusal(self, headers: Headers, method: str) -> str:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return f"this page is at http://{min(self._hosts)} only"
        if method not in ("GET", "HEAD") and headers.get("origin", "").lower() != f"http://{host}":
            return "this is done from the page itself only"
        return ""


def _with_headers(send: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def send_one(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return send_one
