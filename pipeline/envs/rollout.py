"""The only environment loop: collection, measurement, evaluation and videos all use it.

N vectorised environments step in lockstep. An environment whose episode ends is reset with the next seed of a static
list. Every listed seed is played to its end, so short episodes are not over-represented, and the result does not depend
on N. The environments may belong to several tasks with the same observation and action spaces, so that a network
computes the actions of all tasks in one batch.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.episode import Episode, label_array, rejected_episode
from pipeline.envs.frames import stacked
from pipeline.envs.policy import GiveUp, LabelledActions, Observations, Policy, executable_actions
from pipeline.envs.task import IMAGE, TEXT, Task
from pipeline.errors import reason_of
from pipeline.runtime.heartbeat import WORKER_PROGRESS

# An episode is rejected after this many environment errors; each retry uses a newly created environment.
MAX_ENV_ERRORS = 2

# Cache of the last rollout's environments: a worker plays many shards of the same task, and creating an environment
# takes up to 0.1 s. After a reset, a used environment behaves like a new one.
_IDLE: dict[Task, list[gym.Env[Any, Any]]] = {}

# Called with (seed, environment) after each reset and each step, e.g. to render a frame.
StepListener = Callable[[int, gym.Env[Any, Any]], None]


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RolloutPart:
    """One task of a rollout, with its seeds.

    Attributes:
        task: the task to play; its ``make_env`` is called at most ``num_envs`` times, plus once per error.
        seeds: one episode is played per seed.
        num_envs: number of vectorised environments.
        listener: called after each reset and each step.
    """

    task: Task
    seeds: Sequence[int]
    num_envs: int
    listener: StepListener | None = None

    @property
    def num_slots(self) -> int:
        """Number of policy slots that this part uses."""
        return min(self.num_envs, len(self.seeds))

    def make_env(self) -> gym.Env[Any, Any]:
        return self.task.make_env(drawable=self.listener is not None)

    def take_env(self) -> gym.Env[Any, Any]:
        """Take an environment from the cache, or create one."""
        idle = _IDLE.get(self.task) if self.listener is None else None
        return idle.pop() if idle else self.make_env()


class EnvironmentFailedError(RuntimeError):
    """An environment raised ``cause`` in a step. Errors of policies and of this loop are not wrapped."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.cause = cause


