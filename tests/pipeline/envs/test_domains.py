from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest

from pipeline.envs import atari, atari_game, babyai, metaworld, mujoco
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, TEXT, Task

ONE_PER_DOMAIN = ("atari-breakout", "babyai-pickup", "metaworld-pick-place", "mujoco-hopper")
DTYPES = {CONTINUOUS: np.float32, DISCRETE: np.int64, IMAGE: np.uint8}


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def digest_of_play(task: Task, env: gym.Env[Any, Any], seed: int, num_steps: int) -> str:
    """SHA-256 over all that random actions see, earn and end with."""
    generator = np.random.default_rng(seed + 1)
    observation, _ = env.reset(seed=seed)
    sha = hashlib.sha256()
    for _ in range(num_steps):
        sha.update(observation[task.observation].tobytes())
        sha.update(observation.get(TEXT, "").encode())
        action = task.action
        if action.kind == "discrete":
            choice: Any = int(generator.integers(action.size))
        else:
            choice = generator.uniform(action.low, action.high, action.size).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(choice)
        sha.update(np.array([reward, terminated, truncated], np.float64).tobytes())
        if terminated or truncated:
            break
    return sha.hexdigest()


def digests_in_new_environments(seed: int) -> dict[str, str]:
    digests = {}
    for name in ONE_PER_DOMAIN:
        task = task_named(name)
        env = task.make_env()
        digests[name] = digest_of_play(task, env, seed, 80)
        env.close()
    return digests


@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: task.name)
def test_an_environment_is_what_its_row_says(task: Task) -> None:
    env = task.make_env()
    try:
        check_environment(task, env)
    finally:
        env.close()


def check_environment(task: Task, env: gym.Env[Any, Any]) -> None:
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    assert set(space) == {task.observation} | ({TEXT} if task.has_text else set())
    assert space[task.observation].shape == task.observation_shape
    assert space[task.observation].dtype == DTYPES[task.observation]
    if task.action.kind == "discrete":
        assert isinstance(env.action_space, gym.spaces.Discrete)
        assert (env.action_space.start, env.action_space.n) == (0, task.action.size)
    else:
        assert isinstance(env.action_space, gym.spaces.Box)
        assert env.action_space.shape == (task.action.size,)
        np.testing.assert_array_equal(env.action_space.low, np.float32(task.action.low))
        np.testing.assert_array_equal(env.action_space.high, np.float32(task.action.high))

    env.action_space.seed(0)
    observation, _ = env.reset(seed=7)
    check_observation(task, space, observation)
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        check_observation(task, space, observation)
        assert np.isfinite(reward)
        assert isinstance(terminated, bool)
        assert isinstance(truncated, bool)
        assert task.success != "info" or "success" in info
        if terminated or truncated:
            break

    # An environment that has played another seed before must not remember it.
    first = digest_of_play(task, env, 11, 4)
    digest_of_play(task, env, 12, 4)
    assert digest_of_play(task, env, 11, 4) == first


def check_observation(task: Task, space: gym.spaces.Dict, observation: dict[str, Any]) -> None:
    assert set(observation) == set(space)
    values = observation[task.observation]
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype) == (task.observation_shape, DTYPES[task.observation])
    assert space[task.observation].contains(values)
    if task.has_text:
        assert isinstance(observation[TEXT], str)
        assert observation[TEXT]


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return digests_in_new_environments(5)


@pytest.mark.parametrize("name", ONE_PER_DOMAIN)
def test_the_same_seed_gives_the_same_episode_in_an_environment_used_before(name: str, digests: dict[str, str]) -> None:
    task = task_named(name)
    env = task.make_env()
    other = digest_of_play(task, env, 6, 80)
    again = digest_of_play(task, env, 5, 80)
    env.close()
    assert again == digests[name]
    assert other != digests[name]


def test_the_same_seed_gives_the_same_episode_in_another_process(digests: dict[str, str]) -> None:
    # Another hash seed, too: the order of a set of strings must not decide what an episode looks like.
    source = "import json, tests.pipeline.envs.test_domains as t; print(json.dumps(t.digests_in_new_environments(5)))"
    result = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(result.stdout.splitlines()[-1]) == digests


def test_the_goal_of_metaworld_follows_from_the_seed_and_is_hidden() -> None:
    task = task_named("metaworld-reach")
    goals = []
    for seed in (3, 3, 4):
        env = task.make_env()
        unwrapped: Any = env.unwrapped
        observation, _ = env.reset(seed=seed)
        goals.append(unwrapped._target_pos.copy())
        assert observation[CONTINUOUS][36:].tolist() == [0.0, 0.0, 0.0]
        observation, *_ = env.step(np.ones(4, np.float32))
        assert observation[CONTINUOUS][36:].tolist() == [0.0, 0.0, 0.0]
        # What is not hidden is there: the hand's position.
        assert np.all(observation[CONTINUOUS][:3] != 0)
        env.close()
    np.testing.assert_array_equal(goals[0], goals[1])
    assert np.abs(goals[0] - goals[2]).max() > 0.001


