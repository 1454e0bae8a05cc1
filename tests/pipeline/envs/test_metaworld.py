"""Meta-World as collected is metaworld's own, bit by bit. ``tests/benchmarks/metaworld_equality.py`` compares more."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import weakref
from typing import Any

import metaworld
import numpy as np
import pytest
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from pipeline.envs.metaworld import TASKS
from pipeline.envs.quick_metaworld.functions import OneRotation, hstack, norm, tolerance
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, Task
from tests.benchmarks.metaworld_equality import DifferenceError, compare, policies_of


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_has_metaworlds_numbers_with_random_scripted_and_expert_actions(task: Task) -> None:
    # One process plays all tasks, and each environment several episodes, of which the second shares the scene.
    assert compare(task, policies_of(task), seeds=(3,), num_steps=45) >= 90


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["metaworld-basketball", "metaworld-pick-place", "metaworld-window-close"])
def test_whole_episodes_of_several_seeds_have_metaworlds_numbers(name: str) -> None:
    task = task_named(name)
    compare(task, policies_of(task)[1:2], seeds=(0, 1, 1, 2), num_steps=100)


def test_a_comparison_notices_the_smallest_difference() -> None:
    task = task_named("metaworld-reach")

    def make_env(task: Task) -> Any:
        env = task.make_env()
        sawyer: Any = env.unwrapped
        sawyer.evaluate_state = lambda obs, action: add_least(*type(sawyer).evaluate_state(sawyer, obs, action))
        return env

    def add_least(reward: Any, info: dict[str, Any]) -> Any:
        return np.nextafter(reward, 100), info

    def make_other(one: Task) -> Any:
        return task.as_reference().make_env() if one.is_reference else make_env(task)

    other = dataclasses.replace(task, factory=make_other)
    with pytest.raises(DifferenceError, match="reward 0"):
        compare(other, policies_of(task)[:1], seeds=(0,), num_steps=3)


@pytest.mark.parametrize("name", ["metaworld-assembly", "metaworld-basketball", "metaworld-push", "metaworld-reach"])
def test_resets_without_steps_in_between_have_metaworlds_numbers(name: str) -> None:
    task = task_named(name)
    env, own = task.make_env(), task.as_reference().make_env()
    for seed in (5, 6, 5, 5, 7):
        seen, expected = env.reset(seed=seed)[0], own.reset(seed=seed)[0]
        np.testing.assert_array_equal(seen[CONTINUOUS], expected[CONTINUOUS])
        for array in ("body_pos", "site_pos"):
            np.testing.assert_array_equal(*(getattr(one.unwrapped.model, array) for one in (env, own)))
    env.close()
    own.close()


def test_the_action_space_is_seeded_as_metaworld_seeds_it() -> None:
    task = task_named("metaworld-reach")
    samples = []
    task = task_named("metaworld-reach")
    for reference in (False, True):
        env = (task.as_reference() if reference else task).make_env()
        env.reset(seed=4)
        samples.append(env.action_space.sample())
        env.close()
    np.testing.assert_array_equal(*samples)


PLAY_DIRECTLY = """
import hashlib, metaworld, numpy as np
env = metaworld.ALL_V3_ENVIRONMENTS["soccer-v3"]()
env._partially_observable, env._freeze_rand_vec, env._set_task_called, env.seeded_rand_vec = False, False, True, True
env.seed(3)
env.reset()
sha = hashlib.sha256()
for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
    observation, reward, _, _, info = env.step(action)
    sha.update(observation.tobytes() + np.float64([reward, info["success"], info["grasp_reward"]]).tobytes())
