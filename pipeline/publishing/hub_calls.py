"""Calls to the Hub: retry transient errors, and raise errors whose messages contain no credentials."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from pipeline.errors import JobsFailedError, UserError
from pipeline.secrets import redacted

log = logging.getLogger(__name__)
T = TypeVar("T")

# The client itself tries each of its data requests six times; all six count as one attempt here.
ATTEMPTS = 5
_TRANSIENT = (408, 429, 500, 502, 503, 504)
# The Hub needs a while for a commit of many files; a server that is silent for longer is considered unreachable.
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, WRITE_TIMEOUT_S = 10.0, 300.0, 60.0


def set_timeouts() -> None:
    """Set timeouts for all connections of the client, which has none by default."""
    import httpx2
    from huggingface_hub import set_client_factory

    timeout = httpx2.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, write=WRITE_TIMEOUT_S)
    set_client_factory(lambda: httpx2.Client(follow_redirects=True, timeout=timeout))


def ask_hub(function: Callable[[], T], what: str, is_first: bool = False) -> T:
    """Call the client; retry transient errors, convert permanent errors to readable ones.

    Args:
        function: the call. It must be idempotent: a retry may repeat a call that succeeded but lost its response.
        what: subject for messages, such as ``dataset owner/name``.
        is_first: this is the first request, so a refused connection is not retried.

    Raises:
        UserError: no credentials, no permission, no such repository, no space, or the Hub rejects the request.
        JobsFailedError: all retries failed.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    wait_s = 1.0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return function()
        except (HfHubHTTPError, httpx2.TransportError, RuntimeError, ValueError, OSError) as error:
            cause = _cause(error)
            is_unreachable = isinstance(cause, httpx2.ConnectError) and is_first
            if attempt == ATTEMPTS or is_unreachable or not _is_transient(cause):
                _give_up(cause, what)
            asked_s = _retry_after_s(cause)
            log.info("the Hub failed (%s), attempt %d of %d", _describe(cause), attempt, ATTEMPTS)
            time.sleep(wait_s if asked_s is None else asked_s)
            wait_s *= 2
    raise AssertionError("the last attempt returns or raises")


def _give_up(error: BaseException, what: str) -> NoReturn:
    """Raise an error with a fix, without URLs and headers, which may contain credentials."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, (UserError, JobsFailedError)):
        raise error
    if isinstance(error, LocalTokenNotFoundError):
        raise UserError("no credentials for the Hub; set HF_TOKEN, or run `hf auth login`") from None
    if isinstance(error, OfflineModeIsEnabled):
        raise UserError("HF_HUB_OFFLINE is set; unset it to publish") from None
    if isinstance(error, httpx2.TransportError):
        raise JobsFailedError(
            f"{constants.ENDPOINT} cannot be reached ({_describe(error)}); what arrived stays, "
            f"run the same command again to go on"
        ) from None
    if isinstance(error, RepositoryNotFoundError):
        raise UserError(f"there is no {what} that this token may see") from None
    if isinstance(error, ValueError):  # the client or the Hub rejects a name, a card or a file
        raise UserError(f"{what} cannot be published ({_describe(error)})") from None
    if not isinstance(error, HfHubHTTPError):  # an error of the disk, or of the client's chunk cache
        raise JobsFailedError(
            f"uploading failed ({_describe(error)}); what arrived stays, run the same command again to go on"
        ) from error
    status, said = error.response.status_code, _describe(error)
    if status == 401:
        raise UserError(f"the Hub refuses the token ({said}); set HF_TOKEN, or run `hf auth login`") from None
    if status == 403:
        raise UserError(f"this token may not write to {what} ({said}); check owner and token") from None
    if status in (402, 413, 507):
        raise UserError(f"no room for {what} on the Hub ({said}); nothing was published") from None
    if status == 412:
        raise UserError(f"{what} has changed while this was uploaded; run the same command again") from None
    if status in _TRANSIENT:
        raise JobsFailedError(
            f"the Hub failed {ATTEMPTS} times ({said}); what arrived stays, run the same command again to go on"
        ) from None
    raise UserError(f"the Hub refuses to publish {what} ({said})") from None


def _cause(error: BaseException) -> BaseException:
    """Unwrap an error: the client wraps errors of a single file in a RuntimeError."""
    is_ours = isinstance(error, JobsFailedError)
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None and not is_ours else error


def _is_transient(error: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return isinstance(error, httpx2.TransportError)


def _retry_after_s(error: BaseException) -> float | None:
    """Seconds of the server's ``Retry-After`` header, or None."""
    from huggingface_hub.errors import HfHubHTTPError

    text = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(text) if text.isdigit() else None


def _describe(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return redacted(f"HTTP {error.response.status_code}: {error.server_message or 'no reason given'}")
    return redacted(f"{type(error).__name__}: {error}")
