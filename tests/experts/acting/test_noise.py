from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experts.acting.noise import NAMES, Noise, NoisyPolicy, check_noise, noise_of_task, parse_noise
from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.policy import GiveUp, Observations
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_GRID, AssertingPolicy, assert_same_episode, expected_episode

SHARES = st.floats(0, 1, exclude_min=True)
NOISES = st.builds(Noise, st.sampled_from(sorted(NAMES)), SHARES, SHARES)


class Constant:
    """Acts ``action`` whatever it sees."""

    def __init__(self, action: Any) -> None:
        self._action = action

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        pass

    def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
        return [self._action] * len(slots)


@given(noise=NOISES)
def test_noise_reads_back_what_it_is_written_as(noise: Noise) -> None:
    assert parse_noise(str(noise)) == (noise,)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("epsilon=0.05", (Noise("epsilon", 0.05),)),
        (" 0.5 * epsilon = 0.1 , gaussian=1", (Noise("epsilon", 0.1, 0.5), Noise("gaussian", 1.0))),
    ],
)
def test_noise_is_a_list_of_amounts_and_shares(text: str, expected: tuple[Noise, ...]) -> None:
    assert parse_noise(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform=0.1", "'uniform' is no noise; allowed: epsilon="),
        ("0.1", "'0.1' is no noise"),
        ("epsilon", "'' in 'epsilon' is not a number above 0 and at most 1"),
        ("epsilon=0", "'0' in 'epsilon=0' is not"),
        ("epsilon=1.5", "'1.5' in"),
        ("gaussian=nan", "'nan' in"),
        ("gaussian=-0.1", "'-0.1' in"),
        ("2*epsilon=0.1", "'2' in"),
        ("0*epsilon=0.1", "'0' in"),
        ("epsilon=0.1,", "'' is no noise"),
        ("epsilon=0.1,0.5*epsilon=0.2", "epsilon is there twice"),
    ],
)
def test_noise_that_says_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_noise(text)
    assert message in str(refused.value) and "--noise" in str(refused.value)


def test_each_task_gets_the_noise_of_its_kind_and_noise_without_a_task_is_refused() -> None:
    text = "epsilon=0.1,0.5*gaussian=0.2"
    assert noise_of_task(text, FAKE_GRID) == Noise("epsilon", 0.1)
    assert noise_of_task(text, FAKE_COUNT) == Noise("gaussian", 0.2, 0.5)
    assert noise_of_task("epsilon=0.1", FAKE_COUNT) is None
    check_noise(text, [FAKE_GRID, FAKE_COUNT])
    check_noise("epsilon=0.1", [FAKE_GRID, FAKE_COUNT])
    with pytest.raises(UserError, match="epsilon is for discrete actions, and no chosen task has these"):
        check_noise(text, [FAKE_COUNT])


def test_the_share_is_kept_and_a_larger_one_holds_the_smaller() -> None:
    few, many = Noise("epsilon", 0.1, 0.3), Noise("epsilon", 0.4, 0.6)
    noisy = {noise: {seed for seed in range(10_000) if noise.of_episode(seed)} for noise in (few, many)}
    assert len(noisy[few]) / 10_000 == pytest.approx(0.3, abs=0.02)
    assert len(noisy[many]) / 10_000 == pytest.approx(0.6, abs=0.02)
    assert noisy[few] < noisy[many]
    assert few.of_episode(min(noisy[few])) == "epsilon=0.1"
    assert all(Noise("epsilon", 0.1).of_episode(seed) for seed in range(1000))
    # As documented, written out; another stream than the one that shares seeds out among experts.
    assert noisy[few] == {seed for seed in range(10_000) if np.random.default_rng((seed, 3)).random() < 0.3}
    assert noisy[few] != {seed for seed in range(10_000) if np.random.default_rng((seed, 2)).random() < 0.3}


@pytest.mark.parametrize("num_envs", [1, 3, 16])
@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=["gaussian", "epsilon"])
def test_noise_depends_on_the_seed_alone_and_leaves_the_other_episodes_as_they_are(task: Any, num_envs: int) -> None:
    noise = noise_of_task("0.5*epsilon=0.5,0.5*gaussian=0.2", task)
    assert noise is not None
    seeds = [40, *range(30)]
    episodes = list(rollout(task, NoisyPolicy(task, AssertingPolicy(task), noise), seeds, num_envs))
    changed = []
    for seed, episode in zip(seeds, episodes, strict=True):
        (alone,) = rollout(task, NoisyPolicy(task, AssertingPolicy(task), noise), [seed], 1)
        assert_same_episode(episode, alone)
        if noise.of_episode(seed) is None:
            assert_same_episode(episode, expected_episode(task, seed))
        elif episode.actions.tolist() != expected_episode(task, seed).actions.tolist():
            changed.append(seed)
    noisy = [seed for seed in seeds if noise.of_episode(seed)]
    assert 0 < len(noisy) < len(seeds) and len(changed) > len(noisy) / 2


def test_the_policy_s_own_random_numbers_stay_as_they_are() -> None:
    plain = list(rollout(FAKE_COUNT, RandomPolicy(FAKE_COUNT), range(20)))
    noise = Noise("gaussian", 1e-6)
    noisy = list(rollout(FAKE_COUNT, NoisyPolicy(FAKE_COUNT, RandomPolicy(FAKE_COUNT), noise), range(20)))
    for a, b in zip(plain, noisy, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-4)
        assert (a.actions != b.actions).any()


def test_epsilon_replaces_that_many_actions_by_all_others_alike() -> None:
    policy = NoisyPolicy(FAKE_GRID, Constant(3), Noise("epsilon", 0.25))
    actions = np.concatenate([episode.actions for episode in rollout(FAKE_GRID, policy, range(4000))])
    counts = np.bincount(actions, minlength=5) / len(actions)
    np.testing.assert_allclose(counts, [0.05, 0.05, 0.05, 0.80, 0.05], atol=0.01)


def test_a_gaussian_s_deviation_is_a_share_of_half_the_range_and_the_sum_is_clipped() -> None:
    policy = NoisyPolicy(FAKE_COUNT, Constant(np.zeros(2)), Noise("gaussian", 0.1))
    actions = np.concatenate([episode.actions for episode in rollout(FAKE_COUNT, policy, range(4000))])
    assert actions.std(axis=0) == pytest.approx(0.1, rel=0.05) and abs(actions.mean()) < 0.01
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.05
    edge = NoisyPolicy(FAKE_COUNT, Constant(np.ones(2)), Noise("gaussian", 0.1))
    actions = np.concatenate([episode.actions for episode in rollout(FAKE_COUNT, edge, range(500))])
    assert actions.max() == 1.0 and np.mean(actions == 1.0) == pytest.approx(0.5, abs=0.05)


def test_who_gives_up_is_not_overruled() -> None:
    policy = NoisyPolicy(FAKE_GRID, Constant(GiveUp("lost")), Noise("epsilon", 1.0))
    assert [episode.rejected for episode in rollout(FAKE_GRID, policy, range(3))] == ["policy: lost"] * 3
