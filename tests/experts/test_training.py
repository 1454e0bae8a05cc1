from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from experts.store import TrainingPoint
from experts.training import (
    Budget,
    TrainingMonitor,
    TrainingProgress,
    TrainingStoppedError,
    TrainJob,
    read_curve,
    read_progress,
)
from tests.fakes import FAKE_COUNT


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setattr("experts.training.time.monotonic", found)
    yield found


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return TrainJob(FAKE_COUNT, "ppo", tmp_path)


def test_a_job_s_own_budget_replaces_the_recipe_s(tmp_path: Path) -> None:
    recipe = Budget(steps=100, seconds=60.0, target=5.0)
    assert TrainJob(FAKE_COUNT, "ppo", tmp_path).budget(recipe) == recipe
    assert TrainJob(FAKE_COUNT, "ppo", tmp_path, steps=7, target=0.0).budget(recipe) == Budget(7, 60.0, 0.0)
    assert TrainJob(FAKE_COUNT, "ppo", tmp_path, seconds=1.5).budget(recipe) == Budget(100, 1.5, 5.0)


@pytest.mark.parametrize(
    ("steps", "seconds", "mean_return", "is_over"),
    [(99, 1, 4.9, False), (100, 1, None, True), (1, 60, 0.0, True), (1, 1, 5.0, True), (1, 1, None, False)],
)
def test_a_training_ends_at_its_steps_its_time_or_its_target(
    steps: int, seconds: float, mean_return: float | None, is_over: bool, job: TrainJob, clock: Clock
) -> None:
    monitor = TrainingMonitor(job, Budget(100, 60.0, 5.0))
    clock.now += seconds
    assert monitor.report(steps, mean_return) is is_over
    monitor.close()


@pytest.mark.parametrize(("success_rate", "is_over"), [(None, True), (0.95, True), (0.94, False)])
def test_a_target_also_needs_success(success_rate: float | None, is_over: bool, job: TrainJob, clock: Clock) -> None:
    monitor = TrainingMonitor(job, Budget(100, 60.0, 5.0))
    assert monitor.report(1, 5.0, success_rate=success_rate) is is_over
    monitor.close()


def test_a_training_that_no_longer_improves_is_over(job: TrainJob, clock: Clock) -> None:
    monitor = TrainingMonitor(job, Budget(10_000, 60.0, patience=100))
    assert [monitor.report(steps, value, force=True) for steps, value in ((10, -8.0), (60, -7.0))] == [False, False]
    assert not monitor.report(159, -6.95)  # less than 1 % better
    monitor.close()
    resumed = TrainingMonitor(job, Budget(10_000, 60.0, patience=100), start_steps=60)
    assert not resumed.report(159, -6.95)
    assert resumed.report(160, -6.95)
    resumed.close()


def test_without_a_target_no_return_is_enough(job: TrainJob, clock: Clock) -> None:
    monitor = TrainingMonitor(job, Budget(100, 60.0))
    assert monitor.report(1, 1e9) is False
    monitor.close()


def test_reports_are_a_line_and_a_point_at_most_every_interval(
    job: TrainJob, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "experts.training")
    monitor = TrainingMonitor(job, Budget(10_000, 100.0, 9.0), interval_s=10.0)
    for now, steps, mean_return in (
        (5, 500, 1.0),
        (10, 1000, 1.25),
        (15, 1500, 2.0),
        (20, 2000, None),
        (30, 3000, 3.5),
    ):
        clock.now = 1000 + now
        monitor.report(steps, mean_return)
    monitor.close()
    expected = [TrainingPoint(1000, 10.0, 1.25), TrainingPoint(3000, 30.0, 3.5)]
    assert monitor.curve == read_curve(job.folder / "curve.csv") == expected
    assert caplog.messages == [
        "fake-count ppo: 1,000 of 10,000 steps, return 1.25 of 9, 100 steps/s, at most 90 s left",
        "fake-count ppo: 2,000 of 10,000 steps, return - of 9, 100 steps/s, at most 80 s left",
        "fake-count ppo: 3,000 of 10,000 steps, return 3.5 of 9, 100 steps/s, at most 70 s left",
    ]
    assert list((job.folder / "tensorboard").iterdir())