@dataclass
class _Slot:
    """An environment and the state of its current episode.

    Attributes:
        waiting: seeds of the part that have not started yet; a queue shared by the part's slots.
        labels: one per action if the policy gives labels, else empty.
    """

    part: RolloutPart
    env: gym.Env[Any, Any]
    waiting: deque[int]
    keep_observations: bool = True
    seed: int = -1
    observation: dict[str, Any] = field(default_factory=dict)
    observations: list[np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    is_finite: bool = True
    success: bool = False

    def begin(self, seed: int) -> None:
        self.seed = seed
        self.observation, _ = self.env.reset(seed=seed)
        self.observations, self.texts, self.actions, self.labels, self.rewards = [], [], [], [], []
        self.is_finite, self.success = True, False

    def note_observation(self) -> None:
        """Called before each action: store the observation, or only whether it was finite."""
        task = self.part.task
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
    """Play one episode per seed and yield them in the order of ``seeds``; see ``rollout_parts``.

    Args:
        task: the task to play.
        policy: chooses the actions; it gets at most ``num_envs`` slots.
        seeds: one episode is played per seed.
        num_envs: number of vectorised environments; ``task.lockstep`` if None.
        listener: called after each reset and each step.
        keep_observations: as in ``rollout_parts``.

    Raises:
        ValueError: a seed is listed twice, or there is no environment to play in.
    """
    part = RolloutPart(task, seeds, task.lockstep if num_envs is None else num_envs, listener)
    finished: dict[int, Episode] = {}
    to_yield = deque(seeds)
    with contextlib.closing(rollout_parts([part], policy, keep_observations)) as episodes:
        for _, episode in episodes:
            finished[episode.seed] = episode
            while to_yield and to_yield[0] in finished:
                yield finished.pop(to_yield.popleft())


def rollout_parts(
    parts: Sequence[RolloutPart], policy: Policy, keep_observations: bool = True
) -> Generator[tuple[Task, Episode]]:
    """Play all parts in lockstep and yield ``(task, episode)`` in completion order.

    Args:
        parts: their tasks have the same observation and action spaces. If an environment raises, the episode is
            retried once in a new environment, then rejected with the error as its reason.
        policy: chooses the actions; its first slots belong to the first part, and so on.
        keep_observations: False if only returns are needed, as in measuring: the frames of one Atari game can take
            750 MB. The episodes' ``observations`` and ``texts`` are then empty.

    Raises:
        ValueError: a seed is listed twice, there is no environment to play in, or the tasks' spaces differ.
    """
    _check(parts)
    queues = [(part, deque(part.seeds)) for part in parts]
    slots = [
        _Slot(part, part.take_env(), waiting, keep_observations)
        for part, waiting in queues
        for _ in range(part.num_slots)
    ]
    finished: deque[tuple[Task, Episode]] = deque()
    env_errors: Counter[tuple[str, int]] = Counter()

    def fail(slot: _Slot, error: Exception) -> None:
        """Handle an environment error: replace the environment, then retry or reject the episode."""
        task, seed = slot.part.task, slot.seed
        env_errors[task.name, seed] += 1
        with contextlib.suppress(Exception):  # a broken environment may raise again
            slot.env.close()
        slot.env = slot.part.make_env()
        if env_errors[task.name, seed] < MAX_ENV_ERRORS:
            slot.waiting.appendleft(seed)
        else:
            reason = f"environment: {reason_of(error)}"
            log.warning("%s, seed %d: %s", task.name, seed, reason)
            finished.append((task, rejected_episode(task, seed, reason)))

    def begin(indices: Sequence[int]) -> list[int]:
        """Start the next waiting seeds; return the indices of the slots that got one."""
        begun = []
        for index in indices:
            slot = slots[index]
            while slot.waiting:
                try:
                    slot.begin(slot.waiting.popleft())
                except Exception as error:  # noqa: BLE001  simulators raise anything; counted, never hidden
                    fail(slot, error)
                    continue
                if slot.part.listener:
                    slot.part.listener(slot.seed, slot.env)
                begun.append(index)
                break
        if begun:
            policy.reset(begun, [slots[i].seed for i in begun], [slots[i].env for i in begun])
        return begun

    def advance(slot: _Slot, action: Any) -> bool:
        """Make one step; return whether the episode is over or was abandoned because the environment raised."""
        try:
            episode = _advance(slot, action)
        except EnvironmentFailedError as error:
            fail(slot, error.cause)
            return True
        if episode is not None:
            finished.append((slot.part.task, episode))
        return episode is not None

    try:
        running = begin(range(len(slots)))
        yield from _taken_from(finished)  # episodes rejected because every reset failed
        while running:
            task = slots[0].part.task
            chosen = policy.act(running, _observe(task, slots, running))
            if isinstance(chosen, LabelledActions):
                for index, label in zip(running, executable_actions(task, chosen.labels), strict=True):
                    slots[index].labels.append(label)
            actions = executable_actions(task, chosen)
            done = [index for index, action in zip(running, actions, strict=True) if advance(slots[index], action)]
            WORKER_PROGRESS.beats += 1
            WORKER_PROGRESS.steps += len(running)
            if done:
                WORKER_PROGRESS.episodes += len(done)
                running = sorted(set(running).difference(done).union(begin(done)))
            yield from _taken_from(finished)
    except Exception:
        # Do not cache these environments: one may be broken, with no replacement.
        for slot in slots:
            slot.env.close()
        slots = []
        raise
    finally:
        _leave(slots)


def _leave(slots: Sequence[_Slot]) -> None:
    """Cache the environments of a finished rollout, and close the cached ones that it did not use."""
    for env in itertools.chain.from_iterable(_IDLE.values()):
        env.close()
    _IDLE.clear()
    for slot in slots:
        if slot.part.listener is None:
            _IDLE.setdefault(slot.part.task, []).append(slot.env)
        else:
            slot.env.close()


def _check(parts: Sequence[RolloutPart]) -> None:
    for part in parts:
        if part.num_envs < 1 or len(set(part.seeds)) != len(part.seeds):
            raise ValueError(
                f"{part.num_envs} environments and {len(part.seeds)} seeds, {len(set(part.seeds))} of them different"
            )
    kinds = {(t.observation, t.observation_shape, t.has_text, t.action) for t in (part.task for part in parts)}
    if len(kinds) > 1 or len({part.task.name for part in parts}) != len(parts):
        raise ValueError(f"not different tasks of one layout: {', '.join(part.task.name for part in parts)}")


def _taken_from(finished: deque[tuple[Task, Episode]]) -> Iterator[tuple[Task, Episode]]:
    while finished:
        yield finished.popleft()


def _observe(task: Task, slots: Sequence[_Slot], running: Sequence[int]) -> Observations:
    chosen = [slots[index] for index in running]
    return Observations(
        values=_stack([slot.observation[task.observation] for slot in chosen]),
        texts=[slot.observation[TEXT] for slot in chosen] if task.has_text else None,
        rewards=np.array([slot.rewards[-1] if slot.rewards else 0.0 for slot in chosen], np.float32),
    )


def _stack(observations: Sequence[np.ndarray]) -> np.ndarray:
    """Stack observations into one array. Images are channels-first in memory, as frames and convolutions are."""
    if observations[0].ndim != 3:
        return np.concatenate(observations).reshape(len(observations), *observations[0].shape)
    return np.stack([observation.transpose(2, 0, 1) for observation in observations]).transpose(0, 2, 3, 1)


def _advance(slot: _Slot, action: Any) -> Episode | None:
    """Step one environment; return the episode if it is over, else None."""
    task, listener = slot.part.task, slot.part.listener
    if action is None or isinstance(action, GiveUp):
        reason = "action not finite" if action is None else f"policy: {action.reason}"
        return _episode(slot, "rejected", reason)
    slot.note_observation()
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
        return None
    return _episode(slot, "terminated" if terminated else "truncated", None)


def _episode(slot: _Slot, ended: Any, rejected: str | None) -> Episode:
    task = slot.part.task
    discrete = task.action.kind == "discrete"
    observations = (stacked if task.observation == IMAGE else np.array)(slot.observations)
    rewards = np.array(slot.rewards, np.float32)
    if rejected is None and not np.isfinite(rewards).all():
        ended, rejected = "rejected", "reward not finite"
    is_finite = slot.is_finite and (observations.dtype.kind != "f" or np.isfinite(observations).all())
    if rejected is None and not is_finite:
        ended, rejected = "rejected", "observation not finite"
    final = slot.observation[task.observation]
    is_known = rejected is None and slot.keep_observations and (final.dtype.kind != "f" or np.isfinite(final).all())
    return Episode(
        seed=slot.seed,
        observations=observations,
        texts=tuple(slot.texts) if task.has_text else None,
        actions=np.array(slot.actions, np.int64 if discrete else np.float32),
        rewards=rewards,
        ended=ended,
        success=None if task.success is None else slot.success,
        rejected=rejected,
        final_observation=np.array(final) if is_known else None,
        labels=label_array(task, slot.labels[: len(slot.actions)]) if slot.labels else None,
    )
