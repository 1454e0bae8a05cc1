"""What objectives beyond cloning take from the rewards: which episodes are the best, and the return to go.

The return to go of a step is what the rest of the episode earns, divided by the steps that the time limit leaves, so
that it does not fall by itself as the episode goes on (arXiv 2112.10751); networks see it standardised over all steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.envs.task import Task
from pipeline.errors import UserError
from trainer.config import BaseModelConfig, TrainConfig, lookup_by_task_or_domain

ASKED = 0.9  # the quantile of a task's returns that an agent is asked for if nobody says otherwise
MIN_STD = 1e-6


@dataclass(frozen=True)
class ReturnScale:
    """The returns of a task's training episodes.

    Attributes:
        mean, std: of the return to go per step left, over all steps.
        lowest, highest: return of an episode.
        asked: the return that the agent is asked for by default.
    """

    mean: float
    std: float
    lowest: float
    highest: float
    asked: float

    def standardise(self, to_go: np.ndarray) -> np.ndarray:
        """Returns to go per step left -> what a network sees, float32."""
        scaled: np.ndarray = ((to_go - self.mean) / self.std).astype(np.float32)
        return scaled


def with_parts(config: TrainConfig) -> TrainConfig:
    """Give the network the part that the objective needs.

    Raises:
        UserError: a network that has no such part.
    """
    parts: dict[str, Literal["input", "value"]] = {"return-conditioned": "input", "advantage": "value"}
    needed: Literal["unused", "input", "value"] = parts.get(config.objective, "unused")
    if not isinstance(config.model, BaseModelConfig):
        if needed != "unused":
            raise UserError(f"--objective {config.objective} needs this project's own network: take --recipe base")
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, returns=needed))


def episode_returns(rewards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return each episode's return ``(E,)`` float64, given rewards ``(S,)`` and the episodes' starts ``(E + 1,)``."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    found: np.ndarray = total[starts[1:]] - total[starts[:-1]]
    return found


def best_episodes(rewards: np.ndarray, starts: np.ndarray, share: float) -> np.ndarray:
    """Return the rows of the best ``share`` of the episodes by return, at least one, ascending; of equal ones the
    first."""
    returns = episode_returns(rewards, starts)
    order = np.argsort(-returns, kind="stable")
    return np.sort(order[: max(1, math.ceil(share * len(returns)))]) if len(returns) else order


def returns_to_go(rewards: np.ndarray, starts: np.ndarray, max_steps: int) -> np.ndarray:
    """Return, for each step ``(S,)``, what its action and all later ones of the episode earn, per step that the time
    limit leaves."""
    total = np.concatenate([[0.0], np.cumsum(rewards, dtype=np.float64)])
    lengths = np.diff(starts)
    ends = np.repeat(total[starts[1:]], lengths)
    done = np.arange(len(rewards)) - np.repeat(starts[:-1], lengths)
    found: np.ndarray = (ends - total[:-1]) / np.maximum(max_steps - done, 1)
    return found


def scale_of(task: Task, rewards: np.ndarray, starts: np.ndarray) -> ReturnScale:
    """Measure the returns of a task's training episodes, of which there is at least one."""
    to_go, returns = returns_to_go(rewards, starts, task.max_steps), episode_returns(rewards, starts)
    std = float(to_go.std())
    return ReturnScale(
        mean=float(to_go.mean()),
        std=std if std > MIN_STD else 1.0,
        lowest=float(returns.min()),
        highest=float(returns.max()),
        asked=float(np.quantile(returns, ASKED)),
    )


def asked_returns(
    scales: Mapping[str, ReturnScale], asked: Mapping[str, float], tasks: Sequence[Task]
) -> dict[str, float]:
    """Return what to ask for in each task.

    Args:
        scales: the returns that the checkpoint knows; empty if it cannot be asked.
        asked: returns by task or domain name.
        tasks: tasks to play.

    Raises:
        UserError: a return asked for that no episode has, or of an agent that cannot be asked.
    """
    if asked and not scales:
        raise UserError("--returns: this agent cannot be asked; train one with --objective return-conditioned")
    found = {}
    for task in tasks:
        scale = scales.get(task.name)
        if scale is None:
            continue
        found[task.name] = wanted = lookup_by_task_or_domain(asked, task.name, task.domain, scale.asked)
        if not scale.lowest <= wanted <= scale.highest:
            raise UserError(
                f"--returns: no episode of {task.name} that the agent learned from has a return of {wanted:g}; they "
                f"are from {scale.lowest:g} to {scale.highest:g}"
            )
    return found
