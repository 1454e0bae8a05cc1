"""Logs one progress line every few seconds, readable in a terminal and in a log file."""

from __future__ import annotations

import logging
import time

from pipeline.runtime.stage import current_stage


class Progress:
    """Counts units of work in the stage's status, and logs done, total, rate and the time left.

    Args:
        label: name of the units, e.g. ``shards``.
        total: total number of units.
        interval_s: smallest number of seconds between two lines; the last unit always logs a line.
    """

    def __init__(self, label: str, total: int, interval_s: float = 5.0) -> None:
        self._log = logging.getLogger("progress")
        self._interval_s = interval_s
        self._stage = current_stage()
        self._stage.begin(label, total)
        self._last = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        with self._stage.changing() as status:
            status.done += amount
        now = time.monotonic()
        if now - self._last < self._interval_s and status.done < status.planned:
            return
        self._last = now
        self._log.info("%s%s", status.describe(), f", {note}" if note else "")
