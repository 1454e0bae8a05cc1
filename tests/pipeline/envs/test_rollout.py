from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experts.scripted.babyai import BabyAIBotPolicy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.policy import GiveUp, LabelledActions, Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import RolloutPart, rollout, rollout_parts
from pipeline.envs.task import Action, Task
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_NAN_OBSERVATION,
    FAKE_NAN_REWARD,
    FAKE_PIXELS,
    AssertingPolicy,
    CountingEnv,
    assert_same_episode,
    expected_episode,
)

# All lengths, both ways of ending, and neighbours of different length in the same slot.
SEEDS = [4, 0, 3, 1_000_000_002, 1, 9, 5, 2]


def test_a_continuous_episode_is_literally_what_was_seen_done_and_earned() -> None:
    (episode,) = rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), [23])
    assert episode.seed == 23
    assert episode.observations.dtype == np.float32
    assert episode.observations.tolist() == [[0, 1, 3, 0], [0, 1, 3, 1], [0, 1, 3, 2], [0, 1, 3, 3]]
    assert episode.actions.dtype == np.float32
    expected = np.array([[0.15, 0.0], [0.15, 0.05], [0.15, 0.1], [0.15, 0.15]], np.float32)
    np.testing.assert_array_equal(episode.actions, expected)
    assert episode.rewards.dtype == np.float32
    assert episode.rewards.tolist() == [1.75, 2.75, 3.75, 4.75]
    assert (episode.texts, episode.ended, episode.success, episode.rejected) == (None, "terminated", False, None)
    assert (len(episode), episode.total_reward) == (4, 13.0)


def test_a_discrete_episode_is_literally_what_was_seen_done_and_earned() -> None:
    (episode,) = rollout(FAKE_GRID, AssertingPolicy(FAKE_GRID), [1_000_000_003])
    assert episode.observations.dtype == np.int64
    assert episode.observations.tolist() == [[10, 0, 3, 0], [10, 0, 3, 1], [10, 0, 3, 2], [10, 0, 3, 3]]
    assert episode.texts == (
        "seed 1000000003 step 0",
        "seed 1000000003 step 1",
        "seed 1000000003 step 2",
        "seed 1000000003 step 3",
    )
    assert episode.actions.dtype == np.int64
    assert episode.actions.tolist() == [3, 0, 2, 4]
    assert episode.rewards.tolist() == [0.125, 0.25, 0.375, -1.0]
    assert (episode.ended, episode.success, episode.rejected) == ("terminated", False, None)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
@pytest.mark.parametrize("num_envs", [1, 2, 3, 7, 16])
def test_every_seed_is_played_once_and_in_order_whatever_the_number_of_environments(task: Task, num_envs: int) -> None:
    episodes = list(rollout(task, AssertingPolicy(task), SEEDS, num_envs))
    assert [episode.seed for episode in episodes] == SEEDS
    for episode in episodes:
        assert_same_episode(episode, expected_episode(task, episode.seed))


@pytest.mark.parametrize(
    ("seed", "length", "ended"),
    [(0, 1, "terminated"), (1, 2, "terminated"), (2, 3, "truncated"), (3, 4, "terminated"), (4, 6, "truncated")],
)
def test_an_episode_ends_as_the_environment_says_or_at_the_step_limit(seed: int, length: int, ended: str) -> None:
    (episode,) = rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), [seed])
    assert (len(episode), episode.ended) == (length, ended)


def test_success_is_told_at_any_step_or_by_the_last_reward() -> None:
    def successes(task: Task) -> list[bool | None]:
        return [episode.success for episode in rollout(task, AssertingPolicy(task), [0, 1, 2, 3])]

    assert successes(FAKE_COUNT) == [True, False, False, True]
    assert successes(FAKE_GRID) == [True, False, False, True]
    assert successes(FAKE_PIXELS) == [None, None, None, None]


def test_a_slot_that_succeeded_does_not_lend_its_success_to_the_next_episode() -> None:
    episodes = rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), [3, 1], num_envs=1)
    assert [episode.success for episode in episodes] == [True, False]


def test_actions_out_of_range_are_clipped_for_the_environment_and_in_the_data() -> None:
    # The counting environment fails on an action outside [-1, 1].
    policy = AssertingPolicy(FAKE_COUNT, {(1, 0): [3.5, -0.25], (1, 1): np.array([-np.inf, 1.0])})
    (episode,) = rollout(FAKE_COUNT, policy, [1])
    assert episode.actions.dtype == np.float32
    assert episode.actions.tolist() == [[1.0, -0.25], [-1.0, 1.0]]


