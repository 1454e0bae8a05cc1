"""Environments whose every value tells its seed and step, and a policy that checks what it is shown.

Between them they check the whole chain: what is stored, trained on or played must be exactly what ``observation_at``,
``text_at`` and ``reward_at`` say for that seed at that step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from experts.choice import Mix
from experts.registry import rule_record
from experts.spec import NetworkSpec
from experts.store import StoredExpert, TrainingPoint, ensure_in_store, write_expert
from pipeline.envs.episode import Episode
from pipeline.envs.policy import GiveUp, Observations
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, TEXT, Action, Task
from pipeline.files import write_json
from pipeline.run_layout import MEASUREMENT
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import seeds_of
from pipeline.versions import versions_of

MAX_STEPS = 6


def num_steps(seed: int) -> int:
    """1 to 4 steps; an episode whose seed leaves 4 when divided by 5 never ends by itself."""
    return MAX_STEPS if seed % 5 == 4 else 1 + seed % 5


def observation_at(task: Task, seed: int, t: int) -> np.ndarray:
    """Four numbers below 50 that tell the step and, for 1000 seeds of each purpose, the seed."""
    numbers = [seed // 100_000_000, seed // 20 % 50, seed % 20, t]
    dtype = {CONTINUOUS: np.float32, DISCRETE: np.int64, IMAGE: np.uint8}[task.observation]
    return np.resize(np.array(numbers, dtype), task.observation_shape)


def text_at(seed: int, t: int) -> str:
    return f"seed {seed} step {t}"


def is_success(seed: int) -> bool:
    return seed % 3 == 0


def reward_at(task: Task, seed: int, t: int) -> float:
    """What the action at step ``t`` earns, a float32 without rounding.

    Where success is a positive last reward, earlier rewards are positive too, so looking at a wrong step shows.
    """
    if task.success != "reward":
        return t + 1 + seed % 4 / 4
    last = t == num_steps(seed) - 1
    return (1.0 if is_success(seed) else -1.0) if last else (t + 1) / 8


def action_at(task: Task, seed: int, t: int) -> Any:
    """An action in range that tells seed and step."""
    if task.action.kind == "discrete":
        return (seed + 2 * t) % task.action.size
    numbers = np.array([seed % 20 / 20, t / 20], np.float32)
    return np.resize(numbers, task.action.size)


class CountingEnv(gym.Env[Any, Any]):
    """Plays ``observation_at`` and ``reward_at``, whatever is done; refuses actions that are out of range.

    Args:
        task: one of this module's tasks.
        nan_reward: step 1 earns NaN in episodes whose seed leaves 1 when divided by 3.
        nan_observation: step 1 of these episodes shows NaN.
    """

    def __init__(self, task: Task, nan_reward: bool = False, nan_observation: bool = False) -> None:
        self._task, self._nan_reward, self._nan_observation = task, nan_reward, nan_observation
        dtype = observation_at(task, 0, 0).dtype.type
        spaces: dict[str, gym.Space[Any]] = {
            task.observation: gym.spaces.Box(0, 50, task.observation_shape, dtype=dtype)
        }
        if task.has_text:
            spaces[TEXT] = gym.spaces.Text(100)
        self.observation_space = gym.spaces.Dict(spaces)
        action = task.action
        self.action_space = (
            gym.spaces.Discrete(action.size)
            if action.kind == "discrete"
            else gym.spaces.Box(action.low, action.high, (action.size,), np.float32)
        )
        self.seed = -1
        self.t = -1
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        assert seed is not None, "every episode must be seeded"
        self.seed, self.t = seed, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seed, t, task = self.seed, self.t, self._task
        assert 0 <= t < num_steps(seed), f"step {t} of the episode of seed {seed} is past its end"
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = np.nan if self._nan_reward and self._is_spoilt() else reward_at(task, seed, t)
        self.t += 1
        over = self.t == num_steps(seed) and seed % 5 != 4
        truncated = over and seed % 5 == 2
        # Success is told once, at the first step.
        info = {"success": is_success(seed) and t == 0}
        return self._observe(), reward, over and not truncated, truncated, info

    def close(self) -> None:
        self.closed = True

    def _is_spoilt(self) -> bool:
        return self.seed % 3 == 1 and self.t == 1

    def _observe(self) -> dict[str, Any]:
        values = observation_at(self._task, self.seed, self.t)
        if self._nan_observation and self._is_spoilt():
            values = np.full_like(values, np.nan)
        return {self._task.observation: values} | ({TEXT: text_at(self.seed, self.t)} if self._task.has_text else {})


def make_counting(task: Task) -> CountingEnv:
    return CountingEnv(task)


def make_nan_reward(task: Task) -> CountingEnv:
    return CountingEnv(task, nan_reward=True)


def make_nan_observation(task: Task) -> CountingEnv:
    return CountingEnv(task, nan_observation=True)


def _count(name: str, factory: Any = make_counting) -> Task:
    return Task(
        name=f"fake-{name}",
        domain="fake",
        env_id="Count-v0",
        jat_env_id="Count-v0",
        observation=CONTINUOUS,
        observation_shape=(4,),
        action=Action("continuous", 2, -1.0, 1.0),
        max_steps=MAX_STEPS,
        success="info",
        packages=("numpy",),
        factory=factory,
    )


FAKE_COUNT = _count("count")
FAKE_NAN_REWARD = _count("nan-reward", make_nan_reward)
FAKE_NAN_OBSERVATION = _count("nan-observation", make_nan_observation)
FAKE_GRID = Task(
    name="toy-grid",
    domain="toy",
    env_id="Grid-v0",
    jat_env_id="Grid-v0",
    observation=DISCRETE,
    observation_shape=(4,),
    has_text=True,
    action=Action("discrete", 5),
    max_steps=MAX_STEPS,
    success="reward",
    packages=("numpy",),
    factory=make_counting,
)
FAKE_PIXELS = Task(
    name="pixel-count",
    domain="pixel",
    env_id="Pixels-v0",
    jat_env_id="Pixels-v0",
    observation=IMAGE,
    observation_shape=(84, 84, 4),
    action=Action("discrete", 5),
    max_steps=MAX_STEPS,
    success=None,
    packages=("numpy",),
    factory=make_counting,
)
FAKE_TASKS = (FAKE_COUNT, FAKE_GRID)


class DrawnEnv(CountingEnv):
    """A ``CountingEnv`` whose picture's brightness tells the step."""

    def render(self) -> np.ndarray:
        return np.full((16, 24, 3), 40 * self.t, np.uint8)