print(sha.hexdigest())
"""


def test_metaworld_itself_is_unchanged_for_whoever_uses_it_directly(capsys: pytest.CaptureFixture[str]) -> None:
    fresh = subprocess.run(
        [sys.executable, "-c", PLAY_DIRECTLY], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    original = metaworld.ALL_V3_ENVIRONMENTS["soccer-v3"]
    base = original.__mro__[1]
    before = [dict(vars(found)) for found in (original, base, sys.modules[original.__module__], reward_utils)]
    env = task_named("metaworld-soccer").make_env()
    env.reset(seed=3)
    env.step(np.zeros(4, np.float32))
    after = [dict(vars(found)) for found in (original, base, sys.modules[original.__module__], reward_utils)]
    assert after == before
    capsys.readouterr()
    exec(PLAY_DIRECTLY, {})  # the same lines in this process
    assert capsys.readouterr().out == fresh.stdout
    env.close()


def test_an_environment_refuses_a_step_past_its_limit_and_an_action_of_another_size_as_metaworld_does() -> None:
    task = task_named("metaworld-reach")
    for reference in (False, True):
        env = (task.as_reference() if reference else task).make_env()
        env.reset(seed=0)
        with pytest.raises(AssertionError, match="size 4, got 3"):
            env.step(np.zeros(3, np.float32))
        sawyer: Any = env.unwrapped
        sawyer.curr_path_length = sawyer.max_path_length
        with pytest.raises(ValueError, match="must reset the env"):
            env.step(np.zeros(4, np.float32))
        env.close()


def test_an_environment_that_is_closed_is_freed() -> None:
    env = task_named("metaworld-soccer").make_env()
    env.reset(seed=0)
    env.step(np.zeros(4, np.float32))
    data: Any = env.unwrapped
    found = weakref.ref(data.data)
    env.close()
    del env, data
    gc.collect()
    assert found() is None


def bits(value: Any) -> tuple[type, bytes]:
    return type(value), np.asarray(value).tobytes()


@pytest.mark.filterwarnings("ignore")
def test_quick_functions_return_the_same_bits_and_types() -> None:
    generator = np.random.default_rng(0)
    for _ in range(3000):
        vector = generator.normal(size=int(generator.integers(1, 9))) * 10.0 ** generator.integers(-9, 3)
        assert bits(norm(vector)) == bits(np.linalg.norm(vector))
        assert bits(norm(vector[::2], ord=2)) == bits(np.linalg.norm(vector[::2], ord=2))
        low, high = sorted(generator.uniform(0, 0.2, 2).tolist())
        for x in (generator.normal(), np.float64(generator.normal()), low, high, np.array(0.1), np.float32(0.3)):
            for sigmoid in ("long_tail", "gaussian", "hyperbolic"):
                for margin in (0.0, 0.3, np.float64(generator.uniform(0, 1))):
                    arguments = {"bounds": (low, high), "margin": margin, "sigmoid": sigmoid}
                    assert bits(tolerance(x, **arguments)) == bits(reward_utils.tolerance(x, **arguments))
        parts = (vector, generator.normal(size=3))
        assert bits(hstack(parts)) == bits(np.hstack(parts))
    scalars = (np.float64(1.0), np.float64(2.0))
    assert bits(hstack(scalars)) == bits(np.hstack(scalars))
    for arguments in ({"bounds": (1.0, 0.0)}, {"margin": -1.0}):
        for function in (tolerance, reward_utils.tolerance):
            with pytest.raises(ValueError, match="must be"):
                function(0.5, **arguments)


def test_a_quick_rotation_has_scipys_bits_also_where_it_must_be_made_orthogonal() -> None:
    generator = np.random.default_rng(1)
    for number in range(4000):
        matrix = Rotation.random(rng=generator).as_matrix()
        if number % 4 == 1:  # a quarter turn about each axis, where several entries are equal
            matrix = Rotation.from_euler("xyz", generator.integers(0, 4, 3) * 90, degrees=True).as_matrix()
        if number % 4 == 2:
            matrix = matrix.round(int(generator.integers(3, 17)))
        if number % 4 == 3:
            matrix = matrix + generator.normal(size=(3, 3)) * 10.0 ** generator.integers(-17, -9)
        found, expected = OneRotation.from_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat()
        assert found.tobytes() == expected.tobytes()
    with pytest.raises(ValueError, match="determinant"):
        OneRotation.from_matrix(-np.eye(3)).as_quat()
