"""Runs side effects whose failure must not abort the stage: metrics, status files, trackers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from pipeline.errors import first_line
from pipeline.secrets import redacted

log = logging.getLogger(__name__)

_logged: set[str] = set()


@contextlib.contextmanager
def side_effect(failure: str) -> Iterator[None]:
    """Log exceptions of the block instead of raising them; for code that only reports on a stage's work.

    Catches every ``Exception``, because libraries and networks can raise any type.

    Args:
        failure: message to log before the reason. The first time it is a warning, later it is logged at debug level,
            because such code runs repeatedly.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        level = logging.DEBUG if failure in _logged else logging.WARNING
        _logged.add(failure)
        log.log(level, "%s: %s", redacted(failure), redacted(first_line(error)))
