"""The experts that come with this package act the same however many share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experts.registry import make_policy
from experts.store import StoredExpert, stored_experts
from pipeline.envs.policy import Observations
from pipeline.envs.registry import all_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.run_layout import EMBEDDED

pytestmark = pytest.mark.slow

NOWHERE = Path("no-run")
TASKS = {task.name: task for task in all_tasks()}
NETWORKS = [
    (TASKS[folder.name], expert)
    for folder in sorted(EMBEDDED.iterdir())
    for expert in stored_experts(NOWHERE, folder.name)
    if expert.record.network is not None
]


def actions_of(task: Task, expert: StoredExpert, seeds: Sequence[int], num_envs: int) -> dict[int, bytes]:
    """What is done in the episode of each seed."""
    policy = make_policy(task, expert)
    return {episode.seed: episode.actions.tobytes() for episode in rollout(task, policy, seeds, num_envs)}


@pytest.mark.parametrize(("task", "expert"), NETWORKS, ids=[expert.record.revision for _, expert in NETWORKS])
def test_an_episode_is_the_same_with_1_3_and_5_environments(task: Task, expert: StoredExpert) -> None:
    task = replace(task, max_steps=20)
    many = actions_of(task, expert, range(5), 5)
    assert len(set(many.values())) > 1
    assert actions_of(task, expert, range(3), 3).items() <= many.items()
    assert actions_of(task, expert, range(1), 1).items() <= many.items()


@pytest.mark.parametrize(("task", "expert"), NETWORKS, ids=[expert.record.revision for _, expert in NETWORKS])
def test_an_action_is_the_same_beside_any_others(task: Task, expert: StoredExpert) -> None:
    if task.hidden_goal is not None:
        task = replace(task, hidden_goal=lambda env: np.full(3, 0.5))
    generator, policy = np.random.default_rng(0), make_policy(task, expert)
    is_image = len(task.observation_shape) == 3
    shape = (9 if is_image else 50, *task.observation_shape)
    values = generator.integers(0, 256, shape, np.uint8) if is_image else generator.normal(0, 3, shape)

    def act(rows: Sequence[int]) -> np.ndarray:
        policy.reset(range(len(rows)), rows, [None] * len(rows))  # type: ignore[list-item]
        rewards = np.zeros(len(rows), np.float32)
        return np.asarray(policy.act(range(len(rows)), Observations(values[rows], None, rewards)))

    order = generator.permutation(len(values)).tolist()
    together = act(range(len(values)))
    np.testing.assert_array_equal(act(order), together[order])
    np.testing.assert_array_equal(act(order[:3]), together[order[:3]])
    np.testing.assert_array_equal(act([4]), together[[4]])


def test_the_pendulum_s_tiny_actions_are_the_same_in_every_company() -> None:
    """They come from cancellation: to the last bit of float32 takes all of float64."""
    (expert,) = [expert for task, expert in NETWORKS if task.name == "mujoco-pendulum"]
    seeds = (0, 3, 4, 19)
    alone, few, many = (actions_of(TASKS["mujoco-pendulum"], expert, seeds, num_envs) for num_envs in (1, 3, 4))
    assert alone == few == many
