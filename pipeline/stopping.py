"""Handles the signals that ask a command to stop: SIGINT (Ctrl-C) and SIGTERM.

The first signal raises ``KeyboardInterrupt`` or ``SystemExit(143)`` in the main thread. Work that must save its results
first runs inside ``with deferred_stop():``, polls ``stop_requested`` and ends with ``raise_stop``. A second Ctrl-C ends
the command immediately. Further SIGTERMs are ignored, because schedulers often send several.
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
STOPPED_CODE = 128 + signal.SIGTERM  # exit code after SIGTERM, by the convention of shells
INTERRUPTED_CODE = 128 + signal.SIGINT


class _Stop:
    """Signal state of this process.

    Attributes:
        is_handled: whether this module's handlers are installed.
        requested: the signal that was received (SIGINT after a second Ctrl-C), or None.
        deferring: callbacks of all active ``deferred_stop`` blocks, called at the first signal.
    """

    def __init__(self) -> None:
        self.is_handled = False
        self.requested: int | None = None
        self.deferring: list[Callable[[], None]] = []


_stop = _Stop()


def stop_requested() -> bool:
    """Whether a signal has asked this command to stop."""
    return _stop.requested is not None


def raise_stop() -> NoReturn:
    """Raise the exception of the received signal."""
    if _stop.requested == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(STOPPED_CODE)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Install the signal handlers during the block; no-op in a nested block or outside the main thread.

    Any exception after a signal, such as the error of an interrupted library, is replaced by that of ``raise_stop``.
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
    """Reinstall the handlers after a library has set its own; no-op outside ``stop_signals``."""
    if not _stop.is_handled or threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        # A signal that the parent process set to be ignored (nohup, a background job) stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _take)


@contextlib.contextmanager
def deferred_stop(on_request: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only record the first signal during the block; the block polls ``stop_requested``.

    Args:
        on_request: called at the first signal, e.g. to stop work in another process.
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
