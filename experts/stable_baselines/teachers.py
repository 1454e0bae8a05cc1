"""Teachers for training: Meta-World's scripted policy, or an existing expert."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experts.network import NetworkPolicy
from experts.ranking import best_by_return, rank_experts
from experts.store import read_arrays
from pipeline.envs.policy import Observations
from pipeline.envs.task import Task
from pipeline.errors import UserError

SCRIPTED = "scripted"


@dataclass(frozen=True)
class Teacher:
    """A policy that provides demonstrations or is cloned.

    Attributes:
        revision: revision of an expert in the store; ``scripted`` for the scripted policy.
        act: maps observations ``(n, size)`` of the training environments, which contain the goal, to actions
            ``(n, size)`` in the task's units.
    """

    revision: str
    act: Callable[[np.ndarray], np.ndarray]


def teacher_of(kind: str, task: Task, out: Path) -> Teacher:
    """Return Meta-World's scripted policy, or the best measured expert of a kind in ``out`` or in this package.

    Raises:
        UserError: there is no measured expert of this kind.
    """
    if kind == SCRIPTED:
        return Teacher(SCRIPTED, _script(task))
    best = best_by_return([s for s in rank_experts(out, task) if s.expert.record.kind == kind])
    if best is None or best.expert.record.network is None:
        raise UserError(
            f"{task.name} learns from a {kind} expert, and there is none; train one first: "
            f"jat experts --task {task.name} --expert {kind}"
        )
    # The observations contain the goal here.
    spec = dataclasses.replace(best.expert.record.network, sees_goal=False, sampled=False)
    policy = NetworkPolicy(task, spec, read_arrays(best.expert), str(best.expert.folder))

    def act(observations: np.ndarray) -> np.ndarray:
        slots = range(len(observations))
        seen = Observations(observations.astype(np.float32), None, np.zeros(len(slots), np.float32))
        return policy.act(slots, seen)

    return Teacher(best.revision, act)


def _script(task: Task) -> Callable[[np.ndarray], np.ndarray]:
    from metaworld.policies import ENV_POLICY_MAP

    script = ENV_POLICY_MAP[task.env_id]()

    def act(observations: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metaworld warns that actions exceed [-1, 1]
            return np.array([script.get_action(observation) for observation in observations.astype(np.float64)])

    return act
