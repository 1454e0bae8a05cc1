"""The only environment loop. It serves collection, measurement, evaluation and videos.

N environments advance in lockstep; each takes the next seed of a static list when its episode ends. Because every
listed seed is played to its end, short episodes are not over-represented, and the result does not depend on N.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.episode import Episode
from pipeline.frames import stacked
from pipeline.heartbeat import PULSE
from pipeline.policy import GiveUp, Observations, Policy
from pipeline.tasks import IMAGE, TEXT, Task

# An environment that raises this often in one episode, each time freshly made, makes the episode a rejected one.
MAX_ENV_ERRORS = 2

# Called with (seed, environment) after a reset and after every step, e.g. to draw a frame.
StepListener = Callable[[int, gym.Env[Any, Any]], None]


log = logging.getLogger(__name__)


class EnvironmentFailedError(RuntimeError):
    """An environment raised ``cause`` in a step. Errors of policies and of this loop are not of this kind."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.cause = cause


@dataclass
class _Slot:
    """An environment and the episode it is in."""

    env: gym.Env[Any, Any]
    keep_observations: bool = True
    seed: int = -1
    observation: dict[str, Any] = field(default_factory=dict)
    observations: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    is_finite: bool = True
    success: bool = False

    def begin(self, seed: int) -> None:
        self.seed = seed
        self.observation, _ = self.env.reset(seed=seed)
        self.observations, self.texts, self.actions, self.rewards = [], [], [], []
        self.is_finite, self.success = True, False

    def note_observation(self, task: Task) -> None:
        """Before each action: keep what is seen, or at least whether it was finite."""
        observation = self.observation[task.observation]
        if not self.keep_observations:
            self.is_finite = self.is_finite and (observation.dtype.kind != "f" or bool(np.isfinite(observation).all()))
            return
        self.observations.append(observation)
        if task.has_text:
            self.texts.append(self.observation[TEXT])


def rollout(
    task: Task,
    policy: Policy,
    seeds: Sequence[int],
    num_envs: int | None = None,
    listener: StepListener | None = None,
    keep_observations: bool = True,
) -> Iterator[Episode]:
    """Play one episode per seed and yield them in the order of ``seeds``.

    Args:
        task: where to play; its ``make_env`` is called at most ``num_envs`` times.
        policy: who plays; it sees at most ``num_envs`` slots.
        seeds: one episode each. Where the environment raises, the episode is played once more in a new environment,
            then rejected with the error as its reason.
        num_envs: environments in lockstep; the task's own number if None.
        listener: called after each reset and step.
        keep_observations: False where only returns count, as in measuring: the frames of one Atari game can fill
            750 MB. The episodes' ``observations`` and ``texts`` are then empty.

    Raises:
        ValueError: a seed is listed twice, or there is no environment to play in.
    """
    num_envs = task.lockstep if num_envs is None else num_envs
    if num_envs < 1 or len(set(seeds)) != len(seeds):
        raise ValueError(f"{num_envs} environments and {len(seeds)} seeds, {len(set(seeds))} of them different")

    def make_env() -> gym.Env[Any, Any]:
        return task.make_env(drawable=listener is not None)

    slots = [_Slot(make_env(), keep_observations) for _ in range(min(num_envs, len(seeds)))]
    waiting = deque(seeds)
    finished: dict[int, Episode] = {}
    env_errors: dict[int, int] = {}
    to_yield = deque(seeds)

    def fail(slot: _Slot, error: Exception) -> None:
        """After an environment raised: a new one, and the episode once more or never."""
        seed = slot.seed
        env_errors[seed] = env_errors.get(seed, 0) + 1
        with contextlib.suppress(Exception):  # it is broken already
            slot.env.close()
        slot.env = make_env()
        if env_errors[seed] < MAX_ENV_ERRORS:
            waiting.appendleft(seed)
        else:
            reason = f"environment: {type(error).__name__}: {error}"
            log.warning("%s, seed %d: %s", task.name, seed, reason)
            finished[seed] = rejected_episode(task, seed, reason)

    def begin(indices: Sequence[int]) -> list[int]:
        """Start the next waiting seeds; the slots that have one."""
        begun = []
        for index in indices:
            slot = slots[index]
            while waiting:
                try:
                    slot.begin(waiting.popleft())
                except Exception as error:  # noqa: BLE001  simulators raise anything; counted, never hidden
                    fail(slot, error)
                    continue
                if listener:
                    listener(slot.seed, slot.env)
                begun.append(index)
                break
        if begun:
            policy.reset(begun, [slots[i].seed for i in begun], [slots[i].env for i in begun])
        return begun

    def advance(slot: _Slot, action: Any) -> bool:
        """One step; True when the slot's episode is over, or was given up because the environment raised."""
        try:
            return _advance(task, slot, action, finished, listener)
        except EnvironmentFailedError as error:
            fail(slot, error.cause)
            return True

    def in_order() -> Iterator[Episode]:
        while to_yield and to_yield[0] in finished:
            yield finished.pop(to_yield.popleft())

    try:
        running = begin(range(len(slots)))
        yield from in_order()  # where every environment broke at once
        while running:
            actions = _executable(task, policy.act(running, _observe(task, slots, running)))
            done = [index for index, action in zip(running, actions, strict=True) if advance(slots[index], action)]
            PULSE.beats += 1
            if done:
                PULSE.episodes += len(done)
                running = sorted(set(running).difference(done).union(begin(done)))
            yield from in_order()
    finally:
        for slot in slots:
            slot.env.close()


