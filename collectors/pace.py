"""Estimate the time left of a collection from each task's recent speed and the remaining work of each job.

Workers report their steps, so long episodes count before they end. An episode of one task can take a thousand times as
long as one of another, so the time left is summed per task, never derived from the total count.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WINDOW_S = 300.0  # age up to which finished jobs count
MIN_EVIDENCE_S = 2.0  # minimum worker time for a speed estimate
STEADY_S, STEADY_RATIO = 8.0, 1.25  # how long, and within which ratio, estimates must agree before one is shown


@dataclass(frozen=True)
class JobProgress:
    """A running job.

    Attributes:
        task: name of its task or corpus.
        name: name of the job.
        count: units, such as episodes, done so far.
        num_bytes: memory of its worker.
        steps: environment steps done so far; 0 for jobs without environments.
    """

    task: str
    name: str
    count: int
    num_bytes: int
    steps: int = 0


@dataclass(frozen=True)
class UnitCost:
    """Expected cost of one unit of a task: environment steps, and seconds of one worker; None if unknown."""

    steps: float | None = None
    seconds: float | None = None


@dataclass
class _Watched:
    """Progress of a running job since its first observed progress."""

    since: float
    first: float
    done: float
    last: float


class SteadyEstimate:
    """Passes an estimate of the time left on once it has held for some seconds.

    The first estimates of a run rest on a few steps, made while libraries load and caches fill, and are often too high
    by a factor. What they say of the end then changes from one moment to the next.
    """

    def __init__(self) -> None:
        self._ends: deque[tuple[float, float]] = deque()
        self._is_steady = False

    def update(self, left: float | None, now: float) -> float | None:
        """Return ``left``, an estimate made at ``now``; None as long as it is not steady. All are in seconds."""
        if left is None:
            self._ends.clear()
            return None
        self._ends.append((now, now + left))
        while self._ends[0][0] < now - STEADY_S:
            at, end = self._ends.popleft()
            self._is_steady = self._is_steady or all(
                max(left, STEADY_S) < STEADY_RATIO * max(other - now, STEADY_S)
                and max(other - now, STEADY_S) < STEADY_RATIO * max(left, STEADY_S)
                for _, other in [(at, end), *self._ends]
            )
        return left if self._is_steady else None


class Pace:
    """Speeds by task, and the time left.

    Args:
        planned: units of each job, by task and job name; None if unknown.
        expected: expected cost by task, used for tasks not yet observed, scaled to the speed of this machine.
    """

    def __init__(self, planned: Mapping[tuple[str, str], int | None], expected: Mapping[str, UnitCost]) -> None:
        self._left = dict(planned)
        self._expected = expected
        self._running: dict[tuple[str, str], _Watched] = {}
        self._idle: dict[tuple[str, str], float] = {}  # when a job without any progress was last seen
        self._finished: dict[str, deque[tuple[float, float, float]]] = defaultdict(deque)
        self._lengths: dict[str, tuple[int, int]] = {}  # units and steps of finished jobs
        self._num_running: deque[int] = deque([1], maxlen=5)  # at the last polls; a worker may be between two jobs
        self._now = 0.0

    def watch(self, running: Sequence[JobProgress], now: float) -> None:
        """Update with the running jobs at time ``now`` in seconds."""
        watched, self._idle = {}, {}
        for job in running:
            key = (job.task, job.name)
            done = self._units_of(job)
            before = self._running.get(key)
            if before is None or done < before.done:  # new, or restarted in another worker
                if done:
                    watched[key] = _Watched(now, done, done, now)
                else:
                    self._idle[key] = now
            else:
                before.done, before.last = done, now
                watched[key] = before
        self._running, self._now = watched, now
        self._num_running.append(len(running))

    def finish(self, task: str, job: str, count: int, seconds: float, steps: int, now: float) -> None:
        """Record a finished job: its units, the seconds that a worker spent on it, and its steps."""
        self._left.pop((task, job), None)
        watched = self._running.pop((task, job), None)
        units, before = self._lengths.get(task, (0, 0))
        self._lengths[task] = (units + count, before + steps)
        if watched and watched.done - watched.first >= count / 2 and watched.last - watched.since >= MIN_EVIDENCE_S:
            # Exclude the time before the first step: imports make it long for the first job of a worker only.
            self._finished[task].append((now, watched.done - watched.first, watched.last - watched.since))
        elif seconds:
            # All of its work was done since it was last seen without any; before that its worker may have imported.
            at_work = min(seconds, now - self._idle.get((task, job), -math.inf))
            self._finished[task].append((now, count, max(at_work, 1e-3)))
        self._now = now

    def rate(self, task: str) -> float | None:
        """Units per second of one worker over the last minutes; None if there is too little data."""
        units, seconds = self._evidence(task)
        return units / seconds if units and seconds >= MIN_EVIDENCE_S else None

    def seconds_left(self) -> float | None:
        """Seconds until all jobs are done with the recent number of workers; None without any data.

        It is at least the time of the longest remaining job.
        """
        tasks = {task for task, _ in self._left}
        rates = {task: self.rate(task) for task in {*tasks, *self._finished}}
        if not any(rates.values()):
            return None
        factor = self._machine_factor()
        seconds_of = {task: 1 / rate if (rate := rates[task]) else self._scaled(task, factor) for task in tasks}
        total = longest = 0.0
        for (task, job), planned in self._left.items():
            seconds = seconds_of[task]
            if planned is None or seconds is None:
                return None
            running = self._running.get((task, job))
            rest = (planned - (running.done if running else 0)) * seconds
            total += rest
            longest = max(longest, rest)
        return max(total / max(self._num_running), longest)

    def _units_of(self, job: JobProgress) -> float:
        """Units done; running units count as fractions, by their steps."""
        planned = self._left.get((job.task, job.name))
        if planned is None:
            return job.count
        units, steps = self._lengths.get(job.task, (0, 0))
        expected = self._expected.get(job.task, UnitCost()).steps
        length = steps / units if units and steps else expected
        return min(planned, max(job.count, job.steps / length if length else 0))

    def _evidence(self, task: str) -> tuple[float, float]:
        finished = self._finished[task]
        while len(finished) > 1 and finished[0][0] < self._now - WINDOW_S:
            finished.popleft()
        running = [job for (name, _), job in self._running.items() if name == task]
        units = sum(count for _, count, _ in finished) + sum(job.done - job.first for job in running)
        seconds = sum(spent for _, _, spent in finished) + sum(job.last - job.since for job in running)
        return units, seconds

    def _machine_factor(self) -> float:
        """Ratio of actual to expected time over the observed tasks."""
        spent = expected = 0.0
        for task, cost in self._expected.items():
            if cost.seconds and self.rate(task):
                units, seconds = self._evidence(task)
                spent += seconds
                expected += units * cost.seconds
        return spent / expected if expected else 1.0

    def _scaled(self, task: str, factor: float) -> float | None:
        seconds = self._expected.get(task, UnitCost()).seconds
        return seconds * factor if seconds else None