def test_a_policy_that_gives_up_makes_a_rejected_episode_and_frees_its_slot() -> None:
    policy = AssertingPolicy(FAKE_COUNT, {(3, 2): GiveUp("lost"), (4, 0): GiveUp("no idea")})
    third, fourth, first = rollout(FAKE_COUNT, policy, [3, 4, 1], num_envs=2)
    assert (third.rejected, third.ended) == ("policy: lost", "rejected")
    assert third.observations.tolist() == [[0, 0, 3, 0], [0, 0, 3, 1]]
    assert third.rewards.tolist() == [1.75, 2.75]
    assert (fourth.rejected, fourth.ended, len(fourth), fourth.total_reward) == ("policy: no idea", "rejected", 0, 0.0)
    assert_same_episode(first, expected_episode(FAKE_COUNT, 1))


def test_an_action_that_is_not_finite_is_a_reason_for_rejection() -> None:
    policy = AssertingPolicy(FAKE_COUNT, {(3, 1): np.array([0.5, np.nan])})
    rejected, accepted = rollout(FAKE_COUNT, policy, [3, 1])
    assert (rejected.rejected, rejected.ended, len(rejected)) == ("action not finite", "rejected", 1)
    assert accepted.rejected is None


@pytest.mark.parametrize(
    ("task", "reason"),
    [(FAKE_NAN_REWARD, "reward not finite"), (FAKE_NAN_OBSERVATION, "observation not finite")],
    ids=["reward", "observation"],
)
def test_a_value_of_the_environment_that_is_not_finite_is_a_reason_for_rejection(task: Task, reason: str) -> None:
    episodes = list(rollout(task, RandomPolicy(task), [1, 3, 7], num_envs=2))
    assert [episode.rejected for episode in episodes] == [reason, None, reason]
    assert [episode.ended for episode in episodes] == ["rejected", "terminated", "rejected"]


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, FAKE_NAN_OBSERVATION, FAKE_NAN_REWARD])
def test_without_observations_everything_else_is_the_same(task: Task) -> None:
    kept = rollout(task, RandomPolicy(task), SEEDS, num_envs=3)
    bare = rollout(task, RandomPolicy(task), SEEDS, num_envs=3, keep_observations=False)
    for one, other in zip(kept, bare, strict=True):
        assert len(other.observations) == 0 and not other.texts
        assert_same_episode(replace(one, observations=other.observations, texts=other.texts), other)


def test_the_listener_sees_each_state_once_after_each_reset_and_step() -> None:
    def calls(num_envs: int) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []

        def listener(seed: int, env: Any) -> None:
            seen.append((seed, env.unwrapped.t))

        list(rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), [1, 2], num_envs, listener))
        return seen

    assert calls(1) == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert calls(2) == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2), (2, 3)]


def test_environments_are_made_as_needed_kept_for_the_next_rollout_of_their_task_and_closed_after_another() -> None:
    made: list[CountingEnv] = []

    def factory(task: Task) -> CountingEnv:
        made.append(CountingEnv(task))
        return made[-1]

    task, other = (replace(FAKE_COUNT, name=name, factory=factory) for name in ("one", "other"))
    first = list(rollout(task, AssertingPolicy(task), [0, 1, 2, 3, 4], num_envs=3))
    assert [env.closed for env in made] == [False, False, False]
    again = list(rollout(task, AssertingPolicy(task), [0, 1, 2, 3, 4], num_envs=3))
    assert len(made) == 3
    assert [e.observations.tolist() for e in again] == [e.observations.tolist() for e in first]
    list(rollout(task, AssertingPolicy(task), [0, 1], num_envs=16))
    assert sorted(env.closed for env in made) == [False, False, True]
    abandoned = rollout(other, AssertingPolicy(other), [0, 4], num_envs=2)
    next(abandoned)
    abandoned.close()
    assert [env.closed for env in made] == [True, True, True, False, False]
    # One that is drawn is made for it, and nobody else's.
    list(rollout(other, AssertingPolicy(other), [0], 1, listener=lambda seed, env: None))
    assert len(made) == 6 and all(env.closed for env in made)


def test_a_broken_environment_that_cannot_be_replaced_is_not_kept() -> None:
    made: list[CountingEnv] = []

    broken: list[Any] = []  # actions that the broken one was given

    class BrokenEnv(CountingEnv):
        def step(self, action: Any) -> Any:
            broken.append(action)
            raise RuntimeError("out of order")

    def factory(task: Task) -> CountingEnv:
        if len(made) == 1:
            made.append(CountingEnv(task))
            raise RuntimeError("no second one")
        made.append(CountingEnv(task) if made else BrokenEnv(task))
        return made[-1]

    task = replace(FAKE_COUNT, factory=factory)
    with pytest.raises(RuntimeError, match="no second one"):
        list(rollout(task, AssertingPolicy(task), [0], num_envs=1))
    (episode,) = rollout(task, AssertingPolicy(task), [0], num_envs=1)
    assert episode.rejected is None and made[0].closed and len(broken) == 1


def test_a_free_environment_takes_the_next_seed_at_once() -> None:
    batches: list[list[int]] = []

    class NotingPolicy(AssertingPolicy):
        def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
            batches.append(list(slots))
            return super().act(slots, observations)

    # Lengths 1, 2, 1, 1 and 3: the last slot is freed when no seed is left for it.
    list(rollout(FAKE_COUNT, NotingPolicy(FAKE_COUNT), [0, 1, 5, 10, 2], num_envs=2))
    assert batches == [[0, 1], [0, 1], [0, 1], [1], [1]]


