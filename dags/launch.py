"""Start a stage's command from a scheduler: in a process here, or as a job on a Ray cluster; follow it; stop it.

Where commands run is the scheduler's setting, not the stage's:

    JAT_PYTHON       the Python that has the pipeline installed; the scheduler's own if not given
    JAT_RAY_JOBS     address of a Ray dashboard, such as http://head:8265: every command is submitted there as a job
    JAT_RAY_PYTHON   the Python on that cluster; ``python`` if not given

A command started here that needs Ray itself uses the cluster of ``RAY_ADDRESS``, or starts its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from dags.stages import Stage, command

BAD_INPUT = 2  # exit code of a command whose input no retry makes better
# What the client of a Ray job says when the job failed; its own exit code is 1 then, whatever the job's was.
JOB_ENDED = re.compile(r"command failed with exit code (\d+)")
GRACE_S = 30.0  # between asking a command to end and ending it


class StageError(RuntimeError):
    """A command failed.

    Attributes:
        is_permanent: whether starting it again would fail in the same way.
    """

    def __init__(self, message: str, is_permanent: bool) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class Launcher:
    """One stage command.

    Args:
        stage: which stage.
        options: of the command, by name.
        environ: settings, see above.
    """

    def __init__(self, stage: Stage, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("JAT_RAY_JOBS")
        self._python = environ.get("JAT_PYTHON", sys.executable)
        self._job = f"jat-{stage.name}-{uuid.uuid4().hex[:12]}"
        if self._address:
            stage_words = command(stage, options, environ.get("JAT_RAY_PYTHON", "python"))
            self.words = self._ray("submit", "--submission-id", self._job, "--", *stage_words)
        else:
            self.words = command(stage, options, self._python)
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def run(self, say: Callable[[str], None]) -> None:
        """Run the command to its end, handing every line it prints to ``say``.

        Raises:
            StageError: it ended with an error, or was stopped.
        """
        self._process = subprocess.Popen(
            self.words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # the whole group can be stopped
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one system call, which takes no lock
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        last = error = ""
        code_of_job: int | None = None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in map(str.rstrip, output):
                say(line)
                last = line or last
                if line.startswith("error: "):
                    error = line.removeprefix("error: ")
                if self._address and (found := JOB_ENDED.search(line)):
                    code_of_job = int(found[1])
        code = self._process.wait()
        if code and code_of_job is not None:
            code = code_of_job
        if self._is_stopped:
            raise StageError("stopped from outside; run it again to go on", is_permanent=False)
        if code:
            raise StageError(error or f"ended with exit code {code}: {last}", is_permanent=code == BAD_INPUT)

    def stop(self) -> None:
        """End the command and what it started; it can go on later, nothing it has made is lost."""
        self._is_stopped = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        if self._address:
            subprocess.run(self._ray("stop", self._job), check=False, capture_output=True, timeout=GRACE_S)
        signal_group(process, signal.SIGTERM)
        threading.Thread(target=_kill_later, args=(process,), daemon=True).start()

    def _ray(self, verb: str, *words: str) -> list[str]:
        assert self._address is not None
        return [self._python, "-m", "ray.scripts.scripts", "job", verb, "--address", self._address, *words]


def _die_with_parent() -> None:
    """In the child: end when the scheduler's process is killed and cannot call ``stop`` (Linux, ``prctl(2)``)."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Send a signal to a process that has a session of its own, and to all that it has started there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _kill_later(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    signal_group(process, signal.SIGKILL)


def check_out(out: str) -> None:
    """Refuse an output root that cannot be written.

    Raises:
        UserError: names the folder and the fix.
    """
    from pipeline.errors import UserError
    from pipeline.files import is_local, location

    path = location(out)
    if not is_local(path):
        return  # an object store says so at the first write
    if not path.is_absolute():
        raise UserError(f"out is {out!r}; a scheduler has no working folder: give an absolute path or a URL")
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"out is {out!r}, but {existing} is not a folder this process may write; choose another, or allow it"
        )
