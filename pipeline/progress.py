"""One line of progress every few seconds, readable in a terminal and in a log file alike."""

from __future__ import annotations

import logging
import time


class Progress:
    """Counts units of work and logs done, total, rate and the time left.

    Args:
        label: what the units are, e.g. ``shards``.
        total: how many there are.
        interval_s: at most one line in this many seconds; the last unit always logs.
    """

    def __init__(self, label: str, total: int, interval_s: float = 5.0) -> None:
        self._log = logging.getLogger("progress")
        self._label, self._total, self._interval_s = label, total, interval_s
        self._done = 0
        self._started = self._last = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last < self._interval_s and self._done < self._total:
            return
        self._last = now
        elapsed = now - self._started
        left = elapsed / self._done * (self._total - self._done)
        note = f", {note}" if note else ""
        self._log.info(
            "%d of %d %s in %.0f s, about %.0f s left%s", self._done, self._total, self._label, elapsed, left, note
        )
