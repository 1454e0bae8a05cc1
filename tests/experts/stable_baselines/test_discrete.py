"""Models with discrete actions or integer observations, saved by the real libraries and read as networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC

from experts.network import NetworkPolicy
from experts.stable_baselines.archive import export_model, load_archive
from experts.stable_baselines.envs import ReferenceEnv
from experts.stable_baselines.recipes import DEFAULT, recipe_of
from experts.store import write_expert
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import DISCRETE, Action, Task
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT

PICK = replace(FAKE_COUNT, name="fake-pick", action=Action("discrete", 6))
CELLS = replace(PICK, observation=DISCRETE, observation_shape=(2,), observation_values=(5, 3))


class SpacesOnly(gym.Env[Any, Any]):
    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


def saved(
    tmp_path: Path, algorithm: Any, observation: spaces.Space[Any], action: spaces.Space[Any]
) -> tuple[Any, Path]:
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [8, 8]}, "seed": 1, "device": "cpu"}
    model = algorithm("MlpPolicy", SpacesOnly(observation, action), **settings)
    with torch.no_grad():  # larger weights, so that not all observations get the same action
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn_like(parameter) if parameter.ndim > 1 else torch.zeros_like(parameter))
    model.save(tmp_path / "model.zip")
    return model, tmp_path / "model.zip"


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO, DQN, QRDQN])
@pytest.mark.parametrize("task", [PICK, CELLS], ids=["numbers", "integers"])
def test_a_model_with_discrete_actions_acts_as_in_its_library(tmp_path: Path, algorithm: Any, task: Task) -> None:
    space = spaces.Box(-3, 3, (4,)) if task is PICK else spaces.MultiDiscrete([5, 3])
    model, path = saved(tmp_path, algorithm, space, spaces.Discrete(6))
    kind, spec, arrays = load_archive(path, task)
    assert (kind, spec.head, spec.action_size) == (algorithm.__name__.lower(), "categorical", 6)
    seen = np.array([space.sample() for _ in range(64)])
    expected, _ = model.predict(seen, deterministic=True)
    actions = NetworkPolicy(task, spec, arrays, "x").act(range(64), Observations(seen, None, np.zeros(64, np.float32)))
    np.testing.assert_array_equal(actions, expected)
    assert len(set(expected.tolist())) > 1
    assert export_model(model, task)[0] == spec


def test_parts_of_a_multi_discrete_action_become_one_choice(tmp_path: Path) -> None:
    space = spaces.Box(-3, 3, (4,))
    model, path = saved(tmp_path, PPO, space, spaces.MultiDiscrete([2, 3]))
    _, spec, arrays = load_archive(path, PICK)
    seen = np.array([space.sample() for _ in range(64)])
    expected, _ = model.predict(seen, deterministic=True)
    actions = NetworkPolicy(PICK, spec, arrays, "x").act(range(64), Observations(seen, None, np.zeros(64, np.float32)))
    np.testing.assert_array_equal(np.stack(np.unravel_index(np.asarray(actions), (2, 3)), axis=1), expected)


@pytest.mark.parametrize(
    ("algorithm", "action", "task", "message"),
    [
        (PPO, spaces.Discrete(3), PICK, "gives discrete actions of size 3; fake-pick .* discrete actions of size 6"),
        (SAC, spaces.Box(-1, 1, (2,)), PICK, "is of sac, whose actions are not discrete.*ppo, trpo, a2c, dqn, qrdqn"),
        (DQN, spaces.Discrete(2), FAKE_COUNT, "is of dqn, whose actions are not continuous"),
    ],
)
def test_a_model_of_other_actions_is_refused_with_both(
    tmp_path: Path, algorithm: Any, action: Any, task: Task, message: str
) -> None:
    _, path = saved(tmp_path, algorithm, spaces.Box(-3, 3, (4,)), action)
    with pytest.raises(UserError, match=message):
        load_archive(path, task)


def test_a_field_that_is_not_used_changes_no_revision(tmp_path: Path) -> None:
    _, path = saved(tmp_path, PPO, spaces.Box(-3, 3, (4,)), spaces.Discrete(6))
    _, spec, arrays = load_archive(path, PICK)
    arrays = {name: torch.zeros_like(array) for name, array in arrays.items()}
    assert write_expert(tmp_path, PICK.name, "ppo", spec, arrays, "x").record.revision == "ppo-88aa460b"


def test_a_task_from_outside_has_a_default_recipe_and_a_training_environment() -> None:
    for name, algorithm in (("gym:CartPole-v1", "ppo"), ("gym:Pendulum-v1", "sac"), ("gym:FrozenLake-v1", "trpo")):
        (task,) = select_tasks(name)
        recipe = recipe_of(task, algorithm)
        assert recipe.algorithm == algorithm and recipe.budget == DEFAULT.budget
        env = ReferenceEnv(task)
        seen, _ = env.reset(seed=0)
        assert env.observation_space.contains(seen), name
        env.step(env.action_space.sample())
    (cartpole,) = select_tasks("gym:CartPole-v1")
    with pytest.raises(UserError, match=r"no Stable-Baselines3 recipe of sac .*off-policy algorithms need continuous"):
        recipe_of(cartpole, "sac")
