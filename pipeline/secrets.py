"""Keeping credentials out of what people read: messages, logs, errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from pipeline.errors import UserError

HIDDEN = "[hidden]"
# Signed addresses carry their credential behind the question mark; some people write theirs before the host.
_SCHEME = r"\b[a-z][a-z0-9+.-]*://"
_QUERY = re.compile(rf"({_SCHEME}[^\s?'\"<>]+)\?[^\s'\"<>]*", re.IGNORECASE)
# Before the host: all up to an @ that comes before the first slash; or, as keys of S3 may hold slashes, up to the last
# @ where something follows the first colon that is no port.
_USER = re.compile(rf"({_SCHEME})(?:[^\s/@'\"]*:(?!\d+(?:[/\s'\"]|$))[^\s'\"]*@|[^\s/'\"]*@)", re.IGNORECASE)
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY")


def redacted(text: str) -> str:
    """``text`` without the values of credentials, as far as this process knows them, and without signed addresses."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1?{HIDDEN}", text))


def check_no_credentials(text: str) -> None:
    """Refuse what a user gave if it holds an address with a key or a password before the host.

    Raises:
        UserError: says so, with the credentials hidden.
    """
    if _USER.search(text):
        raise_for_credentials(text)


def raise_for_credentials(address: str) -> NoReturn:
    """Refuse an address.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{redacted(address)} carries credentials, which logs and process lists would show; leave them to the "
        f"environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, HF_TOKEN for the Hub"
    )


def _secrets() -> list[str]:
    """Values of environment variables that are named like credentials, and the Hub's stored login; longest first."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name.upper())}
    hub = sys.modules.get("huggingface_hub")  # whoever has not imported it has not read the login either
    if hub is not None:
        found.add(hub.get_token() or "")
    # Shorter ones would tear words apart and protect nothing.
    return sorted((secret for secret in found if len(secret) >= 8), key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Formats as its base class does, tracebacks included, without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


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
