"""The run of a stage in this process: what it keeps of its status, and who writes it.

Commands say ``with reported(...)`` around their work. A thread writes the status every few seconds, whatever the work
is busy with; whoever counts work, such as ``pipeline/runtime/progress.py``, finds the run by ``current_stage``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import first_line
from pipeline.files import is_local, location, write_json
from pipeline.runtime.heartbeat import resident_bytes
from pipeline.runtime.metrics import publish
from pipeline.runtime.status import DONE, FAILED, FOLDER, RUNNING, STOPPED, StageStatus, TaskCount, read_statuses
from pipeline.secrets import redacted
from pipeline.side_effects import side_effect
from pipeline.stopping import STOPPED_CODE, stop_requested, stop_signals

log = logging.getLogger(__name__)

# Environment variable: whose status this is, if not that of ``--out``; set by what runs a stage on a disk in the place
# of an object store (``dags/on_disk.py``).
STATUS_OUT = "JAT_STATUS_OUT"

WINDOW_S = 60.0  # the rate of a run is that of so many seconds
WRITE_S, REMOTE_WRITE_S = 5.0, 20.0  # to a disk and to Ray; to an object store, where each write is paid for


class StageRun:
    """The run of a stage in this process.

    Args:
        status: what there is to tell; changed only under ``changing``.
        out: where to write it; None for nowhere.
        disk: where outputs are, if that is a disk.
    """

    def __init__(self, status: StageStatus, out: Path | None = None, disk: Path | None = None) -> None:
        self.status = status
        self.ask: Callable[[], int] | None = None  # how many are done, if other processes count
        self._out, self._disk = out, disk
        self._folder = out / FOLDER / status.stage if out else None
        self._failure = f"the status in {self._folder} cannot be written"
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._history = deque([(status.started, 0)])  # when and how many were done, back to the window's beginning
        self._knows_left = True

    def begin(self, unit: str, planned: int, knows_left: bool = True) -> None:
        """Count something from nothing on.

        Args:
            unit: what is counted, in the plural.
            planned: how many there are; 0 if nobody knows.
            knows_left: whether the time left follows from the rate; else whoever counts sets ``left_s``.
        """
        with self._lock:
            status, self.ask, self._knows_left = self.status, None, knows_left
            status.unit, status.planned, status.done, status.rejected, status.rate = unit, planned, 0, 0, 0.0
            status.left_s = None
            self._count_from(time.time())
            for task in status.tasks.values():
                task.planned = task.done = task.rejected = 0
                task.running.clear()

    def count_from_now(self) -> None:
        """Leave the time until now out of all rates; for what has to start before anything can be done."""
        with self._lock:
            if not self.status.done:
                self._count_from(time.time())

    def _count_from(self, now: float) -> None:
        self.status.counting_since = self.status.progressed = self.status.updated = now
        self._history = deque([(now, 0)])

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Tell what is done before the work begins; the time it takes counts in no rate."""
        with self.changing() as status:
            status.activity = activity
        try:
            yield
        finally:
            with self.changing() as status:
                status.activity = ""
            self.count_from_now()

    @contextlib.contextmanager
    def changing(self) -> Iterator[StageStatus]:
        """The status, for this thread to change."""
        with self._lock:
            status = self.status
            before = status.done
            yield status
            status.updated = time.time()
            if status.done != before:
                status.progressed = status.updated
                self._history.append((status.updated, status.done))
            if status.done != before or status.done != status.planned:
                self._renew_rate(status)

    def _renew_rate(self, status: StageStatus) -> None:
        history = self._history
        while len(history) > 1 and history[1][0] <= status.updated - WINDOW_S:
            history.popleft()
        since, done = history[0]
        is_over = status.state != RUNNING or status.done == status.planned
        lately = (status.done - done) / max(status.updated - since, 1e-9)
        status.rate = status.done / status.seconds if is_over else lately
        if self._knows_left:
            status.left_s = (status.planned - status.done) / lately if lately and status.planned else None

    def write(self, is_last: bool = False) -> None:
        """Renew the file and the metrics; ``is_last`` if this process may end next.

        What goes wrong is logged: a run need not end for its status.
        """
        with self._writing:
            if self._out is None or self._folder is None:
                return
            status = self._snapshot()
            with side_effect(self._failure):
                # A folder that is not there yet is the stage's own to make, or to refuse.
                if not is_local(self._out) or self._out.is_dir():
                    write_json(self._folder / status.file_name, status)
            with side_effect(f"the metrics of {self.status.stage} cannot be told"):
                publish(status, is_last)

    def _snapshot(self) -> StageStatus:
        """What to write, so that no work waits until that has been written."""
        with self.changing() as status:
            with side_effect(f"the progress of {status.stage} cannot be asked for"):
                if self.ask is not None:
                    status.done = self.ask()
                status.driver_bytes = resident_bytes()
                if self._disk is not None and self._disk.is_dir():
                    status.disk_free_bytes = shutil.disk_usage(self._disk).free
        with self._lock:
            return copy.deepcopy(status)

    def end(self, state: str, error: str) -> None:
        """Write that the run has ended."""
        with self.changing() as status:
            status.state, status.error, status.activity, status.left_s = state, error, "", None
            for count in status.tasks.values():
                count.running.clear()
        self.write(is_last=True)

    def start(self) -> None:
        """Write that the run has begun, in the place of runs on the same tasks that have ended.

        The times that those measured are carried on.
        """
        earlier: list[StageStatus] = []
        with side_effect(self._failure):
            earlier = [run for run in self._runs() if run.task == self.status.task and not run.is_running]
        for before in earlier:
            for name, task in before.tasks.items():
                mine = self.status.tasks.setdefault(name, TaskCount())
                mine.timed += task.timed
                mine.busy_s += task.busy_s
        self.write()
        with side_effect(self._failure):
            for before in earlier:
                if self._folder and before.file_name != self.status.file_name:
                    (self._folder / before.file_name).unlink(missing_ok=True)

    def _runs(self) -> list[StageStatus]:
        return read_statuses(self._out, self.status.stage) if self._out else []

    def keep_writing(self, stop: threading.Event) -> None:
        """Until told to stop; for a thread of its own."""
        interval_s = WRITE_S if self._out is None or is_local(self._out) else REMOTE_WRITE_S
        written = time.monotonic()
        while not stop.wait(WRITE_S):
            if time.monotonic() - written >= interval_s:
                self.write()
                written = time.monotonic()
            else:
                with side_effect(f"the metrics of {self.status.stage} cannot be told"):
                    publish(self._snapshot(), is_last=False)


