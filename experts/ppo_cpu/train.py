"""Train an Atari expert with PPO in this process, on one core; resume from the last checkpoint if there is one.

A step is one action, which the emulator repeats for four frames. A checkpoint contains the weights, the optimiser's
state, the recent returns and the best policy so far; a resumed training starts new games.
"""

from __future__ import annotations

import collections
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experts.bfloat16 import is_fast
from experts.ppo_cpu.games import TrainingGames
from experts.ppo_cpu.learner import Learner
from experts.ppo_cpu.recipes import ATARI, BUDGET, PPORecipe, check, settings_of
from experts.store import StoredExpert
from experts.training import (
    CHECKPOINT_SECONDS,
    MIN_EPISODES,
    TrainingMonitor,
    TrainJob,
)
from experts.training_record import SETTINGS, store_trained
from pipeline.errors import UserError
from pipeline.files import replacing, write_json

log = logging.getLogger(__name__)

KIND = "ppo-cpu"
CHECKPOINT = "checkpoint.pt"
PACKAGES = ("torch", "numpy")


@dataclass
class Training:
    """The training state that a checkpoint contains.

    Attributes:
        steps: environment steps so far.
        returns: raw returns of the last games.
        num_new: games that ended since the last comparison with ``best``.
        best: state dict of the best policy so far; None until a full window of games has ended.
        best_return: mean return of that policy's games.
    """

    learner: Learner
    steps: int = 0
    returns: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=100))
    num_new: int = 0
    best: dict[str, Tensor] | None = None
    best_return: float | None = None

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last games; None if there are fewer than ``MIN_EPISODES``."""
        return float(np.mean(self.returns)) if len(self.returns) >= MIN_EPISODES else None

    def note_games(self, returns: list[float]) -> None:
        """Add finished games; keep the current policy if a full window of new games is the best so far."""
        self.returns.extend(returns)
        self.num_new += len(returns)
        if self.num_new >= (self.returns.maxlen or 0):
            self.keep_if_best()

    def keep_if_best(self) -> None:
        """Keep the current policy as the best if its mean return is higher."""
        mean_return = self.mean_return
        self.num_new = 0
        if mean_return is not None and (self.best_return is None or mean_return > self.best_return):
            self.best_return = mean_return
            self.best = {name: value.clone() for name, value in self.learner.network.state_dict().items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint; it replaces the previous one atomically."""
        state = {
            "steps": self.steps,
            "network": self.learner.network.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "generator": self.learner.generator.get_state(),
            "returns": list(self.returns),
            "num_new": self.num_new,
            "best": self.best,
            "best_return": self.best_return,
        }
        # Given a path, torch raises an error of its own that hides a full disk.
        with replacing(path) as temporary, temporary.open("wb") as handle:
            torch.save(state, handle)

    def load(self, path: Path) -> None:
        """Load a checkpoint.

        Raises:
            UserError: it cannot be read.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
            self.learner.network.load_state_dict(state["network"])
            self.learner.optimizer.load_state_dict(state["optimizer"])
            self.learner.generator.set_state(state["generator"])
            self.steps, self.num_new = state["steps"], state["num_new"]
            self.returns.extend(state["returns"])
            self.best, self.best_return = state["best"], state["best_return"]
        except Exception as error:  # a damaged file can raise anything; restarting silently from zero would be worse
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove {path.parent} to start anew"
            ) from error


def train(job: TrainJob, recipe: PPORecipe = ATARI, save_every_s: float = CHECKPOINT_SECONDS) -> StoredExpert:
    """Train until the budget is used up or the target is reached, and store the best policy.

    Raises:
        UserError: the checkpoint to resume is damaged, or was made with other settings.
        TrainingStoppedError: this process was asked to stop; a last checkpoint has been written.
    """
    torch.set_num_threads(1)
    check(job, recipe)
    training = _resume(job, recipe)
    if training.steps:
        log.info("%s %s: resuming from %s steps", job.task.name, job.algorithm, f"{training.steps:,}")
    else:
        write_json(job.folder / SETTINGS, settings_of(job, recipe))
    budget = job.budget(BUDGET)
    monitor = TrainingMonitor(job, budget, training.steps)
    try:
        if not monitor.report(training.steps, training.mean_return):
            _run(job, recipe, budget.steps, training, monitor, save_every_s)
    finally:
        monitor.close()
    monitor.raise_if_stopped()
    training.keep_if_best()
    stored = _store(job, recipe, training)
    job.remove_state()
    return stored


def export(job: TrainJob, recipe: PPORecipe = ATARI) -> StoredExpert:
    """Write the best policy of the last checkpoint to the store; the training may be running.

    Raises:
        UserError: there is no checkpoint yet, or too few games have ended to estimate a return.
    """
    check(job, recipe)
    training = _resume(job, recipe)
    if training.best is None:
        raise UserError(
            f"{job.folder} holds no policy whose return is known; wait for its first checkpoint and some finished games"
        )
    return _store(job, recipe, training)


def _resume(job: TrainJob, recipe: PPORecipe) -> Training:
    """Load the training from its last checkpoint, or make a new one."""
    training = Training(Learner(recipe, job.task.action.size, job.seed, is_fast(torch.device("cpu"))))
    path = job.folder / CHECKPOINT
    if path.exists():
        training.load(path)
    return training


def _run(
    job: TrainJob,
    recipe: PPORecipe,
    total_steps: int,
    training: Training,
    monitor: TrainingMonitor,
    save_every_s: float,
) -> None:
    """Iterate until the monitor stops the training; save a checkpoint every ``save_every_s`` seconds and at the end."""
    # The steps are part of the seed, so that a resumed training plays different games than at its start.
    games = TrainingGames(job.task, recipe.num_envs, (job.seed, training.steps))
    saved = time.monotonic()
    over = False
    while not over:
        rate = recipe.learning_rate * max(0.0, 1 - training.steps / total_steps)
        returns = training.learner.iterate(games, rate)
        training.steps += recipe.num_envs * recipe.rollout_steps
        training.note_games(returns)
        over = monitor.report(training.steps, training.mean_return)
        if over or time.monotonic() - saved >= save_every_s:
            training.save(job.folder / CHECKPOINT)
            saved = time.monotonic()


def _store(job: TrainJob, recipe: PPORecipe, training: Training) -> StoredExpert:
    """Store the best policy, or the current one if no full window of games has ended."""
    if training.best is not None:
        training.learner.network.load_state_dict(training.best)
    return store_trained(
        job,
        KIND,
        training.learner.network.export(job.task),
        f"trained with PPO on one core, {training.steps:,} decisions",
        training.steps,
        {"recipe": recipe, "best_return": training.best_return},
        PACKAGES,
    )
