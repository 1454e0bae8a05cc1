"""Launch a stage's command from a scheduler, as a local process or as a Ray job; stream its output; stop it.

The scheduler's environment configures where commands run:

    JAT_PYTHON       Python interpreter with the pipeline installed; the scheduler's own if not given
    JAT_RAY_JOBS     address of a Ray dashboard, such as http://head:8265: every command is submitted there as a job
    JAT_RAY_PYTHON   Python interpreter on that cluster; ``python`` if not given
    JAT_RAY_RESERVE  resources of a stage's driver process on the cluster, without those of its workers, as JSON
                     (memory in bytes): {"train": {"num-gpus": 1, "num-cpus": 8, "memory": 34359738368}}
    JAT_RAY_WAIT_MINUTES  minutes to wait for a cluster that is lost while a command runs, 10 if not given; the command
                     is then submitted again and resumes

The names of the user's own code, ``JAT_DOMAINS`` and ``JAT_FUNCTIONS``, reach a job as well; its files must be there.
A local command that needs Ray uses the cluster of ``RAY_ADDRESS``, or starts its own.
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
from pipeline.domain_files import variables_for_others
from pipeline.secrets import redacted

BAD_INPUT = 2  # exit code of a command for invalid input, which is not retried
# Output of the Ray job client when the job has failed; the client's own exit code is then 1 for any exit code of a job.
JOB_ENDED = re.compile(r"command failed with exit code (\d+)")
# Output of the client when the cluster has accepted the job. Earlier output matters only if the submission fails.
JOB_ACCEPTED = "submitted successfully"
# Output of the client when it has lost the job, because the head node died or only the connection broke.
JOB_LOST = "WebSocket connection closed unexpectedly"
RESERVABLE = ("num-cpus", "num-gpus", "memory")
GRACE_S = 50.0  # between SIGTERM and SIGKILL; Airflow itself waits 60 s
ASK_EVERY_S = 10.0  # interval of polling whether a lost cluster is back
MAX_SUBMISSIONS = 4  # per command; if the cluster is lost more often, the command itself may be the cause


class StageError(RuntimeError):
    """A command failed.

    Attributes:
        is_permanent: whether a retry would fail in the same way.
    """

    def __init__(self, message: str, is_permanent: bool) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


class Launcher:
    """Runs one stage command.

    Args:
        stage: stage to run.
        options: options of the command, by name.
        environ: environment with the settings of the module docstring.

    Raises:
        StageError: a setting is invalid.
    """

    def __init__(self, stage: Stage, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("JAT_RAY_JOBS")
        self._python = environ.get("JAT_PYTHON", sys.executable)
        self._wait_s = 60 * _minutes(environ.get("JAT_RAY_WAIT_MINUTES", "10"))
        self._job = f"jat-{stage.name}-{uuid.uuid4().hex[:12]}"
        if self._address:
            stage_words = command(stage, options, environ.get("JAT_RAY_PYTHON", "python"))
            reserve = _reserve(stage, environ.get("JAT_RAY_RESERVE", "{}"))
            named = variables_for_others(environ)
            own_code = ["--runtime-env-json", json.dumps({"env_vars": named})] if named else []
            self.words = self._ray(
                "submit", "--log-color", "false", "--submission-id", self._job, *reserve, *own_code, "--", *stage_words
            )
        else:
            self.words = command(stage, options, self._python)
        self._process: subprocess.Popen[str] | None = None
        self._stopped = threading.Event()

    def run(self, say: Callable[[str], None]) -> None:
        """Run the command until it exits, and pass every line of its output to ``say``.

        Raises:
            StageError: the command failed, or was stopped.
        """
        for submission in range(1, MAX_SUBMISSIONS + 1):
            output = _JobOutput(say, self._address) if self._address else _Output(say)
            code = self._follow(output)
            if self._stopped.is_set():
                break
            if code == 0:
                return
            if not isinstance(output, _JobOutput) or not output.is_lost:
                raise output.error(code)
            self._stop_job()  # if only the connection broke, the job still runs
            is_back = submission < MAX_SUBMISSIONS and self._wait_for_cluster(output, say)
            if self._stopped.is_set():
                break
            if not is_back:
                raise output.error(code)
            self._rename_job()
        raise StageError("stopped from outside; run it again to go on", is_permanent=False)

    def _follow(self, output: _Output) -> int:
        """Start the command, process its output until it exits, and return its exit code."""
        self._process = subprocess.Popen(
            self.words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that the whole process group can be killed
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one system call, which takes no lock
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        if self._stopped.is_set():  # `stop` was called before this process started
            self.stop()
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                output.take(line.rstrip())
        return self._process.wait()

    def _wait_for_cluster(self, output: _JobOutput, say: Callable[[str], None]) -> bool:
        """Wait for a lost cluster; whether it accepts jobs again before the timeout. False if stopped meanwhile."""
        say(f"lost {output.place}; waiting up to {self._wait_s / 60:g} minutes for it, to submit again")
        deadline = time.monotonic() + self._wait_s
        while not self._stopped.is_set() and time.monotonic() < deadline:
            if self._ask("list") == 0:
                say(f"{output.place} is back")
                return True
            self._stopped.wait(min(ASK_EVERY_S, max(deadline - time.monotonic(), 0)))
        return False

    def _rename_job(self) -> None:
        """Choose a new job id, because a cluster accepts each id only once."""
        old, self._job = self._job, f"{self._job[:-12]}{uuid.uuid4().hex[:12]}"
        self.words = [self._job if word == old else word for word in self.words]

    def stop(self) -> None:
        """Terminate the command and its child processes; its outputs are kept, and a later run resumes from them."""
        self._stopped.set()
        process = self._process
        if process is None or process.poll() is not None:
            return
        if self._address:
            self._stop_job()
        process.terminate()  # the command saves its work and terminates its own child processes
        threading.Thread(target=_kill_later, args=(process,), daemon=True).start()

    def _stop_job(self) -> None:
        self._ask("stop", self._job)

    def _ask(self, *words: str) -> int | None:
        """Run a short Ray job command and return its exit code; None if it times out."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return subprocess.run(self._ray(*words), check=False, capture_output=True, timeout=GRACE_S).returncode
        return None

    def _ray(self, verb: str, *words: str) -> list[str]:
        assert self._address is not None
        return [self._python, "-m", "ray.scripts.scripts", "job", verb, "--address", self._address, *words]