def _observe(task: Task, slots: Sequence[_Slot], running: Sequence[int]) -> Observations:
    chosen = [slots[index] for index in running]
    return Observations(
        values=_stack([slot.observation[task.observation] for slot in chosen]),
        texts=[slot.observation[TEXT] for slot in chosen] if task.has_text else None,
        rewards=np.array([slot.rewards[-1] if slot.rewards else 0.0 for slot in chosen], np.float32),
    )


def _stack(observations: Sequence[np.ndarray]) -> np.ndarray:
    """One array of them all. Images keep their channels apart in memory, as they come and as convolutions want them."""
    if observations[0].ndim != 3:
        return np.stack(observations)
    return np.moveaxis(np.stack([np.moveaxis(observation, -1, 0) for observation in observations]), 1, -1)


def _executable(task: Task, actions: Iterable[Any]) -> list[Any]:
    """Actions as the environments are given them and as they are stored: in range; None for one that is not finite."""
    chosen = list(actions)
    if task.action.kind == "discrete":
        return [action if isinstance(action, GiveUp) else int(action) for action in chosen]
    rows = [row for row, action in enumerate(chosen) if not isinstance(action, GiveUp)]
    if rows:
        # The environments clip what they execute but not what they charge for.
        given = np.array([chosen[row] for row in rows], np.float32).clip(task.action.low, task.action.high)
        for row, action, is_finite in zip(rows, given, np.isfinite(given).all(axis=1), strict=True):
            chosen[row] = action if is_finite else None
    return chosen


def _advance(task: Task, slot: _Slot, action: Any, finished: dict[int, Episode], listener: StepListener | None) -> bool:
    """Step one environment; True, with the episode in ``finished``, when its episode is over."""
    if action is None or isinstance(action, GiveUp):
        reason = "action not finite" if action is None else f"policy: {action.reason}"
        finished[slot.seed] = _episode(task, slot, "rejected", reason)
        return True
    slot.note_observation(task)
    slot.actions.append(action)
    try:
        slot.observation, reward, terminated, truncated, info = slot.env.step(action)
    except Exception as error:
        raise EnvironmentFailedError(error) from error
    slot.rewards.append(float(reward))
    if task.success == "info":
        slot.success = slot.success or bool(info["success"])
    elif task.success == "reward":
        slot.success = float(reward) > 0
    if listener:
        listener(slot.seed, slot.env)
    if not (terminated or truncated or len(slot.rewards) >= task.max_steps):
        return False
    finished[slot.seed] = _episode(task, slot, "terminated" if terminated else "truncated", None)
    return True


def rejected_episode(task: Task, seed: int, reason: str) -> Episode:
    """An episode of no steps that says why there is none."""
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


def _episode(task: Task, slot: _Slot, ended: Any, rejected: str | None) -> Episode:
    discrete = task.action.kind == "discrete"
    observations = (stacked if task.observation == IMAGE else np.array)(slot.observations)
    rewards = np.array(slot.rewards, np.float32)
    if rejected is None and not np.isfinite(rewards).all():
        ended, rejected = "rejected", "reward not finite"
    is_finite = slot.is_finite and (observations.dtype.kind != "f" or np.isfinite(observations).all())
    if rejected is None and not is_finite:
        ended, rejected = "rejected", "observation not finite"
    return Episode(
        seed=slot.seed,
        observations=observations,
        texts=tuple(slot.texts) if task.has_text else None,
        actions=np.array(slot.actions, np.int64 if discrete else np.float32),
        rewards=rewards,
        ended=ended,
        success=None if task.success is None else slot.success,
        rejected=rejected,
    )