_current: list[StageRun] = []  # at most one


def current_stage() -> StageRun:
    """The run that this process reports, or one that nobody reads."""
    return _current[0] if _current else StageRun(StageStatus("", "", ""))


@contextlib.contextmanager
def reported(stage: str, out: Path, task: str = "*") -> Iterator[StageRun]:
    """Report the run of a stage while the block lasts, and how it ended.

    With ``RAY_ADDRESS`` this process joins that cluster, whose metrics tell of it.

    Args:
        stage: its name, as in ``make NAME``.
        out: root of all outputs.
        task: the tasks it is about, as the options say it; all if they say nothing.

    Raises:
        UserError: nothing answers at ``RAY_ADDRESS``.
    """
    now = time.time()
    told = os.environ.get(STATUS_OUT)
    place = location(told) if told else out.absolute()
    status = StageStatus(stage, task, redacted(str(place)), started=now, updated=now, progressed=now)
    live = StageRun(status, place, out.absolute() if is_local(out) else None)
    stop = threading.Event()
    thread = threading.Thread(target=live.keep_writing, args=(stop,), name="status", daemon=True)
    state, text = DONE, ""
    with stop_signals():
        _current.append(live)
        try:
            live.start()
            thread.start()
            if os.environ.get("RAY_ADDRESS"):
                from pipeline.runtime.cluster import connect

                connect(1)
            yield live
        except BaseException as error:
            state, text = _end_of(error)
            raise
        finally:
            _current.clear()
            stop.set()
            if thread.is_alive():
                thread.join()
            live.end(state, text)


def _end_of(error: BaseException) -> tuple[str, str]:
    """State and line of a run that ended so."""
    is_exit = isinstance(error, SystemExit) and error.code in (signal.SIGTERM, STOPPED_CODE)
    if stop_requested() or is_exit or isinstance(error, KeyboardInterrupt):
        return STOPPED, ""
    line = first_line(error) if isinstance(error, Exception) else ""
    return FAILED, redacted(line or repr(error))
