from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.runtime.status import read_statuses
from pipeline.stopping import deferred_stop, raise_stop, stop_requested, stop_signals

# A stage that has a pool of Ray at work when it is asked to end; Ray sets signal handlers of its own.
COMMAND = """
import sys, time
from pathlib import Path
from pipeline.cli import run
from pipeline.runtime.pool import run_jobs
from pipeline.runtime.stage import reported

def work(job):
    print("at work", flush=True)
    time.sleep(100)

def main():
    with reported("collect", Path(sys.argv[1])):
        list(run_jobs(work, ["a"], 1))

if __name__ == "__main__":
    run("stage_with_a_pool")
"""


def test_a_signal_ends_the_block_as_python_and_shells_have_it() -> None:
    with pytest.raises(SystemExit) as ended, stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143
    with pytest.raises(KeyboardInterrupt), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert not stop_requested()


@pytest.mark.parametrize("error", [RuntimeError("its worker died"), SystemExit(1)])
def test_whatever_a_signal_leads_to_the_exit_code_is_that_of_the_signal(error: BaseException) -> None:
    with pytest.raises(SystemExit) as ended, stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise error from None  # as Ray does, which turns exits into its own
    assert ended.value.code == 143


def test_work_may_save_itself_first_and_is_told_once_however_many_signals_come() -> None:
    told: list[str] = []
    with pytest.raises(SystemExit) as ended, stop_signals():
        with deferred_stop(lambda: told.append("stop")):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop_requested() and told == ["stop"]
            told.append("saved")
            raise_stop()
    assert (ended.value.code, told) == (143, ["stop", "saved"])


def test_a_second_ctrl_c_ends_at_once_what_would_save_itself_first() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals(), deferred_stop():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested()
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was deferred, too")


def test_in_another_thread_nothing_is_handled_and_nothing_breaks() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done: list[bool] = []

    def work() -> None:
        with stop_signals(), deferred_stop():
            done.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("whole_group", [False, True])
def test_sigterm_ends_a_stage_whose_ray_is_at_work_as_stopped_with_143_and_without_a_stack(
    tmp_path: Path, whole_group: bool
) -> None:
    """To the process alone, as Kubernetes sends it, and to its whole group, as ``timeout`` does. Starts a Ray."""
    (tmp_path / "stage_with_a_pool.py").write_text(COMMAND)
    paths = [str(tmp_path), os.environ["PYTHONPATH"]]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "stage_with_a_pool.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout is not None
    with process.stdout as output:
        said = []
        for line in output:
            said.append(line)
            if "at work" in line:
                (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, "".join(said)
    (status,) = read_statuses(tmp_path)
    assert (status.state, status.error) == ("stopped", "")
    text = "".join(said)
    assert "stopped; run the same command again to go on" in text
    assert "Traceback" not in text and "SIGTERM received" not in text
