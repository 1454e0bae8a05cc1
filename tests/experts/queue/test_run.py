from __future__ import annotations

import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from collectors.status import StatusConfig, show
from experts.algorithms import ALGORITHMS
from experts.queue import run as queue
from experts.queue.entries import QueueEntry
from experts.queue.run import QueueConfig, export_unfinished, forget, run_queue
from experts.queue.states import (
    DONE,
    FAILED,
    MEASURING,
    STOPPED,
    TRAINING,
    WAITING,
    EntryReport,
    EntryState,
    change_state,
    read_reports,
    write_list,
)
from experts.queue.table import ASCII, queue_table, sparkline
from experts.store import TrainingPoint, read_expert
from experts.training import Budget, TrainingProgress, TrainJob, read_progress
from pipeline.errors import JobFailure, JobsFailedError, UserError
from pipeline.files import exclusive, read_json, write_json
from pipeline.runtime.pool import Control
from pipeline.runtime.status import read_statuses
from tests.experts.queue.command import FAKE
from tests.experts.queue.fake import recipes
from tests.experts.queue.fake import train as fake

REACHER, PENDULUM = QueueEntry("mujoco-reacher", "fake"), QueueEntry("mujoco-pendulum", "fake")
pytestmark = pytest.mark.usefixtures("nothing_embedded", "here")


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What a worker is told to stop with."""
    stop = threading.Event()
    monkeypatch.setattr("experts.training.STOP", stop)
    monkeypatch.setattr("pipeline.runtime.heartbeat.STOP", stop)
    return stop


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, stop: threading.Event) -> list[str]:
    """Jobs run in this process and by the rules of the pool, one after another; their names in this order."""
    begun: list[str] = []

    def run_jobs(
        function: Callable[[Any], Any],
        jobs: Sequence[Any],
        workers: int,
        resources: Any = None,
        supervision: Any = None,
        control: Control | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        waiting, failures = list(jobs), []
        while waiting and not (control and control.stop.is_set()):
            job = waiting.pop(0)
            begun.append(job.entry.name)
            try:
                result = function(job)
            except (RuntimeError, UserError) as error:
                failure = JobFailure(job, repr(error), False, isinstance(error, UserError))
                if control and control.try_again(failure):
                    waiting.insert(0, job)
                else:
                    failures.append(failure)
            else:
                yield job, result
        if failures:
            raise JobsFailedError(f"{len(failures)} failed: {failures[0]}", failures)

    monkeypatch.setattr(queue, "run_jobs", run_jobs)
    monkeypatch.setattr(queue, "connect", lambda workers: None)
    monkeypatch.setattr(queue.os, "nice", lambda by: 0)
    monkeypatch.setenv(queue.WORKER_NICENESS, "0")
    monkeypatch.setitem(ALGORITHMS, "fake", FAKE)
    return begun


def asked(out: Path, *entries: QueueEntry, **changes: Any) -> QueueConfig:
    """The queue with these entries as a file."""
    lines = []
    for entry in entries:
        lines += ["[[training]]", f'task = "{entry.task}"', f'algorithm = "{entry.algorithm}"']
        budgets = {name: getattr(entry, name) for name in ("steps", "core_hours", "target", "patience")}
        lines += [f"{name} = {value}" for name, value in budgets.items() if value is not None]
    path = out / "queue.toml"
    path.write_text("\n".join(lines))
    return QueueConfig(path, out, episodes=2, **changes)


def folder(out: Path, entry: QueueEntry) -> Path:
    return out / "queue" / entry.name


def found(out: Path) -> list[EntryState]:
    return [report.state for report in read_reports(out)]


def test_every_training_ends_measured_in_the_store_in_the_order_of_the_file(tmp_path: Path, here: list[str]) -> None:
    run_queue(asked(tmp_path, REACHER, PENDULUM))
    assert here == [REACHER.name, PENDULUM.name]
    for entry, state in zip((REACHER, PENDULUM), found(tmp_path), strict=True):
        assert state.state == DONE
        expert = read_expert(tmp_path / "experts" / entry.task / state.revision)
        assert len(read_json(expert.folder / "measurement.json")["seeds"]) == 2
        assert (tmp_path / "experts" / entry.task / "best.json").exists()
        assert read_json(folder(tmp_path, entry) / "checkpoint.json")["steps"] == 40
    run_queue(QueueConfig(None, tmp_path, episodes=2))  # the list of the last run: all is done
    assert len(here) == 2
    run_queue(QueueConfig(None, tmp_path, episodes=3))  # what is measured too little is only measured
    assert len(here) == 4 and read_progress(folder(tmp_path, REACHER)).core_seconds == 10.0
    assert len(read_json(expert.folder / "measurement.json")["seeds"]) == 3


def test_a_larger_budget_goes_on_from_the_last_checkpoint(tmp_path: Path, here: list[str]) -> None:
    run_queue(asked(tmp_path, REACHER, PENDULUM))
    first = found(tmp_path)[0].revision
    run_queue(asked(tmp_path, replace(REACHER, steps=60), PENDULUM))
    assert here == [REACHER.name, PENDULUM.name, REACHER.name]
    checkpoint = read_json(folder(tmp_path, REACHER) / "checkpoint.json")
    assert (checkpoint["steps"], checkpoint["total"]) == (60, 60 * 61 // 2)
    assert read_progress(folder(tmp_path, REACHER)).core_seconds == 60 * fake.CORE_SECONDS_A_STEP
    second = found(tmp_path)[0].revision
    assert second != first and (tmp_path / "experts" / REACHER.task / first / "expert.json").exists()


def test_a_real_trainer_needs_nothing_special(tmp_path: Path, here: list[str]) -> None:
    entry = QueueEntry("mujoco-pendulum", "ppo", steps=4096, core_hours=1.0)
    run_queue(asked(tmp_path, entry))
    first, spent = found(tmp_path)[0], read_progress(folder(tmp_path, entry)).core_seconds
    assert first.state == DONE and spent > 0
    run_queue(asked(tmp_path, replace(entry, steps=8192)))
    (state,) = found(tmp_path)
    expert = read_expert(tmp_path / "experts" / entry.task / state.revision)
    assert (expert.record.kind, expert.record.training["steps"]) == ("ppo", 8192)
    assert expert.record.training["core_seconds"] > spent
    assert len(read_json(expert.folder / "measurement.json")["seeds"]) == 2


def test_a_budget_of_processor_time_ends_a_training(tmp_path: Path) -> None:
    hours = 20 * fake.CORE_SECONDS_A_STEP / 3600
    run_queue(asked(tmp_path, replace(REACHER, core_hours=hours)))
    assert read_progress(folder(tmp_path, REACHER)).steps == 20
    (report,) = read_reports(tmp_path)
    assert (report.state.state, report.core_seconds_left) == (DONE, 0.0)


def test_what_fails_is_tried_again_three_times_and_keeps_nothing_waiting(tmp_path: Path, here: list[str]) -> None:
    (tmp_path / f"fault-{REACHER.task}").write_text("always")
    with pytest.raises(JobsFailedError, match="the simulator broke at step 0"):
        run_queue(asked(tmp_path, REACHER, PENDULUM))
    assert here == [REACHER.name] * 3 + [PENDULUM.name]
    failed, done = found(tmp_path)
    assert (failed.state, failed.failures, failed.reason) == (
        FAILED, 3, "RuntimeError('the simulator broke at step 0')",
    )  # fmt: skip
    assert done.state == DONE
    (tmp_path / f"fault-{REACHER.task}").unlink()
    run_queue(QueueConfig(None, tmp_path, episodes=2))
    assert found(tmp_path)[0].state == DONE and found(tmp_path)[0].failures == 0


def test_one_failure_costs_the_steps_since_the_last_checkpoint(tmp_path: Path, here: list[str]) -> None:
    (tmp_path / f"fault-{REACHER.task}").write_text("once")  # at step 15
    run_queue(asked(tmp_path, REACHER))
    assert here == [REACHER.name] * 2
    assert read_json(folder(tmp_path, REACHER) / "checkpoint.json")["total"] == 40 * 41 // 2
    assert read_progress(folder(tmp_path, REACHER)).core_seconds == 45 * fake.CORE_SECONDS_A_STEP


def test_failures_with_progress_between_them_are_not_added_up(tmp_path: Path) -> None:
    for steps in (10, 20, 30, 40):
        write_json(folder(tmp_path, REACHER) / "progress.json", {**vars(TrainingProgress()), "steps": steps})
        failure = JobFailure(queue.QueueJob(REACHER, tmp_path, 2, 10), "its worker died", True)
        assert queue._try_again(tmp_path, failure)
    assert queue._try_again(tmp_path, failure) and not queue._try_again(tmp_path, failure)


def test_bad_input_is_not_tried_again(tmp_path: Path, here: list[str]) -> None:
    (tmp_path / f"fault-{REACHER.task}").write_text("damaged")
    with pytest.raises(JobsFailedError, match="is damaged; remove it"):
        run_queue(asked(tmp_path, REACHER))
    assert here == [REACHER.name] and found(tmp_path)[0].state == FAILED


def test_a_queue_that_is_stopped_has_checkpoints_and_says_so(
    tmp_path: Path, here: list[str], stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = fake.fault

    def told(job: TrainJob) -> str:  # in the middle of the training: to the queue, whose pool tells the worker
        os.kill(os.getpid(), signal.SIGTERM)
        stop.set()
        return begins(job)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(fake, "fault", told)
    with pytest.raises(SystemExit) as ended:
        run_queue(asked(tmp_path, REACHER, PENDULUM))
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert [state.state for state in found(tmp_path)] == [STOPPED, WAITING]
    assert (folder(tmp_path, REACHER) / "checkpoint.json").exists()
    assert here == [REACHER.name]


def test_nothing_begins_if_one_entry_cannot_be_trained(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_queue(asked(tmp_path, replace(PENDULUM, steps=5)))
    monkeypatch.setattr(recipes, "NETWORK", "large")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="pendulum/fake was made with another network"):
        run_queue(asked(tmp_path, REACHER, PENDULUM))
    assert sorted(tmp_path.rglob("*")) == before and len(here) == 1


def test_the_stage_tells_of_steps_so_that_a_long_training_is_no_standstill(tmp_path: Path) -> None:
    run_queue(asked(tmp_path, REACHER))
    run_queue(asked(tmp_path, replace(REACHER, steps=60), replace(PENDULUM, steps=50)))
    run = next(run for run in read_statuses(tmp_path, "experts-queue") if run.planned)
    assert (run.unit, run.planned, run.done, run.state) == ("steps", 20 + 50, 70, "done")


def test_two_queues_do_not_run_in_one_place(tmp_path: Path, here: list[str]) -> None:
    config = asked(tmp_path, REACHER)
    with exclusive(tmp_path / "queue" / "lock", ""), pytest.raises(UserError, match="a queue runs there already"):
        run_queue(config)
    assert here == []


def test_a_folder_that_cannot_be_written_is_said_before_any_training(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *args: Any, **keywords: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    config = asked(tmp_path, REACHER)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"queue cannot be written \(Read-only file system\); choose another --out"):
        run_queue(config)
    assert here == []


def test_unfinished_trainings_are_exported_and_measured_and_go_on(tmp_path: Path, here: list[str]) -> None:
    write_list(tmp_path, [REACHER, PENDULUM])
    with pytest.raises(UserError, match="no training is under way; there is nothing to export"):
        export_unfinished(QueueConfig(None, tmp_path, episodes=2, export=True))
    run_queue(asked(tmp_path, REACHER, PENDULUM))
    write_list(tmp_path, [replace(REACHER, steps=80), PENDULUM])
    change_state(tmp_path, REACHER, state=TRAINING)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "queue").rglob("*")}
    here.clear()
    export_unfinished(QueueConfig(None, tmp_path, episodes=4, export=True))
    assert here == [REACHER.name]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "queue").rglob("*")} == before
    (measured,) = (tmp_path / "experts" / REACHER.task).glob("fake-*/measurement.json")
    assert len(read_json(measured)["seeds"]) == 4


def test_a_forgotten_training_starts_anew_and_its_expert_stays(tmp_path: Path, here: list[str]) -> None:
    run_queue(asked(tmp_path, REACHER, PENDULUM))
    revision = found(tmp_path)[0].revision
    with pytest.raises(UserError, match=r"--forget mujoco-ant matches no training .*; there: mujoco-p.*reacher/fake"):
        forget(tmp_path, "mujoco-ant")
    with (
        exclusive(folder(tmp_path, REACHER) / "lock", ""),
        pytest.raises(UserError, match="it is being trained: stop the queue first"),
    ):
        forget(tmp_path, "mujoco-*")
    assert folder(tmp_path, PENDULUM).exists()
    forget(tmp_path, "mujoco-reach*")
    assert not folder(tmp_path, REACHER).exists() and folder(tmp_path, PENDULUM).exists()
    assert found(tmp_path)[0].state == WAITING
    run_queue(asked(tmp_path, REACHER))
    assert read_progress(folder(tmp_path, REACHER)).core_seconds == 40 * fake.CORE_SECONDS_A_STEP
    assert found(tmp_path)[0].revision == revision


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers is 0; it must be at least 1"),
        ({"nice": 20}, "--nice is 20; it must be from 0 to 19"),
        ({"nice": -1}, "--nice is -1; it must be from 0 to 19"),
        ({"episodes": 0}, "--episodes is 0; it must be at least 1"),
        ({"export": True, "forget": "*"}, "--export and --forget are two different things"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QueueConfig(**changes)


def test_without_a_list_there_is_nothing_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no queue in .*; pass --queue FILE"):
        run_queue(QueueConfig(None, tmp_path))


# --- what is shown --------------------------------------------------------------------------------------------------


def test_the_status_shows_the_queue_while_it_is_interrupted(
    tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_queue(asked(tmp_path, REACHER, PENDULUM, QueueEntry("mujoco-ant", "fake", steps=2000, core_hours=1.5)))
    change_state(tmp_path, PENDULUM, state=MEASURING)
    change_state(tmp_path, QueueEntry("mujoco-ant", "fake"), state=FAILED, reason="it broke", failures=3)
    write_json(folder(tmp_path, QueueEntry("mujoco-ant", "fake")) / "progress.json", {
        **vars(TrainingProgress(500, -7.25, 4000.0, 1800.0)), "budget": vars(Budget(2000, None, core_seconds=5400.0)),
    })  # fmt: skip
    capsys.readouterr()
    show(StatusConfig(tmp_path))
    rows = [line.split("\u2502") for line in capsys.readouterr().out.splitlines() if "\u2502" in line]
    cells = {row[2].strip(): [cell.strip() for cell in row[3:-1]] for row in rows}
    assert cells["mujoco-reacher"][1:6] == ["done", "40", "40", "40", sparkline(range(1, 41))]
    assert cells["mujoco-pendulum"][1] == "waiting" and "interrupted" in cells["mujoco-pendulum"][8]
    assert cells["mujoco-ant"][:5] == ["fake", "failed", "500", "2,000", "-7.25"]
    assert cells["mujoco-ant"][6:] == ["0.50", "1.00", "it broke"]


@pytest.mark.parametrize(
    ("entry", "progress", "state", "left"),
    [
        (QueueEntry("a", "b"), TrainingProgress(), WAITING, float("inf")),
        (QueueEntry("a", "b", core_hours=2.0), TrainingProgress(), WAITING, 7200.0),
        (QueueEntry("a", "b", steps=100), TrainingProgress(25, None, 0.0, 50.0), TRAINING, 150.0),
        (QueueEntry("a", "b", steps=100, core_hours=0.05), TrainingProgress(25, None, 0.0, 50.0), TRAINING, 130.0),
        (QueueEntry("a", "b"), TrainingProgress(25, None, 0.0, 50.0, Budget(50, None)), TRAINING, 50.0),
        (QueueEntry("a", "b", steps=100), TrainingProgress(25, None, 0.0, 50.0), DONE, 0.0),
        (QueueEntry("a", "b", core_hours=0.001), TrainingProgress(25, None, 0.0, 50.0), TRAINING, 0.0),
    ],
)
def test_what_is_left_is_the_smaller_of_steps_and_hours(
    entry: QueueEntry, progress: TrainingProgress, state: str, left: float
) -> None:
    assert EntryReport(entry, EntryState(state), progress, []).core_seconds_left == pytest.approx(left)


def test_what_has_not_begun_is_estimated_at_the_pace_of_the_others(tmp_path: Path) -> None:
    run_queue(asked(tmp_path, replace(REACHER, steps=10)))
    write_list(tmp_path, [replace(REACHER, steps=10), replace(PENDULUM, steps=30), QueueEntry("mujoco-ant", "ppo")])
    done, waiting, other = read_reports(tmp_path)
    assert (done.core_seconds_left, waiting.core_seconds_left) == (0.0, 30 * fake.CORE_SECONDS_A_STEP)
    assert other.core_seconds_left == float("inf")  # of its algorithm nothing is known


def test_a_curve_is_drawn_from_its_lowest_to_its_highest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0], levels=ASCII) == "__"
    assert sparkline(range(8), levels=ASCII) == ASCII
    assert sparkline(range(16), width=8, levels=ASCII) == ASCII
    assert sparkline([0, -7, 0, 7], levels=ASCII) == "+_+@"
    assert len(sparkline(range(1000))) == 16


def test_a_terminal_that_knows_only_ascii_is_shown_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.encoding", "ascii")
    curve = [TrainingPoint(step, 0.0, float(step)) for step in range(8)]
    console = Console(file=io.StringIO(), width=200)
    console.print(queue_table([EntryReport(QueueEntry("a", "b"), EntryState(), TrainingProgress(), curve)]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.isascii() and ASCII in shown
