"""Work whose failure must not end the stage: metrics, status files, trackers."""

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
    """Log instead of raising what goes wrong in the block, which only tells of the work that a stage does.

    Libraries and networks fail in any way they like, so this takes whatever they raise.

    Args:
        failure: what to say then, before the reason; said once, since such work is done again and again.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001
        level = logging.DEBUG if failure in _logged else logging.WARNING
        _logged.add(failure)
        log.log(level, "%s: %s", redacted(failure), redacted(first_line(error)))