class _Output:
    """Output of a command, from which its error message is extracted."""

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
    """Output of the Ray job client: messages of the submission, followed by the output of the job."""

    def __init__(self, say: Callable[[str], None], address: str) -> None:
        super().__init__(say)
        self.place = f"JAT_RAY_JOBS={redacted(address)}"
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
                f"the connection to {self.place} broke, or its head died; run it again to go on", is_permanent=False
            )
        if self._is_accepted:
            return super().error(code if self._code is None else self._code)
        said = "\n".join(self._before)
        if "Failed to connect to Ray" in said:
            return StageError(f"no Ray dashboard at {self.place}; start the cluster, or correct the address", True)
        if "AuthenticationError" in said:
            return StageError(
                f"the Ray cluster at {self.place} refuses this process; put the cluster's token into RAY_AUTH_TOKEN "
                f"(or its file into RAY_AUTH_TOKEN_PATH) and set RAY_AUTH_MODE=token",
                is_permanent=True,
            )
        for line in self._before:
            super().take(line)
        return super().error(code)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes < float("inf"):
        raise StageError(f"JAT_RAY_WAIT_MINUTES is {text!r}; give a number of minutes, 0 for none", is_permanent=True)
    return minutes


def _reserve(stage: Stage, text: str) -> list[str]:
    """Options of the Ray job client for the resources of a stage in ``JAT_RAY_RESERVE``."""
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
    """Make the child die with the scheduler's process, which cannot call ``stop`` if killed (Linux, ``prctl(2)``)."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Send a signal to the whole process group of a process that was started in a new session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _kill_later(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    signal_group(process, signal.SIGKILL)


def check_out(out: str) -> None:
    """Check that an output root is writable.

    Raises:
        UserError: it is not; the message names the folder and the fix.
    """
    from pipeline.errors import UserError
    from pipeline.files import check_output_root

    if "://" in out:
        return  # not checked: the client of object stores is not installed with Airflow; the first write fails
    if not Path(out).is_absolute():
        raise UserError(f"out is {out!r}; a scheduler has no working folder: give an absolute path or a URL")
    check_output_root(Path(out))