def make_drawn(task: Task) -> DrawnEnv:
    return DrawnEnv(task)


DRAWN = replace(FAKE_COUNT, factory=make_drawn)


class AssertingPolicy:
    """Acts ``action_at``, and fails when it is shown anything but what a ``CountingEnv`` must show it then.

    Args:
        task: one of this module's tasks.
        instead: what to answer at ``(seed, step)`` in place of ``action_at``, e.g. a ``GiveUp``.
    """

    def __init__(self, task: Task, instead: Mapping[tuple[int, int], Any] | None = None) -> None:
        self._task, self._instead = task, instead or {}
        self._seeds: dict[int, int] = {}
        self._steps: dict[int, int] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed, env in zip(slots, seeds, envs, strict=True):
            assert slot not in self._seeds, f"slot {slot} was reset in the middle of seed {self._seeds[slot]}"
            unwrapped: Any = env.unwrapped
            assert (unwrapped.seed, unwrapped.t) == (seed, 0), f"slot {slot} got an environment that was not reset"
            self._seeds[slot], self._steps[slot] = seed, 0

    def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
        assert len(slots) == len(observations.values) == len(observations.rewards)
        assert (observations.texts is not None) == self._task.has_text
        return [self._act(slot, row, observations) for row, slot in enumerate(slots)]

    def _act(self, slot: int, row: int, observations: Observations) -> Any:
        assert slot in self._seeds, f"slot {slot} acts without a reset before"
        task, seed, t = self._task, self._seeds[slot], self._steps[slot]
        expected = observation_at(task, seed, t)
        assert observations.values.dtype == expected.dtype
        np.testing.assert_array_equal(observations.values[row], expected)
        assert observations.rewards.dtype == np.float32
        assert observations.rewards[row] == (reward_at(task, seed, t - 1) if t else 0.0)
        if observations.texts is not None:
            assert observations.texts[row] == text_at(seed, t)
        answer = self._instead.get((seed, t), action_at(task, seed, t))
        self._steps[slot] += 1
        unusable = isinstance(answer, GiveUp) or (isinstance(answer, np.ndarray) and bool(np.isnan(answer).any()))
        if unusable or self._steps[slot] == num_steps(seed):
            del self._seeds[slot]
        return answer


