"""What acts: experts and the trained agent implement the same protocol, so one rollout serves all.

A policy drives N environments at once, each in a *slot* from 0 to N - 1. Network policies need that to batch; the
others loop. Only the slots that are still running are passed to ``act``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Observations:
    """What n running environments show, row i belonging to the i-th slot asked.

    Attributes:
        values: ``(n, *task.observation_shape)``.
        texts: n mission texts, or None for a task without text.
        rewards: ``(n,)`` float32; what the previous action earned, 0 at the first step.
    """

    values: np.ndarray
    texts: list[str] | None
    rewards: np.ndarray


@dataclass(frozen=True)
class GiveUp:
    """In place of an action: this policy cannot go on with this episode, which is then rejected."""

    reason: str


class Policy(Protocol):
    """Chooses actions for several environments in lockstep."""

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        """New episodes have begun in ``slots``.

        All randomness of the policy in an episode must follow from its seed. ``envs`` are for experts that plan on
        the simulator's state; a learned agent must not look at them.
        """

    def act(self, slots: Sequence[int], observations: Observations) -> Iterable[Any]:
        """One action or ``GiveUp`` per slot: an int, or an array of ``task.action.size`` floats."""
