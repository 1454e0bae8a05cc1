"""Labels: beside what is executed, what an expert would do in the same state, for an agent to learn from.

Whoever acts (an agent, another expert, any of them with noise), the labelling expert is asked at every step. A network
answers with its most likely action, also if it samples when it acts; a rule with its plan for the state that it finds.
An expert that gives up, or has no opinion such as the random policy, leaves the step without a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from experts.registry import RANDOM, make_policy
from experts.store import ExpertRecord, StoredExpert
from pipeline.envs.policy import GiveUp, LabelledActions, Observations, Policy
from pipeline.envs.task import Task


class LabelledPolicy:
    """Executes the actions of one policy and labels them with those of another, which sees the same states."""

    def __init__(self, actor: Policy, labeller: Policy) -> None:
        self._actor, self._labeller = actor, labeller

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._actor.reset(slots, seeds, envs)
        self._labeller.reset(slots, seeds, envs)

    def act(self, slots: Sequence[int], observations: Observations) -> LabelledActions:
        return LabelledActions(self._actor.act(slots, observations), self._labeller.act(slots, observations))


class WithoutOpinion:
    """Labels nothing."""

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        """Nothing to reset."""

    def act(self, slots: Sequence[int], observations: Observations) -> list[GiveUp]:
        return [GiveUp("no opinion")] * len(slots)


def can_label(record: ExpertRecord) -> bool:
    return record.kind != RANDOM


def labels_as_it_acts(record: ExpertRecord) -> bool:
    """Whether an expert's labels are the actions that it executes, so that it need not be asked twice."""
    return can_label(record) and (record.network is None or not record.network.sampled)


def make_labeller(task: Task, expert: StoredExpert) -> Policy:
    """Build the policy whose actions are the expert's labels; call this in the process that will use it.

    Raises:
        UserError: weights cannot be read or do not fit the task.
    """
    return make_policy(task, expert, greedy=True) if can_label(expert.record) else WithoutOpinion()
