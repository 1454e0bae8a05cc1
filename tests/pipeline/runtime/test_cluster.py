from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import JobsFailedError, UserError
from pipeline.runtime.cluster import _check_temporary_folder, _start_embedded, connect


def listening() -> dict[str, str]:
    """Addresses of the sockets of this machine that wait for connections, in hex, by inode."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {words[9]: words[1] for words in lines if words[3] == "0A"}


def addresses_of(process: Any) -> dict[str, set[str]]:
    """Where a process and all that it has started listen, by command line."""
    found: dict[str, set[str]] = {}
    known = listening()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            handles = [str(handle.readlink()) for handle in Path(f"/proc/{one.pid}/fd").iterdir()]
            inodes = {handle.removeprefix("socket:[").removesuffix("]") for handle in handles}
            if addresses := {known[inode].partition(":")[0] for inode in inodes & known.keys()}:
                found.setdefault(" ".join(one.cmdline()), set()).update(addresses)
    return found


@pytest.mark.usefixtures("one_worker")
def test_an_embedded_ray_listens_on_loopback_alone_and_leaves_no_token_in_the_environment() -> None:
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    # The agent has the metrics; it comes up last.
    parts = ("gcs_server", "raylet", "RuntimeEnvAgent", "DashboardAgent")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        found = addresses_of(psutil.Process())
        if all(any(part in words for words in found) for part in parts):
            break
        time.sleep(0.5)
    assert [part for part in parts if not any(part in words for words in found)] == []
    assert set().union(*found.values()) <= loopback, found
    assert "RAY_AUTH_TOKEN" not in os.environ and "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ
    # Neither an autoscaler nor the server of a dashboard: a third of the processor time of a start.
    needless = ("_private/monitor.py", "dashboard/dashboard.py")
    started = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert [words for words in started if any(part in words for part in needless)] == []


def test_an_embedded_ray_needs_no_home_and_other_tokens_become_the_owner_s_alone(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("f" * 64)
    token.chmod(0o644)
    code = "import ray, pipeline.runtime.cluster as c; c.connect(1); print(ray.nodes()[0]['NodeManagerAddress'])"
    for home in ("/proc/nowhere", str(tmp_path)):
        environ = {**os.environ, "HOME": home}
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
        assert said.stdout == "127.0.0.1\n"
    assert (token.read_text(), token.stat().st_mode & 0o777) == ("f" * 64, 0o600)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/tmp/" + "x" * 40, r"TMPDIR=/tmp/x+ has 45 bytes; .* it may have 4\d: set TMPDIR to a shorter path"),
        ("/tmp/j\u00fcrgen", "is not ASCII, which Ray needs; set TMPDIR"),
    ],
)
def test_a_temporary_folder_that_ray_cannot_use_is_the_reason_given(
    folder: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", folder)
    with pytest.raises(UserError, match=reason):
        _check_temporary_folder()


def test_what_the_system_refuses_is_the_reason_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", failing([FileNotFoundError(2, "No such file or directory", "/nowhere")]))
    with pytest.raises(UserError, match=r"Ray cannot start below .*'/nowhere'\); set TMPDIR to another folder"):
        _start_embedded(1)


def failing(errors: list[Exception]) -> Any:
    """Raises one after the other, then works."""

    def init(**options: Any) -> None:
        if errors:
            raise errors.pop(0)

    return init


def test_a_ray_that_was_slow_is_started_once_more_and_a_second_failure_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)
    slow = [Exception("The current node timed out during startup"), ConnectionError("no answer")]
    monkeypatch.setattr("ray.init", failing(slow[:1]))
    _start_embedded(1)
    monkeypatch.setattr("ray.init", failing(slow))
    with pytest.raises(JobsFailedError, match=r"twice \(no answer\).*session_latest/logs"):
        _start_embedded(1)


@pytest.mark.usefixtures("one_worker")
def test_connecting_again_keeps_the_connection() -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    connect(7)
    assert ray.get_runtime_context().get_job_id() == before


def test_what_hangs_where_python_cannot_interrupt_it_ends_the_process() -> None:
    code = (
        "import ctypes, sys\n"
        "from pipeline.runtime.cluster import _no_longer_than\n"
        "with _no_longer_than(30): pass\n"
        "with _no_longer_than(0.5): ctypes.PyDLL(None).sleep(60)\n"  # holds Python's lock all the time
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (result.returncode, time.monotonic() - started < 30) == (1, True)
    assert "Timeout" in result.stderr


def test_lines_of_workers_have_no_colours_in_a_file(tmp_path: Path) -> None:
    code = (
        "import logging, pathlib, sys, time\n"
        "from pipeline.cli import configure_logging\n"
        "from pipeline.runtime.pool import run_jobs\n"
        "from tests.pipeline.runtime.test_pool import log_three_lines\n"
        "configure_logging(logging.INFO)\n"
        "list(run_jobs(log_three_lines, ['a'], 1))\n"
        "while '2 of 3' not in pathlib.Path(sys.argv[1]).read_text(): time.sleep(0.1)\n"  # they come by and by
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_COLOR_PREFIX")}
    said = tmp_path / "said.txt"
    with said.open("w") as handle:
        words = [sys.executable, "-c", code, str(said)]
        subprocess.run(words, stdout=handle, stderr=handle, check=True, timeout=100, env=environ)
    assert "(Worker pid=" in said.read_text()
    assert "\x1b" not in said.read_text()
