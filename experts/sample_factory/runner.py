"""Sample Factory's runner with supervision: it reports progress, stops on request, and detects dead processes."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Sequence
from typing import IO, Any, cast

import numpy as np
from sample_factory.algo.runners.runner_parallel import ParallelRunner
from sample_factory.algo.utils.misc import LEARNER_ENV_STEPS, ExperimentStatus
from signal_slot.signal_slot import Timer

from experts.sample_factory.recipes import RETURN
from experts.training import MIN_EPISODES


class SupervisedRunner(ParallelRunner):  # type: ignore[misc]
    """Runs a training and writes one line of JSON per second: ``start_steps``, ``steps`` and ``mean_return``.

    ``start_steps`` are the steps of the checkpoint that the learner has loaded, 0 without one. ``mean_return`` is over
    at least ``MIN_EPISODES`` episodes. None means unknown so far.

    Args:
        cfg: Sample Factory's configuration.
        progress: stream for the lines.
        stop_asked: event that ends the training early, with a checkpoint.

    Attributes:
        failure: names of the processes that died; empty if none did.
    """

    def __init__(self, cfg: Any, progress: IO[str], stop_asked: threading.Event) -> None:
        super().__init__(cfg)
        self._progress, self._stop_asked = progress, stop_asked
        self._processes: set[Any] = set()
        self.failure = ""
        self._start_steps: int | None = None
        self.policy_msg_handlers[LEARNER_ENV_STEPS].append(self._note_start)
        self._timer = Timer(self.event_loop, 1.0)
        self._timer.timeout.connect(self._tick)

    def report(self, **more: Any) -> None:
        """Write one line of progress."""
        message = {
            "start_steps": self._start_steps,
            "steps": self.env_steps.get(0),
            "mean_return": float(np.mean(self._returns)) if len(self._returns) >= MIN_EPISODES else None,
        }
        self._progress.write(json.dumps(message | more) + "\n")
        self._progress.flush()

    def _note_start(self, runner: Any, message: dict[str, Any], policy_id: int) -> None:
        """Record the steps in the learner's first message, which it sends after looking for a checkpoint."""
        if self._start_steps is None:
            self._start_steps = message[LEARNER_ENV_STEPS]

    def _tick(self) -> None:
        self._processes.update(multiprocessing.active_children())
        dead = [p for p in self._processes if p.exitcode not in (None, 0)]
        if dead:
            self.failure = "died: " + ", ".join(f"{p.name} (exit code {p.exitcode})" for p in dead)
            self.status = ExperimentStatus.FAILURE
            self.event_loop.stop()
        self.report()
        if self._stop_asked.is_set():
            self._stop_training()

    def _save_best_policy(self) -> None:
        if len(self._returns) >= MIN_EPISODES:
            super()._save_best_policy()

    @property
    def _returns(self) -> Sequence[float]:
        return cast(Sequence[float], self.policy_avg_stats.get(RETURN, [()])[0])

    @property
    def succeeded(self) -> bool:
        return bool(self.status == ExperimentStatus.SUCCESS)
