"""Environments that raise: the episode is tried once more in a new environment, then rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from tests.fakes import FAULTY, FaultyEnv, action_at, assert_same_episode, expected_episode


class Acting:
    """Acts like ``AssertingPolicy``; a reset in the middle of an episode is allowed."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._state: dict[int, list[int]] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[Any]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._state[slot] = [seed, -1]

    def act(self, slots: Sequence[int], observations: Any) -> list[Any]:
        for slot in slots:
            self._state[slot][1] += 1
        return [action_at(self._task, *self._state[slot]) for slot in slots]


@pytest.mark.parametrize("num_envs", [1, 4])
def test_an_episode_that_always_breaks_its_environment_is_rejected_alone(num_envs: int) -> None:
    task = FAULTY["raise"]
    episodes = list(rollout(task, Acting(task), range(24), num_envs))
    assert [episode.seed for episode in episodes] == list(range(24))
    for episode in episodes:
        if episode.seed % 10 == 3:
            reason = f"environment: RuntimeError: the simulator broke at seed {episode.seed}"
            assert (episode.ended, episode.rejected, len(episode)) == ("rejected", reason, 0)
        else:
            assert_same_episode(episode, expected_episode(task, episode.seed))


def test_an_episode_whose_environment_broke_once_is_played_whole() -> None:
    task = FAULTY["raise-once"]
    FaultyEnv.made = 0
    for episode in rollout(task, Acting(task), range(3, 6), 1):
        assert_same_episode(episode, expected_episode(task, episode.seed))
    assert FaultyEnv.made == 2


@pytest.mark.parametrize("num_envs", [1, 2, 4])
def test_episodes_whose_environments_all_break_at_once_are_all_there(num_envs: int) -> None:
    class NoResetEnv(FaultyEnv):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            raise RuntimeError("no such game")

    task = replace(FAULTY["raise"], factory=NoResetEnv)
    episodes = list(rollout(task, Acting(task), range(3), num_envs))
    assert [episode.seed for episode in episodes] == [0, 1, 2]
    assert {episode.rejected for episode in episodes} == {"environment: RuntimeError: no such game"}


def test_an_error_that_names_objects_is_one_reason() -> None:
    class NamingEnv(FaultyEnv):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            raise RuntimeError(f"lost {object()!r}\nafter {self!r}")

    task = replace(FAULTY["raise"], factory=NamingEnv)
    episodes = list(rollout(task, Acting(task), range(3), 1))
    assert {episode.rejected for episode in episodes} == {"environment: RuntimeError: lost <object object>"}
