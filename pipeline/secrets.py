"""Redacts credentials in messages, logs and errors."""

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
# Signed URLs have their credential in the query; some users write theirs before the host.
_SCHEME = r"\b[a-z][a-z0-9+.-]*://"
_QUERY = re.compile(rf"({_SCHEME}[^\s?'\"<>]+)\?[^\s'\"<>]*", re.IGNORECASE)
# Before the host: everything up to an @ before the first slash. S3 keys may contain slashes, so if the text after the
# first colon is not a port, everything up to the last @.
_USER = re.compile(rf"({_SCHEME})(?:[^\s/@'\"]*:(?!\d+(?:[/\s'\"]|$))[^\s'\"]*@|[^\s/'\"]*@)", re.IGNORECASE)
# Tokens of the Hub, wherever they come from.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|API_KEY")


def redacted(text: str) -> str:
    """Redact in ``text`` all credentials that this process knows, and the credentials in URLs."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return _TOKEN.sub(HIDDEN, _USER.sub(rf"\1{HIDDEN}@", _QUERY.sub(rf"\1?{HIDDEN}", text)))


def check_no_credentials(text: str) -> None:
    """Check that user input contains neither a token of the Hub nor a URL with a key or a password before the host.

    Raises:
        UserError: it contains one; the message hides the credentials.
    """
    if _USER.search(text) or _TOKEN.search(text):
        raise_for_credentials(text)


def raise_for_credentials(address: str) -> NoReturn:
    """Raise the error for a URL with credentials.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{redacted(address)} carries credentials, which logs and process lists would show; leave them to the "
        f"environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, HF_TOKEN for the Hub"
    )


def _secrets() -> list[str]:
    """Values of environment variables with names of credentials, and the Hub's stored token; longest first."""
    found = {value for name, value in os.environ.items() if _NAMES.search(name.upper())}
    hub = sys.modules.get("huggingface_hub")  # if it is not imported, the token was not read either
    if hub is not None:
        found.add(hub.get_token() or "")
    # Replacing shorter values would damage ordinary words and protect nothing.
    return sorted((secret for secret in found if len(secret) >= 8), key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Formats as its base class does, including tracebacks, with credentials redacted."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), ()
        return True


@contextlib.contextmanager
def secrets_kept_from_logs() -> Iterator[None]:
    """Redact the log lines of all libraries during the block."""
    from huggingface_hub.utils import logging as _  # noqa: F401  the import creates its handler

    handlers = [*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers]
    hide = _Filter()
    for handler in handlers:
        handler.addFilter(hide)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hide)
