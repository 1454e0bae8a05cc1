"""Replay a stored episode from its seed and check that the result is identical.

    jat dataset replay --task metaworld-reach --seed 17 --out runs/default

The expert and noise recorded in the side table act in the same rollout that collected the episode. If that expert is
not available, or with ``--actions``, the stored actions are played instead, which checks only the environment. Labels
are asked for again, of the expert that gave them. Every column is compared bit by bit. Exit code 0: equal; 1:
different.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from collectors.stored import StoredEpisode, find_episode, naming_missing_packages, one_task
from experts.acting.labels import LabelledPolicy, make_labeller
from experts.acting.noise import NoisyPolicy, noise_of_task
from experts.registry import experts_of, make_policy
from experts.store import StoredExpert
from pipeline.cli import parse, run
from pipeline.envs.episode import Episode
from pipeline.envs.policy import GiveUp, Observations, Policy
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError
from pipeline.run_layout import RunLayout
from pipeline.storage.observations import observation_column
from pipeline.storage.schema import REWARDS, TEXTS, action_column, label_column
from pipeline.versions import versions_of

log = logging.getLogger(__name__)

STEPS_AT_ONCE = 256  # steps compared at once; a long game's images are hundreds of megabytes
ACTIONS_END = "the stored actions end here"


@dataclass(frozen=True)
class ReplayConfig:
    """Replay a stored episode from its seed and compare."""

    task: str
    """Name of the task."""
    seed: int
    """Seed of the episode."""
    out: Path = Path("runs/default")
    """Root of the run that holds the dataset, shards and experts."""
    dataset: Path | None = None
    """Dataset with the stored episode; if not given, OUT/dataset, or else OUT/shards."""
    actions: bool = False
    """Play the stored actions instead of the expert."""


class StoredActions:
    """A policy for one slot that plays the stored actions, ``(T, ...)``, of one episode."""

    def __init__(self, actions: np.ndarray) -> None:
        self._actions, self._next = actions, 0

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._next = 0

    def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
        if self._next == len(self._actions):
            return [GiveUp(ACTIONS_END)]
        self._next += 1
        return [self._actions[self._next - 1]]


def replay(config: ReplayConfig, tasks: Sequence[Task] | None = None) -> None:
    """Replay an episode and compare it with the stored one.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: there is no such episode.
        JobsFailedError: the replay differs; names the first step and column that differ, and by how much.
    """
    task = one_task(config.task, tasks)
    stored = find_episode(task, config.seed, config.out, config.dataset)
    log.info("stored: %s", stored.place)
    log.info("%s", replay_stored(stored, config.out, config.actions))


def replay_stored(stored: StoredEpisode, out: Path, actions: bool = False) -> str:
    """Replay an episode and compare it; return in one line with whom it was played and that it is equal.

    Args:
        stored: the episode.
        out: root of the run that holds the experts.
        actions: whether to play the stored actions instead of the expert.

    Raises:
        UserError: a package of the task is missing.
        JobsFailedError: as ``replay``.
    """
    task = stored.task
    with naming_missing_packages(task):
        differing = warn_of_versions(stored)
        policy = None if actions else _expert(out, stored)
        if policy is None:
            who, policy = "the stored actions", StoredActions(stored.steps.actions)
        else:
            who = stored.expert_revision + (f" and noise {stored.noise}" if stored.noise else "")
        policy, labeller = _labelled(out, stored, policy)
        who += f", labelled by {labeller}" if labeller else ""
        (replayed,) = rollout(task, policy, [stored.playable_seed], 1)
    difference = first_difference(stored, replayed)
    played = f"{task.name}, seed {stored.seed}, played again with {who}"
    if difference:
        why = f"; package versions differ: {', '.join(differing)}" if differing else ""
        raise JobsFailedError(f"{played}, is different: {difference}{why}")
    return f"{played}: equal in all columns, {len(replayed)} steps, return {replayed.total_reward:.6g}"


def warn_of_versions(stored: StoredEpisode) -> list[str]:
    """Describe packages whose installed version differs from the recorded one; warns if there are any."""
    installed = versions_of(stored.task.packages)
    differing = [
        f"{name} {recorded} then, {installed[name]} now"
        for name, recorded in stored.versions.items()
        if name in installed and installed[name] != recorded
    ]
    if differing:
        log.warning("made with other package versions: %s; the episode may come out differently", "; ".join(differing))
    return differing


def _find(out: Path, task: Task, revision: str) -> StoredExpert | None:
    return next((expert for expert in experts_of(out, task) if expert.record.revision == revision), None)


def _labelled(out: Path, stored: StoredEpisode, policy: Policy) -> tuple[Policy, str | None]:
    """The policy with the labels of the expert that gave the stored ones, and its revision; as it is without one."""
    if stored.steps.labels is None:
        return policy, None
    labeller = _find(out, stored.task, stored.label_expert or "")
    if labeller is None:
        log.warning("the labels of %s are not compared: it is not in %s", stored.label_expert, out)
        return policy, None
    return LabelledPolicy(policy, make_labeller(stored.task, labeller)), stored.label_expert


def _expert(out: Path, stored: StoredEpisode) -> Policy | None:
    """The policy that played the episode, noise included; None if its expert is not available."""
    task = stored.task
    expert = _find(out, task, stored.expert_revision)
    if expert is not None:
        policy = make_policy(task, expert)
        noise = noise_of_task(stored.noise or "", task)
        return NoisyPolicy(task, policy, noise) if noise else policy
    log.warning(
        "expert %s is neither in %s nor embedded, nor a rule as it is installed; the stored actions are played",
        stored.expert_revision,
        RunLayout(out).experts_of(task.name),
    )
    return None


def first_difference(stored: StoredEpisode, replayed: Episode) -> str:
    """Describe the first step and column that differ, and by how much; empty if nothing differs."""
    num_steps = min(stored.length, len(replayed))
    found = [(first, name) for name, a, b in _columns(stored, replayed) if (first := _first_step(a, b, num_steps))]
    if found:
        (step, words), name = min(found, key=lambda pair: pair[0][0])  # the first of several columns in a step
        return f"step {step}, {name}{words}"
    if stored.length != len(replayed):
        reason = f" ({replayed.rejected})" if replayed.rejected else ""
        return f"{stored.length} steps stored, {len(replayed)} played{reason}, the first {num_steps} of them equal"
    if replayed.rejected:
        if replayed.rejected.endswith(ACTIONS_END):
            return f"the stored episode is {stored.ended} after {stored.length} steps, the one played is not over then"
        return f"the episode played was rejected: {replayed.rejected}"
    for name, a, b in (
        ("ended", stored.ended, replayed.ended),
        ("success", stored.success, replayed.success),
        ("return", stored.total_reward, replayed.total_reward),
    ):
        if a != b:
            return f"{name} is {a} in the side table, {b} when played, though all steps are equal"
    return ""


def _columns(stored: StoredEpisode, replayed: Episode) -> Iterator[tuple[str, Any, Any]]:
    """Name, stored values and replayed values of each column, in the order of events within a step."""
    task, steps = stored.task, stored.steps
    if steps.texts is not None:
        yield TEXTS, np.array(steps.texts.to_pylist(), object), np.array(replayed.texts, object)
    yield observation_column(task), steps.observations, replayed.observations
    yield action_column(task), steps.actions, replayed.actions
    if steps.labels is not None and replayed.labels is not None:
        yield label_column(task), steps.labels, replayed.labels
    yield REWARDS, steps.rewards, replayed.rewards


def _first_step(stored: np.ndarray, replayed: np.ndarray, num_steps: int) -> tuple[int, str] | None:
    """The first of ``num_steps`` steps in which two columns differ, and a description of the difference."""
    for begin in range(0, num_steps, STEPS_AT_ONCE):
        a = stored[begin : min(begin + STEPS_AT_ONCE, num_steps)]
        b = replayed[begin : begin + len(a)].astype(a.dtype)
        differ = a != b
        if a.dtype.kind == "f":
            differ &= ~(np.isnan(a) & np.isnan(b))  # steps without a label
        wrong = np.flatnonzero(differ.reshape(len(a), -1).any(axis=1))
        if len(wrong):
            return begin + int(wrong[0]), _describe(a[wrong[0]], b[wrong[0]])
    return None


def _describe(stored: Any, replayed: Any) -> str:
    """Describe how the values of one step differ: ``[3]: 0.5 stored, 0.25 played, 0.25 apart``."""
    a, b = np.asarray(stored), np.asarray(replayed)
    differ = a != b
    first = tuple(int(index) for index in np.argwhere(differ)[0]) if a.ndim else ()
    words = f"{list(first) if first else ''}: {a[first]!s} stored, {b[first]!s} played"
    if a.dtype.kind not in "fiu":
        return words
    apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    words += f", {apart[first]:.3g} apart"
    count = int(differ.sum())
    return words + (f" ({count} of {a.size} numbers of the step differ, by at most {apart.max():.3g})" if first else "")


def main() -> None:
    replay(parse(ReplayConfig))


if __name__ == "__main__":
    run("collectors.replay")