def test_metaworld_draws_a_new_goal_for_each_seed_of_one_environment() -> None:
    env = task_named("metaworld-reach").make_env()
    unwrapped: Any = env.unwrapped
    goals = []
    for seed in (3, 4, 3):
        env.reset(seed=seed)
        goals.append(tuple(unwrapped._target_pos))
    env.close()
    assert goals[0] == goals[2]
    assert goals[0] != goals[1]


def test_a_scene_of_metaworld_is_compiled_once_and_every_environment_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mujoco as simulator

    metaworld._compiled_once.cache_clear()
    compiled: list[str] = []
    compile_scene = simulator.MjModel.from_xml_path
    monkeypatch.setattr(simulator.MjModel, "from_xml_path", lambda path: compiled.append(path) or compile_scene(path))
    task = task_named("metaworld-assembly")
    envs = [task.make_env() for _ in range(3)]
    assert len(compiled) == 1
    envs[0].reset(seed=1)  # moves parts of its scene
    assert len({digest_of_play(task, env, 7, 20) for env in envs}) == 1
    models = [env.unwrapped.model for env in envs]  # type: ignore[attr-defined]
    models[0].body_pos[:] = 0
    assert models[1].body_pos.any()
    assert models[2].body_pos.any()


def test_metaworld_episodes_are_cut_after_100_steps_in_each_episode() -> None:
    env = task_named("metaworld-reach").make_env()
    for seed in (1, 2):
        env.reset(seed=seed)
        ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(100)]
        assert ends == [(False, False)] * 99 + [(False, True)]
    env.close()


@pytest.mark.parametrize("task", mujoco.TASKS, ids=lambda task: task.name)
def test_mujoco_episodes_are_cut_at_the_step_limit_of_the_table(task: Task) -> None:
    spec = gym.spec(task.env_id)
    assert spec.max_episode_steps == task.max_steps


@pytest.mark.parametrize("task", babyai.TASKS, ids=lambda task: task.name)
def test_no_babyai_mission_sets_a_larger_step_limit_than_the_table(task: Task) -> None:
    env = task.make_env()
    unwrapped: Any = env.unwrapped
    for seed in range(20):
        env.reset(seed=seed)
        assert 0 < unwrapped.max_steps <= task.max_steps
    env.close()


def test_a_babyai_observation_is_the_direction_then_the_view_in_c_order() -> None:
    env = task_named("babyai-go-to-local").make_env()
    unwrapped: Any = env.unwrapped
    observation, _ = env.reset(seed=1)
    raw = unwrapped.gen_obs()
    expected = [raw["direction"], *(int(v) for row in raw["image"] for cell in row for v in cell)]
    assert observation[DISCRETE].tolist() == expected
    assert observation[TEXT] == raw["mission"]
    turned, *_ = env.step(0)
    assert turned[DISCRETE][0] == (raw["direction"] - 1) % 4
    env.close()


def test_making_a_babyai_level_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    env = task_named("babyai-key-corridor").make_env()
    for seed in range(20):
        env.reset(seed=seed)
    env.close()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("task", atari.TASKS, ids=lambda task: task.name)
def test_an_atari_game_is_the_reference_frame_by_frame(task: Task) -> None:
    fast, reference = task.make_env(), task.make_env(drawable=True)
    assert fast.action_space == reference.action_space == gym.spaces.Discrete(task.action.size)
    generator = np.random.default_rng(0)
    for seed in range(3):
        observations = [env.reset(seed=seed)[0][IMAGE] for env in (fast, reference)]
        np.testing.assert_array_equal(*observations)
        for _ in range(60):
            action = int(generator.integers(task.action.size))
            (one, *rest, _), (other, *expected, _) = fast.step(action), reference.step(action)
            assert rest == expected
            np.testing.assert_array_equal(one[IMAGE], other[IMAGE])
            if rest[1]:
                break
    fast.close()
    reference.close()


def test_a_whole_atari_game_is_the_reference_to_its_end() -> None:
    task = task_named("atari-breakout")
    fast, reference = task.make_env(), task.make_env(drawable=True)
    generator = np.random.default_rng(1)
    for env in (fast, reference):
        env.reset(seed=7)
    ended, total = False, 0.0
    while not ended:
        action = int(generator.integers(task.action.size))
        (one, reward, ended, _, info), (other, *expected, ale) = fast.step(action), reference.step(action)
        assert [reward, ended] == expected[:2] and info["lives"] == ale["lives"]
        if not ended:
            np.testing.assert_array_equal(one[IMAGE], other[IMAGE])
        total += float(reward)
    assert total > 0
    fast.close()
    reference.close()


