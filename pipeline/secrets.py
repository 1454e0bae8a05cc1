"""Keeping credentials out of what people read: messages, logs, errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

HIDDEN = "[hidden]"
# Signed addresses carry their credential behind the question mark; some people write theirs before the host.
_QUERY = re.compile(r"(\b[a-z][a-z0-9+]*://[^\s?'\"<>]+)\?[^\s'\"<>]*")
_USER = re.compile(r"(\b[a-z][a-z0-9+]*://)[^\s/@]+@")
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY")


def redacted(text: str) -> str:
    """``text`` without the values of credentials, as far as this process knows them, and without signed addresses."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1?{HIDDEN}", text))


def _secrets() -> list[str]:
    """Values of environment variables that are named like credentials, and the Hub's stored login; longest first."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name.upper())}
    with contextlib.suppress(ImportError):
        from huggingface_hub import get_token

        found.add(get_token() or "")
    # Shorter ones would tear words apart and protect nothing.
    return sorted((secret for secret in found if len(secret) >= 8), key=len, reverse=True)


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), ()
        return True


@contextlib.contextmanager
def secrets_kept_from_logs() -> Iterator[None]:
    """While this lasts, whatever any library logs is redacted."""
    from huggingface_hub.utils import logging as _  # noqa: F401  makes its own handler

    handlers = [*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers]
    hide = _Filter()
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)
