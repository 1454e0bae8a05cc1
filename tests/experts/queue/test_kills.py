"""The queue and its trainers as processes, killed at any time: nothing is lost, double, or left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from experts.queue.states import DONE, MEASURING, STOPPED, TRAINING, WAITING, EntryState, read_list, read_state
from experts.training import read_progress
from pipeline.files import process_exists, read_json
from tests.experts.queue.fake.train import CORE_SECONDS_A_STEP

pytestmark = pytest.mark.slow

STEPS = 300
QUEUE = f"""
[[training]]
task = "mujoco-reacher"
algorithm = "fake"
steps = {STEPS}
[[training]]
task = "mujoco-pendulum"
algorithm = "fake"
"""
LIMIT_S = 300.0


def start(out: Path, step_s: float = 0.05) -> subprocess.Popen[bytes]:
    """In a session of its own, as a scheduler starts it; a step of the fake trainer takes so long."""
    path = out / "queue.toml"
    path.write_text(QUEUE)
    words = ["--queue", str(path), "--out", str(out), "--episodes", "2"]
    with (out / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.experts.queue.command", *words],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "FAKE_STEP_S": str(step_s)},
        )


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, (out / "log").read_text()[-3000:]
        assert time.monotonic() < deadline, f"{what} did not come\n{(out / 'log').read_text()[-3000:]}"
        time.sleep(0.02)


def ledger(out: Path) -> list[tuple[int, int]]:
    """Process and number of every step that was ever made for the first entry."""
    path = out / "queue" / "mujoco-reacher" / "fake" / "ledger"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(process), int(step)) for process, step in (line.split() for line in lines)]


def state(out: Path, number: int = 0) -> EntryState:
    return read_state(out, read_list(out)[number])


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while process_exists(process) and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.timeout(1200)  # Ray starts four times, on a machine that may be busy
def test_killed_and_stopped_at_any_time_the_queue_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    out = tmp_path
    folder = out / "queue" / "mujoco-reacher" / "fake"

    # The queue itself is killed: its trainer ends, too.
    first = start(out)
    wait_for(lambda: len(ledger(out)) >= 25, "the 25th step", first, out)
    orphan = state(out).process
    assert state(out).state == TRAINING
    threads = [int(path.name) for path in Path(f"/proc/{orphan}/task").iterdir()]
    assert max(os.getpriority(os.PRIO_PROCESS, thread) for thread in threads) >= 10  # each has a niceness of its own
    first.kill()
    first.wait()
    deadline = time.monotonic() + 60
    while process_exists(orphan):
        assert time.monotonic() < deadline, "the trainer goes on without its queue"
        time.sleep(0.05)

    # A trainer is killed: the queue resumes it by itself. Then the queue is told to stop, with all of its session.
    second = start(out)
    seen = len(ledger(out))
    wait_for(lambda: len(ledger(out)) >= seen + 25, "25 more steps", second, out)
    kill(state(out).process)
    seen = len(ledger(out))
    wait_for(lambda: len(ledger(out)) >= seen + 25, "25 steps after the kill", second, out)
    os.killpg(second.pid, signal.SIGTERM)
    assert second.wait(LIMIT_S) == 128 + signal.SIGTERM, (out / "log").read_text()[-3000:]
    stopped = state(out)
    assert (stopped.state, state(out, 1).state) == (STOPPED, WAITING)
    assert not process_exists(stopped.process)
    assert read_json(folder / "checkpoint.json")["steps"] == ledger(out)[-1][1] == read_progress(folder).steps

    third = start(out, step_s=0.0)
    assert third.wait(LIMIT_S) == 0, (out / "log").read_text()[-3000:]
    for number in (0, 1):
        assert state(out, number).state == DONE
        (measured,) = (out / "experts" / read_list(out)[number].task).glob("fake-*/measurement.json")
        assert measured.parent.name == state(out, number).revision and len(read_json(measured)["seeds"]) == 2

    # The sum of all steps, each once, whatever was trained and lost.
    assert read_json(folder / "checkpoint.json")["total"] == STEPS * (STEPS + 1) // 2
    steps = ledger(out)
    processes = [process for process, _ in groupby(steps, key=lambda step: step[0])]
    assert len(processes) == len(set(processes)) == 4  # one after another, never two at a time
    begins = [next(group)[1] for _, group in groupby(steps, key=lambda step: step[0])]
    assert begins[0] == 1 and all(begin % 10 == 1 for begin in begins[:3]), "each resumed from a checkpoint"
    doubled = {step: count for step, count in Counter(number for _, number in steps).items() if count > 1}
    assert len(doubled) <= 2 * 10, "more than the steps since the last checkpoint were made again"
    # What was spent is what was done, lost steps included; a kill may come between a step and its note.
    spent = read_progress(folder).core_seconds / CORE_SECONDS_A_STEP
    assert len(steps) - 2 <= spent <= len(steps)
    assert MEASURING not in {state(out, number).state for number in (0, 1)}
