"""Counts the heartbeats of a worker process, so that its supervisor can distinguish a slow job from a hung one.

The rollout increments the counts; ``pipeline/runtime/pool.py`` reads them from another thread. They are plain integers
of the process, because a process runs only one job at a time.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass
class WorkerProgress:
    """Progress of this process in its current job.

    Attributes:
        beats: number of heartbeats of any kind.
        episodes: finished episodes, or rows read from a source.
        steps: steps of all environments together.
    """

    beats: int = 0
    episodes: int = 0
    steps: int = 0


WORKER_PROGRESS = WorkerProgress()
# Set when this process is asked to end its job early; a job that supports this saves its results and returns.
STOP = threading.Event()


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 on systems without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
