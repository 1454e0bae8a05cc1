"""An episode as it comes out of the rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Episode:
    """T steps of one environment. As in JAT, the observation after the last action is not kept.

    Attributes:
        seed: what the environment and the policy were seeded with; of an imported episode, its place in the source.
        observations: ``(T, *task.observation_shape)``; what the policy saw before each action.
        texts: T mission texts, or None for a task without text.
        actions: ``(T,)`` int64 or ``(T, size)`` float32; what the environment was given, so in range (if
            not ``flagged``).
        rewards: ``(T,)`` float32; ``rewards[t]`` is what ``actions[t]`` earned.
        ended: ``terminated`` by the environment, ``truncated`` at the step limit, or ``rejected``; ``unknown`` of an
            imported episode whose source does not say.
        success: None where the task has no notion of it, or the source does not say.
        rejected: why the episode is not data (the policy gave up, a value was not finite), or None.
        flagged: what is unusual about an imported episode that is data all the same (actions out of range), or None.
    """

    seed: int
    observations: np.ndarray
    texts: tuple[str, ...] | None
    actions: np.ndarray
    rewards: np.ndarray
    ended: Literal["terminated", "truncated", "rejected", "unknown"]
    success: bool | None
    rejected: str | None = None
    flagged: str | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))
