from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from pipeline.envs.gymnasium_ids import env_id_of, gym_task, task_name
from pipeline.envs.registry import domain_of, select_tasks
from pipeline.envs.task import CONTINUOUS, Action, Task
from pipeline.errors import UserError
from pipeline.storage.manifest import check_name
from pipeline.versions import versions_of


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Pong-v5", "my_package:MyEnv-v0", "a.b:space/My-Env"])
def test_a_name_is_safe_and_leads_back_to_the_id(env_id: str) -> None:
    name = task_name(env_id)
    check_name("task", name)
    assert name.startswith("gym-") and env_id_of(name) == env_id_of(f"gym:{env_id}") == env_id


def test_spaces_limit_and_packages_are_read_from_the_environment() -> None:
    task = task_named("gym:CartPole-v1")
    assert task is task_named("gym-CartPole-v1") is gym_task("CartPole-v1")
    assert (task.name, task.domain, task.env_id) == ("gym-CartPole-v1", "gym", "CartPole-v1")
    assert (task.observation, task.observation_shape) == (CONTINUOUS, (4,))
    assert (task.action, task.max_steps) == (Action("discrete", 2), 500)
    assert set(task.packages) >= {"gymnasium", "numpy"} and versions_of(task.packages)
    assert "mujoco" in task_named("gym:Reacher-v5").packages
    assert domain_of(task).title == "Gymnasium"


def test_an_episode_is_gymnasiums_own() -> None:
    task, own = task_named("gym:Pendulum-v1"), gym.make("Pendulum-v1")
    env = task.make_env()
    seen, expected = env.reset(seed=3)[0], own.reset(seed=3)[0]
    for step in range(task.max_steps):
        np.testing.assert_array_equal(seen[CONTINUOUS], expected)
        action = np.array([np.sin(step)], np.float32)
        seen, *ours, _ = env.step(action)
        expected, *theirs, _ = own.step(action)
        assert ours == theirs
    assert ours[2] is True


def test_ids_are_chosen_beside_tasks_and_among_the_names_of_a_run() -> None:
    assert [task.name for task in select_tasks("mujoco-ant,gym:CartPole-v1")] == ["mujoco-ant", "gym-CartPole-v1"]
    names = ("gym-CartPole-v1", "gym-Pendulum-v1", "babyai-open", "scores")
    for pattern in ("gym", "gym-*"):
        assert [task.name for task in select_tasks(pattern, among=names)] == ["gym-CartPole-v1", "gym-Pendulum-v1"]
    assert len(select_tasks("*", among=names)) == 159
    assert [task.name for task in select_tasks("gym-Cart*", among=names)] == ["gym-CartPole-v1"]


def test_an_id_of_a_package_is_registered_by_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gym_attic.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gym.register('Attic-v0', CartPoleEnv, max_episode_steps=7)\n"
        "gym.register('Endless-v0', CartPoleEnv)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert task_named("gym:gym_attic:Attic-v0").max_steps == 7
    with pytest.raises(UserError, match=r"gym:gym_attic:Endless-v0 has no step limit.*max_episode_steps"):
        select_tasks("gym:gym_attic:Endless-v0")


def test_a_name_in_a_file_does_not_choose_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gym_bomb.py").write_text("open('went_off', 'w')\nraise OSError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for pattern in ("*", "gym"):
        with pytest.raises(
            UserError, match=r"'gym_bomb', which is imported only if you name the task: --task gym:gym_b"
        ):
            select_tasks(pattern, among=["gym-gym_bomb+X-v0"])
    assert not (tmp_path / "went_off").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:CartPol-v1", "gymnasium knows no environment 'CartPol-v1'; nearest: CartPole-v1"),
        ("gym:nowhere:X-v0", "'nowhere' cannot be imported: ModuleNotFoundError.*; install the package"),
        ("gym:Blackjack-v1", "gym:Blackjack-v1 has observations of the space Tuple.*a Discrete, .*would work"),
        ("gym:", "gymnasium knows no environment ''|gym: cannot be made|no task"),
        ("gym-*", "no task matches 'gym-[*]'"),
    ],
)
def test_an_id_that_cannot_be_had_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        select_tasks(name)
    assert "\n" not in str(error.value)
