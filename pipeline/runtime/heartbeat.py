"""Signs of life of a worker process: what its supervisor asks for to tell a slow job from a hung one.

The rollout beats; ``pipeline/runtime/pool.py`` reads the counts from another thread. Plain integers of one process:
only one job runs in it at a time.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path


@dataclass
class WorkerProgress:
    """What this process has done in its present job.

    Attributes:
        beats: grows with every sign of life, whatever it is.
        episodes: finished ones, or rows of a source that were read.
        steps: of all environments together.
    """

    beats: int = 0
    episodes: int = 0
    steps: int = 0


WORKER_PROGRESS = WorkerProgress()
# Set when this process is asked to end its job early; a job that can, saves what it has and ends.
STOP = threading.Event()


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell (no /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