def test_tasks_that_look_alike_are_played_in_one_lockstep_each_over_its_own_seeds() -> None:
    other = replace(FAKE_COUNT, name="fake-other", max_steps=3)
    asked: list[list[int]] = []

    class NotingPolicy(AssertingPolicy):
        def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
            asked.append(list(slots))
            return super().act(slots, observations)

    parts = [RolloutPart(FAKE_COUNT, [3, 0, 1], 2), RolloutPart(other, [0, 1, 2, 5], 9)]
    found = list(rollout_parts(parts, NotingPolicy(FAKE_COUNT)))
    # Four steps, one and two; one, two, three and one. They come as they end.
    assert [(task.name, episode.seed) for task, episode in found] == [
        ("fake-count", 0), ("fake-other", 0), ("fake-other", 5), ("fake-other", 1), ("fake-count", 1),
        ("fake-other", 2), ("fake-count", 3),
    ]  # fmt: skip
    assert asked == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 4], [0, 1, 4], [0]]
    for task, episode in found:
        assert_same_episode(episode, expected_episode(task, episode.seed))


def test_the_listener_of_a_task_sees_its_own_environments_only() -> None:
    seen: list[tuple[str, int]] = []
    parts = [
        RolloutPart(task, [1], 1, lambda seed, env, name=task.name: seen.append((name, seed)))  # type: ignore[misc]
        for task in (FAKE_COUNT, replace(FAKE_COUNT, name="fake-other"))
    ]
    list(rollout_parts(parts, AssertingPolicy(FAKE_COUNT)))
    assert sorted(seen) == [("fake-count", 1)] * 3 + [("fake-other", 1)] * 3


def test_tasks_that_do_not_look_alike_or_are_the_same_are_refused() -> None:
    for other in (FAKE_GRID, FAKE_COUNT, replace(FAKE_COUNT, name="far", action=Action("continuous", 2, -2.0, 2.0))):
        with pytest.raises(ValueError, match="not different tasks of one layout: fake-count, "):
            next(
                rollout_parts(
                    [RolloutPart(FAKE_COUNT, [1], 1), RolloutPart(other, [1], 1)], AssertingPolicy(FAKE_COUNT)
                )
            )


def test_no_seeds_make_no_episodes() -> None:
    assert list(rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), [])) == []


@pytest.mark.parametrize(
    ("name", "policy", "num_seeds"),
    [("babyai-go-to-local", BabyAIBotPolicy, 6), ("metaworld-drawer-close", ScriptedPolicy, 3)],
)
def test_real_episodes_do_not_depend_on_the_number_of_environments(name: str, policy: Any, num_seeds: int) -> None:
    (task,) = select_tasks(name)
    alone = list(rollout(task, policy(task), range(num_seeds), num_envs=1))
    together = list(rollout(task, policy(task), range(num_seeds), num_envs=3))
    for one, other in zip(together, alone, strict=True):
        assert_same_episode(one, other)


class Labelling(AssertingPolicy):
    """Acts as it should, and labels each step with a constant; it is silent at steps of odd number."""

    def act(self, slots: Sequence[int], observations: Observations) -> LabelledActions:
        steps = [self._steps[slot] for slot in slots]
        label: Any = 3 if self._task.action.kind == "discrete" else np.array([0.25, 7.0])
        return LabelledActions(super().act(slots, observations), [GiveUp("?") if t % 2 else label for t in steps])


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
def test_labels_are_kept_step_by_step_and_change_nothing_else(task: Task, num_envs: int) -> None:
    for seed, episode in zip(SEEDS, rollout(task, Labelling(task), SEEDS, num_envs), strict=True):
        assert_same_episode(episode, expected_episode(task, seed))
        assert episode.labels is not None and episode.labels.dtype == episode.actions.dtype
        unknown: Any = -1 if task.action.kind == "discrete" else [np.nan] * 2
        known: Any = 3 if task.action.kind == "discrete" else [0.25, 1.0]  # clipped as it would be executed
        expected = np.array([unknown if t % 2 else known for t in range(len(episode))], episode.actions.dtype)
        np.testing.assert_array_equal(episode.labels, expected)
        assert episode.num_labelled == -(-len(episode) // 2)


def test_an_episode_that_is_given_up_has_labels_of_its_steps_only_and_without_an_expert_there_are_none() -> None:
    policy = Labelling(FAKE_GRID, {(8, 2): GiveUp("lost")})
    (episode,) = rollout(FAKE_GRID, policy, [8])
    assert episode.rejected == "policy: lost" and episode.labels is not None
    assert len(episode.labels) == len(episode.actions) == 2
    (plain,) = rollout(FAKE_GRID, AssertingPolicy(FAKE_GRID), [8])
    assert plain.labels is None and plain.num_labelled is None
