"""Defines the episode record that the rollout yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.envs.policy import GiveUp
from pipeline.envs.task import Task

NO_LABEL = -1  # label of a step that the expert could not label, if actions are discrete; if continuous, NaN


@dataclass(frozen=True)
class Episode:
    """T steps of one environment. As in JAT, ``observations`` ends with what the last action was chosen from.

    Attributes:
        seed: seed of the environment and the policy; for an imported episode, its index in the source.
        observations: ``(T, *task.observation_shape)``; the policy's observation before each action.
        texts: T mission texts, or None for a task without text.
        actions: ``(T,)`` int64 or ``(T, size)`` float32; as passed to the environment, so in range (unless
            ``flagged``).
        rewards: ``(T,)`` float32; ``rewards[t]`` is the reward of ``actions[t]``.
        ended: ``terminated`` by the environment, ``truncated`` at the step limit, or ``rejected``; ``unknown`` for an
            imported episode whose source does not record it.
        success: None if the task does not define success, or the source does not record it.
        rejected: why the episode is excluded from the data (the policy gave up, a value was not finite), or None.
        flagged: what is unusual about an imported episode that is kept as data (actions out of range), or None.
        final_observation: ``task.observation_shape``; the observation after the last action. None if it is not known,
            is not finite, or the episode is rejected.
        labels: shape and dtype of ``actions``; what an expert would have done at each step, ``NO_LABEL`` or NaN where
            it could not say. None if no expert was asked.
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
    final_observation: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))

    @property
    def num_labelled(self) -> int | None:
        """Number of steps with a label; None if no expert was asked."""
        return None if self.labels is None else int(is_labelled(self.labels).sum())


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """``(T,)`` bool: which of the labels ``(T,)`` int64 or ``(T, size)`` float32 there are."""
    known: np.ndarray = labels != NO_LABEL if labels.ndim == 1 else ~np.isnan(labels).any(axis=1)
    return known


def label_array(task: Task, labels: Sequence[Any]) -> np.ndarray:
    """The labels of T steps, as ``executable_actions`` returns them, in shape and dtype of an episode's labels."""
    if task.action.kind == "discrete":
        legal = range(task.action.size)
        return np.array([label if label in legal else NO_LABEL for label in labels], np.int64)
    unknown = np.full(task.action.size, np.nan, np.float32)
    given = [unknown if label is None or isinstance(label, GiveUp) else label for label in labels]
    return np.array(given, np.float32).reshape(-1, task.action.size)


def rejected_episode(task: Task, seed: int, reason: str) -> Episode:
    """Make an episode of zero steps that holds the reason for the rejection."""
    discrete = task.action.kind == "discrete"
    return Episode(
        seed=seed,
        observations=np.empty((0, *task.observation_shape), np.float32),
        texts=() if task.has_text else None,
        actions=np.empty((0,), np.int64) if discrete else np.empty((0, task.action.size), np.float32),
        rewards=np.empty(0, np.float32),
        ended="rejected",
        success=None if task.success is None else False,
        rejected=reason,
    )
