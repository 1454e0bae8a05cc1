"""The time left of a collection, against simulated collections of which it is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from collectors.pace import JobProgress, Pace, SteadyEstimate, UnitCost

POLL_S = 2.0


@dataclass
class Simulation:
    """Workers that play jobs in order, and what a supervisor sees of them.

    Attributes:
        seconds: of one worker for an episode, by task.
        length: steps of an episode, by task.
        lockstep: environments that a worker steps at a time, so that as many episodes end together.
    """

    jobs: list[tuple[str, int]]
    seconds: dict[str, float]
    length: dict[str, int]
    workers: int = 2
    lockstep: int = 4
    expected: dict[str, UnitCost] = field(default_factory=dict)

    def run(self) -> list[tuple[float, float | None]]:
        """Seconds that are really left, and those told, at every poll."""
        pace = Pace({(task, str(n)): count for n, (task, count) in enumerate(self.jobs)}, self.expected)
        waiting = deque((str(n), task, count) for n, (task, count) in enumerate(self.jobs))
        running: list[tuple[str, str, int, float]] = []
        now, told = 0.0, []
        while waiting or running:
            while waiting and len(running) < self.workers:
                running.append((*waiting.popleft(), now))
            now += POLL_S
            for name, task, count, started in list(running):
                needed = count * self.seconds[task]
                if now - started >= needed:
                    pace.finish(task, name, count, needed, count * self.length[task], now)
                    running.remove((name, task, count, started))
            pace.watch([self._progress(now, *job) for job in running], now)
            told.append((now, pace.seconds_left()))
        return [(now - at, left) for at, left in told]

    def _progress(self, now: float, name: str, task: str, count: int, started: float) -> JobProgress:
        played = (now - started) / self.seconds[task]
        ended = min(count, int(played / self.lockstep) * self.lockstep)
        return JobProgress(task, name, ended, 0, int(played * self.length[task]))


def test_a_mixed_collection_is_not_told_by_its_quick_tasks() -> None:
    """230 s of slow episodes after 12 s of quick ones: by the count of episodes 65 s would be left of 231."""
    jobs = [("quick", 1200)] * 2 + [("slow", 40)] * 10
    truth = {"quick": 0.01, "slow": 1.15}
    # The machine is half as fast as expected, in all tasks.
    expected = {task: UnitCost(50, seconds / 2) for task, seconds in truth.items()}
    told = Simulation(jobs, truth, {"quick": 50, "slow": 50}, expected=expected).run()
    assert told[0][0] > 230
    for really, left in told[1:-1]:
        assert left == pytest.approx(really, rel=0.15, abs=2 * POLL_S)


def test_long_episodes_are_told_by_their_steps_before_the_first_has_ended() -> None:
    told = Simulation([("long", 8)] * 4, {"long": 30.0}, {"long": 27_000}, expected={"long": UnitCost(27_000)}).run()
    early = [left for really, left in told if 440 < really < 476]
    assert early and all(left == pytest.approx(really, rel=0.1) for really, left in told if 100 < really < 470)


def test_nothing_is_told_before_there_is_something_to_tell() -> None:
    pace = Pace({("a", "0"): 10, ("b", "0"): 10}, {"a": UnitCost(10, 3600.0)})
    assert pace.seconds_left() is None
    pace.watch([JobProgress("a", "0", 0, 0)], 10.0)  # its worker starts
    pace.watch([JobProgress("a", "0", 0, 0, 20)], 20.0)  # a first sign: since when is not known
    assert pace.seconds_left() is None
    pace.watch([JobProgress("a", "0", 4, 0, 40)], 24.0)
    assert pace.rate("a") == pytest.approx(2 / 4)
    assert pace.seconds_left() is None  # of b nothing is known
    known = Pace({("a", "0"): 10}, {})
    known.watch([JobProgress("a", "0", 2, 0)], 20.0)
    known.watch([JobProgress("a", "0", 4, 0)], 24.0)
    assert known.seconds_left() == pytest.approx(12.0)


def test_a_speed_that_changed_is_forgotten_after_minutes() -> None:
    pace = Pace({("a", str(n)): 10 for n in range(20)}, {})
    pace.finish("a", "0", 10, 10.0, 0, 0.0)
    pace.finish("a", "1", 10, 100.0, 0, 400.0)
    assert pace.rate("a") == pytest.approx(0.1)
    # The last job is known however long ago it was.
    pace.watch([], 10_000.0)
    assert pace.rate("a") == pytest.approx(0.1)


def test_the_last_job_is_not_shared_by_workers_and_one_begun_again_starts_anew() -> None:
    pace = Pace({("a", "0"): 100, ("a", "1"): 100}, {})
    pace.finish("a", "0", 100, 50.0, 0, 50.0)
    pace.watch([JobProgress("a", "1", 10, 0), JobProgress("a", "1", 10, 0)], 50.0)
    assert pace.seconds_left() == pytest.approx(45.0)
    pace.watch([JobProgress("a", "1", 80, 0)], 85.0)
    pace.watch([JobProgress("a", "1", 2, 0)], 90.0)
    assert pace.seconds_left() == pytest.approx(98 / 2)


def test_where_the_end_is_not_known_no_time_is_left() -> None:
    pace = Pace({("wikipedia", "0"): None}, {})
    pace.watch([JobProgress("wikipedia", "0", 100, 0)], 0.0)
    pace.watch([JobProgress("wikipedia", "0", 200, 0)], 10.0)
    assert pace.rate("wikipedia") == pytest.approx(10.0)
    assert pace.seconds_left() is None


def told_steadily(events: Sequence[tuple[Any, ...]]) -> list[tuple[float, float | None]]:
    """Time, and the seconds left that are shown then, of a stream of events in the form of ``recorded_collection``."""
    (_, jobs, expected), *rest = events
    pace = Pace(
        {(task, job): count for task, job, count in jobs}, {task: UnitCost(*cost) for task, cost in expected.items()}
    )
    steady, told = SteadyEstimate(), []
    for kind, now, *what in rest:
        if kind == "watch":
            pace.watch([JobProgress(task, job, count, 0, steps) for task, job, count, steps in what[0]], now)
        else:
            task, job, count, seconds, steps = what
            pace.finish(task, job, count, seconds, steps, now)
        told.append((now, steady.update(pace.seconds_left(), now)))
    return told


def warming_up(start_s: float, slow_s: float) -> list[tuple[Any, ...]]:
    """Two workers that import for ``start_s``, run at a third of their speed for ``slow_s``, and then at 10 episodes/s.

    The first jobs are over between two polls, so that all that is known of them is a duration with the imports in it.
    """
    jobs = [("quick", str(n), 4) for n in range(2)] + [("quick", str(n), 200) for n in range(2, 22)]
    events: list[tuple[Any, ...]] = [("jobs", jobs, {"quick": (50, 0.05)})]
    waiting, now = deque(jobs), 0.0
    running: list[list[Any]] = [[waiting.popleft(), 0.0, 0.0] for _ in range(2)]
    while running:
        now += POLL_S / 10
        for job in list(running):
            (task, name, count), begun, done = job
            speed = 0.0 if now < start_s else 10 / 3 if now < start_s + slow_s else 10.0
            job[2] = min(count, done + speed * POLL_S / 10)
            if job[2] == count:
                events.append(("finish", now, task, name, count, now - begun, count * 50))
                running.remove(job)
                if waiting:
                    running.append([waiting.popleft(), now, 0.0])
        if abs(now / POLL_S - round(now / POLL_S)) < 1e-6:
            progress = [(task, name, int(done), int(done * 50)) for (task, name, _), _, done in running]
            events.append(("watch", now, progress))
    return events


@pytest.mark.parametrize(("start_s", "slow_s"), [(4, 0), (30, 0), (4, 10), (30, 6)])
def test_time_left_is_within_a_half_of_the_truth_once_it_is_told(start_s: float, slow_s: float) -> None:
    told = told_steadily(warming_up(start_s, slow_s))
    end = told[-1][0]
    shown = [(end - now, left) for now, left in told if left is not None]
    assert shown and shown[0][0] > 0.5 * (end - start_s - slow_s)  # told for most of the time
    for really, left in shown:
        assert really / 1.5 - 2 * POLL_S < left < 1.5 * really + 2 * POLL_S


def test_an_estimate_that_changes_is_not_told_and_one_that_holds_is() -> None:
    steady = SteadyEstimate()
    assert [steady.update(left, now) for now, left in ((0, 7200.0), (2, 900.0), (4, 300.0), (6, 298.0))] == [None] * 4
    assert steady.update(None, 8) is None
    later = [steady.update(300.0 - now, now) for now in (10.0, 12, 14, 16, 18, 20)]
    assert later[:5] == [None] * 5 and later[5] == 280.0
    assert steady.update(500.0, 22) == 500.0  # a run that slows down says so