def expected_episode(task: Task, seed: int) -> Episode:
    """What a rollout of ``AssertingPolicy`` in a ``CountingEnv`` must give."""
    steps = range(num_steps(seed))
    return Episode(
        seed=seed,
        observations=np.stack([observation_at(task, seed, t) for t in steps]),
        texts=tuple(text_at(seed, t) for t in steps) if task.has_text else None,
        actions=np.array(
            [action_at(task, seed, t) for t in steps], np.int64 if task.action.kind == "discrete" else np.float32
        ),
        rewards=np.array([reward_at(task, seed, t) for t in steps], np.float32),
        ended="truncated" if seed % 5 in (2, 4) else "terminated",
        success=None if task.success is None else is_success(seed),
    )


def assert_same_episode(found: Episode, expected: Episode) -> None:
    """Equal in every field, dtypes and bits of the arrays included."""
    assert found.seed == expected.seed
    for name in ("observations", "actions", "rewards"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), f"{name} of seed {found.seed}: {a} is not {b}"
    for name in ("texts", "ended", "success", "rejected"):
        assert getattr(found, name) == getattr(expected, name), name


def store_network(
    out: Path, task: Task = FAKE_COUNT, action: float = 0.5, kind: str = "ppo", curve: Sequence[TrainingPoint] = ()
) -> StoredExpert:
    """A network in the store of ``out`` that acts ``action``, in every dimension, whatever it sees."""
    import torch  # workers import this module, too

    spec = NetworkSpec(task.observation_shape, (), "tanh", "gaussian", task.action.size)
    size = (task.action.size, *task.observation_shape)
    arrays = {
        "head.weight": torch.zeros(size),
        "head.bias": torch.full(size[:1], action),
        "log_std": torch.zeros(size[:1]),
    }
    return write_expert(out, task.name, kind, spec, arrays, f"made to act {action}", curve=curve)


def store_random(out: Path, task: Task = FAKE_COUNT) -> StoredExpert:
    """The random policy in the store of ``out``."""
    return ensure_in_store(out, StoredExpert(rule_record("random", task), out / "nowhere"))


def random_mix(out: Path, task: Task) -> Mix:
    """The random policy alone."""
    return Mix((store_random(out, task),), (1.0,))


def write_measurement(
    expert: StoredExpert, task: Task, returns: Sequence[float], successes: Sequence[bool] | None = None
) -> Path:
    """A valid measurement of an expert that earned ``returns``, without playing."""
    count = len(returns)
    if successes is None and task.success is not None:
        successes = [False] * count
    path = expert.folder / MEASUREMENT
    record = expert.record
    measurement = Measurement(
        task.name, record.kind, record.revision, versions_of(task.packages), seeds_of("measure", count),
        [float(value) for value in returns], [1] * count, None if successes is None else list(successes),
        [None] * count,
    )  # fmt: skip
    write_json(path, measurement)
    return path


class FaultyEnv(CountingEnv):
    """A ``CountingEnv`` whose seeds that leave 3 when divided by 10 do what its name says at their first step.

    ``raise``: an exception. ``raise-once``: an exception from the first environment of a process only. ``die``: the
    process ends. ``hang``: the step never returns.
    """

    made = 0

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        FaultyEnv.made += 1
        self._number = FaultyEnv.made

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed % 10 == 3 and self.t == 0:
            fault = self._task.name.removeprefix("faulty-")
            if fault == "die":
                os._exit(1)
            if fault == "hang":
                time.sleep(3600)
            if fault == "raise" or self._number == 1:
                raise RuntimeError(f"the simulator broke at seed {self.seed}")
        return super().step(action)


def make_faulty(task: Task) -> FaultyEnv:
    return FaultyEnv(task)


FAULTY = {
    fault: replace(_count("count", make_faulty), name=f"faulty-{fault}", domain="faulty")
    for fault in ("raise", "raise-once", "die", "hang")
}
