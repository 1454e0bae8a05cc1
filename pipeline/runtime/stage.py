"""Tracks the status of the stage that runs in this process, and writes it periodically.

Commands wrap their work in ``with reported(...)``. A background thread writes the status every few seconds. Code that
counts units of work, such as ``pipeline/runtime/progress.py``, gets the run from ``current_stage``.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import UserError, first_line
from pipeline.files import check_output_root, is_local, location, write_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.heartbeat import resident_bytes
from pipeline.runtime.metrics import publish
from pipeline.runtime.status import DONE, FAILED, RUNNING, STOPPED, StageStatus, TaskCount, read_statuses
from pipeline.secrets import redacted
from pipeline.side_effects import side_effect
from pipeline.stopping import STOPPED_CODE, stop_requested, stop_signals

log = logging.getLogger(__name__)

# Environment variable with the output root to which the status is written instead of ``--out``. ``dags/on_disk.py``
# sets it when it runs a stage on a local disk on behalf of an object store.
STATUS_OUT = "JAT_STATUS_OUT"

WINDOW_S = 60.0  # length of the window over which the current rate is computed
WRITE_S, REMOTE_WRITE_S = 5.0, 20.0  # to a disk and to Ray; to an object store, where each write costs money


class StageRun:
    """The run of a stage in this process.

    Args:
        status: the run's status; changed only inside ``changing``.
        out: output root below which the status is written; None to write none.
        disk: folder of the outputs, if they are on a local disk.
    """

    def __init__(self, status: StageStatus, out: Path | None = None, disk: Path | None = None) -> None:
        self.status = status
        self.ask: Callable[[], int] | None = None  # returns the number done, if other processes count
        self._out, self._disk = out, disk
        self._folder = RunLayout(out).status(status.stage) if out else None
        self._failure = f"the status in {self._folder} cannot be written"
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._history = deque([(status.started, 0)])  # (time, done) since the window's start
        self._knows_left = True

    def begin(self, unit: str, planned: int, knows_left: bool = True) -> None:
        """Start to count a unit from zero.

        Args:
            unit: what is counted, in the plural.
            planned: total number of units; 0 if unknown.
            knows_left: whether to compute ``left_s`` from the rate; if False, the caller sets it.
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
        """Exclude the time until now from all rates; for start-up time before the first unit."""
        with self._lock:
            if not self.status.done:
                self._count_from(time.time())

    def _count_from(self, now: float) -> None:
        self.status.counting_since = self.status.progressed = self.status.updated = now
        self._history = deque([(now, 0)])

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Show ``activity`` in the status during the block; its time is excluded from all rates."""
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
        """Lock the status and yield it for changes by this thread."""
        with self._lock:
            status = self.status
            before = status.done
            yield status
            now = time.time()
            if now < status.updated:  # the clock was set back
                self._shift(status, now - status.updated)
            status.updated = now
            if status.done != before:
                status.progressed = status.updated
                self._history.append((status.updated, status.done))
            if status.done != before or status.done != status.planned:
                self._renew_rate(status)

    def _shift(self, status: StageStatus, seconds: float) -> None:
        """Move all past times, so that the time spent stays what it was and no rate becomes negative or endless."""
        self._history = deque((at + seconds, done) for at, done in self._history)
        status.counting_since += seconds
        status.progressed += seconds

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
        """Write the status file and the metrics; ``is_last`` if the process may exit afterwards.

        Errors are logged: a failed status write must not abort the run.
        """
        with self._writing:
            if self._out is None or self._folder is None:
                return
            status = self._snapshot()
            with side_effect(self._failure):
                # Do not create OUT here: the stage validates and creates it.
                if not is_local(self._out) or self._out.is_dir():
                    write_json(self._folder / status.file_name, status)
            with side_effect(f"the metrics of {self.status.stage} cannot be told"):
                publish(status, is_last)

    def _snapshot(self) -> StageStatus:
        """Copy the status, so that the lock is not held while it is written."""
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
        """Write the first status, and remove the statuses of earlier runs on the same tasks that have ended.

        The earlier runs' ``timed`` and ``busy_s`` are added to this run's.
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
        """Write the status periodically until ``stop`` is set; runs in its own thread."""
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
    """Return the run that this process reports, or a dummy run if there is none."""
    return _current[0] if _current else StageRun(StageStatus("", "", ""))


@contextlib.contextmanager
def reported(stage: str, out: Path, task: str = "*", needs_disk: bool = False) -> Iterator[StageRun]:
    """Report the status of a stage's run during the block, and its final state.

    With ``RAY_ADDRESS`` set, this process joins that cluster and exports its metrics there.

    Args:
        stage: the stage's name, as in ``make NAME``.
        out: root of all outputs.
        task: the run's tasks, in the syntax of the ``--task`` option; all by default.
        needs_disk: whether the stage works only in folders of this machine.

    Raises:
        UserError: the output root cannot be used, or nothing listens at ``RAY_ADDRESS``.
    """
    if needs_disk and not is_local(out):
        raise UserError(
            f"{stage} needs a disk, and {out} is in an object store; run `jat on-disk --stage {stage} --out {out} "
            f"--{_other_options()}`, which fetches what it reads and sends what it makes"
        )
    check_output_root(out)
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


def _other_options() -> str:
    """Return what this command was given besides ``--out``, with a space before it."""
    words, rest = sys.argv[1:], []
    while words:
        word = words.pop(0)
        if word == "--out":
            words = words[1:]
        elif not word.startswith("--out="):
            rest.append(word)
    return f" {shlex.join(rest)}" if rest else ""


def _end_of(error: BaseException) -> tuple[str, str]:
    """Return the final state and the error line of a run that ended with ``error``."""
    is_exit = isinstance(error, SystemExit) and error.code in (signal.SIGTERM, STOPPED_CODE)
    if stop_requested() or is_exit or isinstance(error, KeyboardInterrupt):
        return STOPPED, ""
    line = first_line(error) if isinstance(error, Exception) else ""
    return FAILED, redacted(line or repr(error))
