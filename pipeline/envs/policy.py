"""Defines the policy protocol that experts and the trained agent implement, so that one rollout works for all.

A policy acts in N vectorised environments, each in a *slot* from 0 to N - 1. Network policies compute all actions in
one batch; other policies loop. Only the slots that are still running are passed to ``act``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from pipeline.envs.task import Task


@dataclass(frozen=True)
class Observations:
    """Observations of n running environments; row i belongs to the i-th slot passed to ``act``.

    Attributes:
        values: ``(n, *task.observation_shape)``.
        texts: n mission texts, or None for a task without text.
        rewards: ``(n,)`` float32; reward of the previous action, 0 at the first step.
    """

    values: np.ndarray
    texts: list[str] | None
    rewards: np.ndarray


@dataclass(frozen=True)
class GiveUp:
    """Returned instead of an action: the policy cannot continue this episode, which is then rejected."""

    reason: str


class LabelledActions(list[Any]):
    """Actions with labels: beside each action to execute, what an expert would do instead.

    A policy may return it from ``act``; the rollout keeps the labels in the episode.

    Attributes:
        labels: one per action; a ``GiveUp`` where the expert cannot say what it would do.
    """

    def __init__(self, actions: Iterable[Any], labels: Iterable[Any]) -> None:
        super().__init__(actions)
        self.labels = list(labels)


class Policy(Protocol):
    """Chooses actions for several environments in lockstep."""

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        """Start new episodes in ``slots``.

        All randomness of the policy in an episode must derive from the episode's seed. ``envs`` are for experts that
        plan with the simulator's state; a learned agent must not access them.
        """

    def act(self, slots: Sequence[int], observations: Observations) -> Iterable[Any]:
        """Return one action or ``GiveUp`` per slot: an int, or an array of ``task.action.size`` floats.

        What is executed may be another action: noise, or another policy whose states this one labels. A policy that
        plans ahead looks it up in its environment (``experts/scripted/babyai.py``); it is asked at every step.
        """


def executable_actions(task: Task, actions: Iterable[Any]) -> list[Any]:
    """Clip actions to their range, as they are executed and stored; a non-finite action becomes None."""
    if task.action.kind == "discrete":
        return [action if isinstance(action, GiveUp) else int(action) for action in actions]
    if isinstance(actions, np.ndarray):
        return _in_range(task, actions)
    chosen = list(actions)
    rows = [row for row, action in enumerate(chosen) if not isinstance(action, GiveUp)]
    if rows:
        for row, action in zip(rows, _in_range(task, np.array([chosen[row] for row in rows])), strict=True):
            chosen[row] = action
    return chosen


def _in_range(task: Task, actions: np.ndarray) -> list[np.ndarray | None]:
    """Clip continuous actions ``(n, size)``: environments clip what they execute, but not in the control cost."""
    given = actions.astype(np.float32).clip(task.action.low, task.action.high)
    is_finite = np.isfinite(given).all(axis=1).tolist()
    return [action if good else None for action, good in zip(given, is_finite, strict=True)]
