"""Start a stage's command from a scheduler: in a process here, or as a job on a Ray cluster; follow it; stop it.

Where commands run is the scheduler's setting, not the stage's:

    JAT_PYTHON       the Python that has the pipeline installed; the scheduler's own if not given
    JAT_RAY_JOBS     address of a Ray dashboard, such as http://head:8265: every command is submitted there as a job
    JAT_RAY_PYTHON   the Python on that cluster; ``python`` if not given
    JAT_RAY_RESERVE  what a stage's own process reserves there, apart from its workers, as JSON:
                     {"train": {"num-gpus": 1, "num-cpus": 8, "memory": 34359738368}}

A command started here that needs Ray itself uses the cluster of ``RAY_ADDRESS``, or starts its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dags.stages import ALL_STAGES, Stage, command
from pipeline.secrets import redacted

BAD_INPUT = 2  # exit code of a command whose input no retry makes better
# What the client of a Ray job says when the job failed; its own exit code is 1 then, whatever the job's was.
JOB_ENDED = re.compile(r"command failed with exit code (\d+)")
# What it says when the cluster has the job. What it prints before is of interest only if it does not come so far.
JOB_ACCEPTED = "submitted successfully"
# When it does not know how the job goes on, because the head died or only the connection broke.
JOB_LOST = "WebSocket connection closed unexpectedly"
RESERVABLE = ("num-cpus", "num-gpus", "memory")
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

    Raises:
        StageError: a setting is not understood.
    """

    def __init__(self, stage: Stage, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("JAT_RAY_JOBS")
        self._python = environ.get("JAT_PYTHON", sys.executable)
        self._job = f"jat-{stage.name}-{uuid.uuid4().hex[:12]}"
        if self._address:
            stage_words = command(stage, options, environ.get("JAT_RAY_PYTHON", "python"))
            reserve = _reserve(stage, environ.get("JAT_RAY_RESERVE", "{}"))
            self.words = self._ray(
                "submit", "--log-color", "false", "--submission-id", self._job, *reserve, "--", *stage_words
            )
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
        output = _JobOutput(say, self._address) if self._address else _Output(say)
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                output.take(line.rstrip())
        code = self._process.wait()
        if self._is_stopped:
            raise StageError("stopped from outside; run it again to go on", is_permanent=False)
        if code:
            if isinstance(output, _JobOutput) and output.is_lost:
                self._stop_job()  # or it would still be there when it is submitted again
            raise output.error(code)

    def stop(self) -> None:
        """End the command and what it started; it can go on later, nothing it has made is lost."""
        self._is_stopped = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        if self._address:
            self._stop_job()
        signal_group(process, signal.SIGTERM)
        threading.Thread(target=_kill_later, args=(process,), daemon=True).start()

    def _stop_job(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(self._ray("stop", self._job), check=False, capture_output=True, timeout=GRACE_S)

    def _ray(self, verb: str, *words: str) -> list[str]:
        assert self._address is not None
        return [self._python, "-m", "ray.scripts.scripts", "job", verb, "--address", self._address, *words]


class _Output:
    """The lines of a command, and what they say of its end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = self._error = ""

    def take(self, line: str) -> None:
        self._say(line)
        self._last = line or self._last
        if line.startswith("error: "):
            self._error = line.removeprefix("error: ")

    def error(self, code: int) -> StageError:
        return StageError(self._error or f"ended with exit code {code}: {self._last}", is_permanent=code == BAD_INPUT)


class _JobOutput(_Output):
    """Of a command that is a Ray job: the client first submits it, then hands on what it prints."""

    def __init__(self, say: Callable[[str], None], address: str) -> None:
        super().__init__(say)
        self._place = f"JAT_RAY_JOBS={redacted(address)}"
        self._is_accepted = self.is_lost = False
        self._before: list[str] = []
        self._code: int | None = None

    def take(self, line: str) -> None:
        if not self._is_accepted:
            self._is_accepted = JOB_ACCEPTED in line
            self._before.append(line)
            return
        if found := JOB_ENDED.search(line):
            self._code = int(found[1])
        self.is_lost = JOB_LOST in line
        super().take(line)

    def error(self, code: int) -> StageError:
        if self.is_lost:
            return StageError(
                f"the connection to {self._place} broke, or its head died; run it again to go on", is_permanent=False
            )
        if self._is_accepted:
            return super().error(code if self._code is None else self._code)
        said = "\n".join(self._before)
        if "Failed to connect to Ray" in said:
            return StageError(f"no Ray dashboard at {self._place}; start the cluster, or correct the address", True)
        if "AuthenticationError" in said:
            return StageError(
                f"the Ray cluster at {self._place} refuses this process; put the cluster's token into RAY_AUTH_TOKEN "
                f"(or its file into RAY_AUTH_TOKEN_PATH) and set RAY_AUTH_MODE=token",
                is_permanent=True,
            )
        for line in self._before:
            super().take(line)
        return super().error(code)


def _reserve(stage: Stage, text: str) -> list[str]:
    """Options of the client for what ``JAT_RAY_RESERVE`` says of a stage."""
    example = '{"train": {"num-gpus": 1, "num-cpus": 8}}'
    try:
        wanted = {name: {what: float(x) for what, x in given.items()} for name, given in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise StageError(f"JAT_RAY_RESERVE is {text!r}; give JSON such as {example}", is_permanent=True) from None
    stages = {each.name for each in ALL_STAGES}
    for allowed, names in ((stages, wanted), (set(RESERVABLE), {what for given in wanted.values() for what in given})):
        if unknown := set(names) - allowed:
            raise StageError(
                f"JAT_RAY_RESERVE has {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(allowed))}; "
                f"an example: {example}",
                is_permanent=True,
            )
    amounts = wanted.get(stage.name, {})
    return [f"--entrypoint-{what}={int(x) if x.is_integer() else x}" for what, x in amounts.items()]


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
    """Refuse a folder that cannot be written, as an output root.

    Raises:
        UserError: names the folder and the fix.
    """
    from pipeline.errors import UserError

    if "://" in out:
        return  # an object store says so at the first write; its client is not installed beside Airflow
    path = Path(out)
    if not path.is_absolute():
        raise UserError(f"out is {out!r}; a scheduler has no working folder: give an absolute path or a URL")
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"out is {out!r}, but {existing} is not a folder this process may write; choose another, or allow it"
        )
