"""The learner learns, and what it learnt acts in the store's network as it does in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from experts.network import build_network
from experts.ppo_cpu.games import CHANNELS, GRID, StepResult, to_blocks
from experts.ppo_cpu.learner import Learner, advantages_of
from experts.ppo_cpu.network import ActorCritic, RunningMoments
from experts.ppo_cpu.recipes import ATARI
from pipeline.envs.registry import select_tasks

SMALL = dataclasses.replace(ATARI, num_envs=16, rollout_steps=8, batch_size=32, learning_rate=1e-3)


class Signs:
    """A game that shows which of three actions pays, for one decision each."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.observations = np.zeros((SMALL.num_envs, GRID, GRID, CHANNELS), np.uint8)
        self.show()

    def show(self) -> None:
        self.wanted = self.generator.integers(3, size=SMALL.num_envs)
        self.observations[:] = 0
        for i, action in enumerate(self.wanted):
            self.observations[i, 7 * action : 7 * action + 7] = 255

    def step(self, actions: np.ndarray) -> StepResult:
        rewards = (actions == self.wanted).astype(np.float32)
        self.show()
        return StepResult(rewards, np.ones(len(actions), bool), rewards.tolist())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a training: on a busy machine two threads of such small layers mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_learns_what_pays() -> None:
    learner = Learner(SMALL, 3, seed=0, use_bfloat16=False)
    games = Signs()
    means = [np.mean(learner.iterate(games, SMALL.learning_rate)) for _ in range(16)]  # type: ignore[arg-type]
    assert means[0] < 0.5
    assert np.mean(sorted(means)[-8:]) > 0.95  # not the last: with every reward alike, advantages are noise


def test_advantages_are_discounted_sums_of_errors_within_an_episode() -> None:
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(6, 2)).astype(np.float32)
    values = generator.normal(size=(7, 2)).astype(np.float32)
    ends = np.zeros((6, 2), bool)
    ends[2, 0] = ends[5, 1] = True
    gamma, gae_lambda = 0.9, 0.8
    found = advantages_of(rewards, ends, values, gamma, gae_lambda)
    for n in range(2):
        for t in range(6):
            total, weight = 0.0, 1.0
            for k in range(t, 6):
                following = 0.0 if ends[k, n] else values[k + 1, n]
                total += weight * (rewards[k, n] + gamma * following - values[k, n])
                weight *= gamma * gae_lambda
                if ends[k, n]:
                    break
            assert abs(found[t, n] - total) < 1e-5


def test_the_expert_computes_the_logits_of_the_training_network() -> None:
    (task,) = select_tasks("atari-breakout")
    torch.manual_seed(0)
    network = ActorCritic(ATARI, task.action.size)
    with torch.no_grad():
        network.policy.weight.normal_()
        for parameter in network.parameters():
            parameter.copy_(parameter.half())  # what the store keeps
    frames = np.random.default_rng(0).integers(0, 256, (20, 84, 84, 4), np.uint8)
    blocks = np.concatenate([to_blocks(np.ascontiguousarray(frames[..., i])) for i in range(4)], axis=-1)
    network.pixels.update(torch.from_numpy(blocks[:16]).float() / 255)
    expert = build_network(*network.export(task), "a test")
    with torch.inference_mode():
        wanted, _ = network(network.normalise(torch.from_numpy(blocks)))
        found, _ = expert(torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()))
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_running_moments_are_those_of_all_rows() -> None:
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    moments = RunningMoments(3)
    for part in rows.split(25):
        moments.update(part)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.var, rows.var(0, correction=0))