def test_an_interrupted_training_goes_on_with_its_curve_and_what_it_has_spent(job: TrainJob, clock: Clock) -> None:
    first = TrainingMonitor(job, Budget(100, 60.0), interval_s=0.0)
    for _ in range(3):
        clock.now += 10
        first.report(int(clock.now - 1000), 1.0)
    first.close()
    # The checkpoint was written at 20 steps; what came after it is done again, and has cost 10 s nevertheless.
    clock.now = 5000.0
    second = TrainingMonitor(job, Budget(100, 60.0), start_steps=20, interval_s=0.0)
    assert second.seconds == 30.0
    assert [point.steps for point in read_curve(job.folder / "curve.csv")] == [10, 20]
    clock.now += 29
    assert second.report(50, 2.0) is False
    clock.now += 1
    assert second.report(51, 2.0) is True  # 30 and 30 seconds are the budget
    second.close()
    found = [(point.steps, point.seconds) for point in read_curve(job.folder / "curve.csv")]
    assert found == [(10, 10.0), (20, 20.0), (50, 59.0), (51, 60.0)]


def test_what_a_training_has_spent_is_known_without_a_single_return(job: TrainJob, clock: Clock) -> None:
    first = TrainingMonitor(job, Budget(1000, 60.0), interval_s=0.0, core_clock=lambda: clock.now / 2)
    clock.now += 40
    assert not first.report(100, None)
    # Killed: nothing is closed, nothing was saved.
    clock.now = 7000.0
    second = TrainingMonitor(job, Budget(1000, None, core_seconds=25.0), core_clock=lambda: clock.now / 2)
    assert (second.seconds, second.core_seconds) == (40.0, 20.0)
    clock.now += 9.9
    assert not second.report(50, None)
    clock.now += 0.1
    assert second.report(60, None)
    second.close()
    budget = Budget(1000, None, core_seconds=25.0)
    assert read_progress(job.folder) == TrainingProgress(60, None, 50.0, 25.0, budget)


def test_processor_time_takes_the_place_of_the_recipe_s_time(tmp_path: Path) -> None:
    recipe = Budget(steps=100, seconds=60.0, patience=7)
    job = TrainJob(FAKE_COUNT, "ppo", tmp_path, core_seconds=3600.0, patience=9)
    assert job.budget(recipe) == Budget(100, None, patience=9, core_seconds=3600.0)


def test_a_training_that_is_asked_to_stop_is_told_so_and_is_not_finished(
    job: TrainJob, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr("experts.training.STOP", stop)
    monitor = TrainingMonitor(job, Budget(100, 60.0))
    assert not monitor.report(10, 1.0)
    monitor.raise_if_stopped()
    stop.set()
    assert monitor.report(20, 1.0)
    with pytest.raises(TrainingStoppedError, match="training fake-count with ppo was stopped at 20 steps"):
        monitor.raise_if_stopped()
    assert monitor.report(100, 1.0)  # asked to stop when it had ended anyway
    monitor.raise_if_stopped()
    monitor.close()
    assert read_progress(job.folder).steps == 100


def test_only_the_queue_keeps_the_state_of_a_training_that_has_ended(tmp_path: Path) -> None:
    for is_queued, folder in ((False, "training"), (True, "queue")):
        job = TrainJob(FAKE_COUNT, "ppo", tmp_path, is_queued=is_queued)
        assert job.folder == tmp_path / folder / "fake-count" / "ppo"
        job.folder.mkdir(parents=True)
        job.remove_state()
        assert job.folder.exists() == is_queued


def test_a_curve_is_read_without_its_heading_and_a_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    assert read_curve(path) == []
    path.write_text("steps,seconds,return\n100,1.5,-2.25\n200,3")
    assert read_curve(path) == [TrainingPoint(100, 1.5, -2.25)]