# Games that a reset alone leaves as the last one has changed them, and (the first two) that have more to them than the
# state which ALE can restore.
@pytest.mark.parametrize("name", ["amidar", "qbert", "assault", "demonattack", "freeway", "surround", "tennis"])
def test_an_atari_game_does_not_depend_on_those_played_before(name: str) -> None:
    task = task_named(f"atari-{name}")
    env = task.make_env()

    def play(seed: int, num_steps: int) -> list[bytes]:
        generator = np.random.default_rng(seed)
        frames = [env.reset(seed=seed)[0][IMAGE].tobytes()]
        for _ in range(num_steps):
            observation, *_, ended, _, _ = env.step(int(generator.integers(task.action.size)))
            frames.append(observation[IMAGE].tobytes())
            if ended:
                break
        return frames

    first = play(5, 100)
    play(6, 250)
    assert play(5, 100) == first
    env.close()


def test_frames_of_changed_bands_are_those_of_whole_screens() -> None:
    generator = np.random.default_rng(0)
    shrink = atari_game.Shrinker()
    screen = np.zeros(atari_game.SCREEN_SHAPE, np.uint8)
    for place in range(60):
        if place % 10 == 0:
            screen = generator.integers(0, 256, atari_game.SCREEN_SHAPE, np.uint8)
        for row, column in generator.integers(0, (210, 160), (place % 4, 2)):
            screen[row : row + 9, column : column + 4] = generator.integers(256)
        expected = cv2.resize(screen, atari_game.FRAME_SHAPE, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(shrink(screen), expected)


@pytest.mark.parametrize("drawable", [False, True])
def test_an_atari_game_is_truncated_at_its_step_limit(drawable: bool) -> None:
    task = replace(task_named("atari-pong"), max_steps=20)
    env = task.make_env(drawable)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    env.close()
    assert ends == [(False, False)] * 19 + [(False, True)]


@pytest.mark.parametrize(
    ("name", "num_steps"), [("atari-pong", 27_000), ("atari-montezumarevenge", 4_500), ("atari-breakout", 27_000)]
)
def test_an_atari_game_has_its_frame_limit_and_no_sticky_actions(name: str, num_steps: int) -> None:
    task = task_named(name)
    assert task.max_steps == num_steps
    env = task.make_env(drawable=True)
    assert env.unwrapped.ale.getFloat("repeat_action_probability") == 0.0  # type: ignore[attr-defined]
    env.close()


def test_the_newest_atari_frame_is_the_last_channel() -> None:
    env = task_named("atari-pong").make_env()
    before, _ = env.reset(seed=2)
    changed = False
    for _ in range(30):
        after, *_ = env.step(2)
        np.testing.assert_array_equal(after[IMAGE][..., :3], before[IMAGE][..., 1:])
        changed |= bool((after[IMAGE][..., 3] != after[IMAGE][..., 2]).any())
        before = after
    env.close()
    assert changed


def test_an_observation_that_was_kept_does_not_change_with_the_next_step() -> None:
    for name in ONE_PER_DOMAIN:
        task = task_named(name)
        env = task.make_env()
        observation, _ = env.reset(seed=1)
        kept = observation[task.observation]
        copy = kept.copy()
        for action in (1, 2, 2) if task.action.kind == "discrete" else [np.ones(task.action.size, np.float32)] * 3:
            env.step(action)
        np.testing.assert_array_equal(kept, copy)
        env.close()


def test_the_tables_are_put_together_in_the_order_of_the_domains() -> None:
    assert all_tasks() == atari.TASKS + babyai.TASKS + metaworld.TASKS + mujoco.TASKS


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize("task", mujoco.TASKS, ids=lambda task: task.name)
def test_a_mujoco_environment_is_gymnasiums_own_bit_by_bit(task: Task) -> None:
    env, own = task.make_env(), gym.make(task.env_id)
    generator = np.random.default_rng(3)
    num_steps = 0
    for seed in (3, 4):
        seen, expected = env.reset(seed=seed)[0], own.reset(seed=seed)[0]
        over = False
        while not over:
            np.testing.assert_array_equal(seen[CONTINUOUS], expected.astype(np.float32))
            action = generator.uniform(task.action.low, task.action.high, task.action.size).astype(np.float32)
            seen, *ours, _ = env.step(action)
            expected, *theirs, _ = own.step(action)
            assert ours == theirs
            over = theirs[1] or theirs[2]
            num_steps += 1
    env.close()
    own.close()
    assert num_steps > 4


def test_a_mujoco_environment_refuses_an_action_of_another_size() -> None:
    env = task_named("mujoco-halfcheetah").make_env()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(6,\)"):
        env.step(np.zeros(1, np.float32))
    env.close()
