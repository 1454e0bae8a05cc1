from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from experts.acting.noise import Noise, NoisyPolicy
from experts.scripted.babyai import MAX_SUBGOALS, BabyAIBotPolicy, LoopingError
from pipeline.envs import babyai
from pipeline.envs.episode import Episode
from pipeline.envs.policy import GiveUp, Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import DISCRETE, TEXT, Task

# Episodes of each of the 39 levels that are compared with minigrid's own bot and view, 1,014 in all.
NUM_COMPARED = 26


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.parametrize(
    "name", ["babyai-go-to-local", "babyai-open-door", "babyai-pickup-loc", "babyai-put-next-local", "babyai-synth-loc"]
)
def test_the_bot_solves_levels(name: str) -> None:
    task = task_named(name)
    episodes = list(rollout(task, BabyAIBotPolicy(task), range(10), num_envs=4))
    assert [episode.success for episode in episodes] == [True] * 10
    assert all(episode.ended == "terminated" and episode.rejected is None for episode in episodes)
    assert all(0 < episode.rewards[-1] <= 1 for episode in episodes)


def test_a_bot_that_loops_gives_up_with_a_reason_and_the_others_go_on() -> None:
    task = task_named("babyai-unlock-to-unlock")
    # Of these seeds the bot loops in the second, at its third step.
    before, looping, after = rollout(task, BabyAIBotPolicy(task), [5, 7, 8], num_envs=1)
    assert looping.rejected == f"policy: bot: LoopingError: over {MAX_SUBGOALS} sub-goals"
    assert (looping.ended, len(looping)) == ("rejected", 2)
    assert [before.success, after.success] == [True, True]


def test_a_bot_whose_actions_are_replaced_still_solves_its_level() -> None:
    task = task_named("babyai-put-next-local")
    policy = NoisyPolicy(task, BabyAIBotPolicy(task), Noise("epsilon", 0.2))
    episodes = list(rollout(task, policy, range(40), num_envs=4))
    assert [episode.rejected for episode in episodes] == [None] * 40
    assert all(episode.success for episode in episodes)


class MinigridView(gym.Wrapper[Any, Any, Any, Any]):
    """A level as minigrid shows it, in the shape of our observations."""

    def reset(self, **options: Any) -> tuple[Any, Any]:
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(**options)
        return self.flat(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        observation, *rest = self.env.step(action)
        return self.flat(observation), *rest  # type: ignore[return-value]

    @staticmethod
    def flat(observation: Any) -> dict[str, Any]:
        values = np.concatenate([[observation["direction"]], observation["image"].ravel()]).astype(np.int64)
        return {DISCRETE: values, TEXT: observation["mission"]}


class MinigridBotPolicy:
    """minigrid's bot, whose stack is looked at after each sub-goal it adds."""

    def __init__(self) -> None:
        self.bots: dict[int, Any] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        class Stack(list[Any]):
            def append(self, item: Any) -> None:
                if len(self) == 100:
                    raise LoopingError("over 100 sub-goals")
                super().append(item)

        for slot, env in zip(slots, envs, strict=True):
            self.bots[slot] = BabyAIBot(env)
            self.bots[slot].stack = Stack(self.bots[slot].stack)

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        return [self.next_action(slot) for slot in slots]

    def next_action(self, slot: int) -> Any:
        try:
            return self.bots[slot].replan()
        except Exception as error:  # noqa: BLE001  whatever it is, ours must raise the same
            return GiveUp(f"bot: {type(error).__name__}: {error}")


def minigrid_level(task: Task) -> gym.Env[Any, Any]:
    import minigrid  # noqa: F401  registers the levels

    return MinigridView(gym.make(task.env_id, disable_env_checker=True))


def assert_same_episodes(task: Task, seeds: Sequence[int]) -> list[Episode]:
    """Play ``seeds`` with our bot in our environment and with minigrid's in minigrid's; ours are returned."""
    ours = list(rollout(task, BabyAIBotPolicy(task), seeds, num_envs=4))
    theirs = list(rollout(replace(task, factory=minigrid_level), MinigridBotPolicy(), seeds, num_envs=4))
    for one, other in zip(ours, theirs, strict=True):
        what = f"{task.name}, seed {one.seed}"
        assert one.seed == other.seed
        assert (one.rejected, one.ended, one.success) == (other.rejected, other.ended, other.success), what
        assert one.actions.tolist() == other.actions.tolist(), what
        assert one.rewards.tolist() == other.rewards.tolist(), what
        assert one.texts == other.texts, what
        assert one.observations.dtype == other.observations.dtype
        np.testing.assert_array_equal(one.observations, other.observations, err_msg=what)
    return ours


@pytest.mark.parametrize("task", babyai.TASKS, ids=lambda task: task.name)
def test_bot_and_level_do_what_those_of_minigrid_do(task: Task) -> None:
    assert len(assert_same_episodes(task, range(NUM_COMPARED))) == NUM_COMPARED


def test_the_comparison_has_a_thousand_episodes_and_holds_for_one_that_is_given_up() -> None:
    assert len(babyai.TASKS) * NUM_COMPARED >= 1000
    looping = assert_same_episodes(task_named("babyai-unlock-to-unlock"), [5, 7, 8])
    assert [episode.rejected is None for episode in looping] == [True, False, True]
