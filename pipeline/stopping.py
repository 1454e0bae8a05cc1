"""How a command is asked to end, with Ctrl-C (SIGINT) or SIGTERM, and when it does.

The first signal raises ``KeyboardInterrupt`` or ``SystemExit(143)`` where the command is. Work that has something to
save first says ``with deferred_stop():`` around it, asks ``stop_requested`` now and then, and ends by ``raise_stop``.
A second Ctrl-C ends the command at once; more SIGTERMs change nothing, since schedulers often send several.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from pipeline.errors import first_line

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED_CODE = 128 + signal.SIGTERM  # exit code after SIGTERM, as shells have it
INTERRUPTED_CODE = 128 + signal.SIGINT


class _Stop:
    """The state of this process.

    Attributes:
        is_handled: whether the signals are handled here.
        requested: the first signal that came.
        deferring: what to call when it comes, of every block that defers it.
    """

    def __init__(self) -> None:
        self.is_handled = False
        self.requested: int | None = None
        self.deferring: list[Callable[[], None]] = []


_stop = _Stop()


def stop_requested() -> bool:
    """Whether a signal has asked this command to end."""
    return _stop.requested is not None


def raise_stop() -> NoReturn:
    """End the command as the signal that came would have done."""
    if _stop.requested == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(STOPPED_CODE)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Handle the signals while the block lasts, unless a block around it or another thread does.

    Whatever a signal has led to, such as the error of a library that was interrupted, ``raise_stop`` takes its place.
    """
    if _stop.is_handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _stop.is_handled = True
    handle_stop_signals()
    try:
        yield
    except BaseException as error:
        if not stop_requested():
            raise
        if isinstance(error, Exception):
            log.warning("while stopping: %s", first_line(error))
        raise_stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.is_handled, _stop.requested = False, None


def handle_stop_signals() -> None:
    """Take the signals back from a library that has set handlers of its own, if they are handled at all."""
    if not _stop.is_handled or threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        # Whoever started this process to be deaf to a signal (nohup, a job in the background) meant it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _take)


@contextlib.contextmanager
def deferred_stop(on_request: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only note the first signal while the block lasts; the block asks ``stop_requested``.

    Args:
        on_request: called when it comes, for work that another process does.
    """
    _stop.deferring.append(on_request)
    try:
        yield
    finally:
        _stop.deferring.remove(on_request)


def _take(number: int, frame: FrameType | None) -> None:
    is_first = _stop.requested is None
    if is_first:
        _stop.requested = number
        if _stop.deferring:
            for on_request in _stop.deferring:
                on_request()
            return
    elif number == signal.SIGTERM:
        return
    else:
        _stop.requested = number
    raise_stop()
