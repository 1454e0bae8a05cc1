from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from collectors.jobs import CollectJob, collect_shard
from experts.acting.labels import LabelledPolicy, labels_as_it_acts
from experts.acting.noise import Noise, NoisyPolicy
from experts.choice import Mix
from experts.scripted.babyai import BabyAIBotPolicy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from experts.spec import NetworkSpec
from experts.store import StoredExpert, write_expert
from pipeline.envs.episode import NO_LABEL
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import read_blocks
from tests.fakes import FAKE_COUNT, FAKE_GRID, AssertingPolicy, expected_episode, random_mix, store_random


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
def test_noise_is_executed_and_the_clean_action_is_the_label(task: Task, num_envs: int) -> None:
    noise = Noise("epsilon" if task is FAKE_GRID else "gaussian", 0.5, 0.5)
    episodes = list(rollout(task, NoisyPolicy(task, AssertingPolicy(task), noise), range(20), num_envs))
    for seed, episode in enumerate(episodes):
        assert episode.labels is not None
        assert episode.labels.tobytes() == expected_episode(task, seed).actions.tobytes()
        if noise.of_episode(seed) is None:
            assert episode.labels.tobytes() == episode.actions.tobytes()
    assert any((episode.labels != episode.actions).any() for episode in episodes)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_who_labels_sees_what_who_acts_sees_and_neither_disturbs_the_other(num_envs: int) -> None:
    policy = LabelledPolicy(RandomPolicy(FAKE_GRID), AssertingPolicy(FAKE_GRID))
    alone = rollout(FAKE_GRID, RandomPolicy(FAKE_GRID), range(20), num_envs)
    for both, acted in zip(rollout(FAKE_GRID, policy, range(20), num_envs), alone, strict=True):
        assert both.actions.tobytes() == acted.actions.tobytes()
        assert both.labels is not None
        assert both.labels.tobytes() == expected_episode(FAKE_GRID, both.seed).actions.tobytes()


def sampled_network(out: Path, task: Task = FAKE_COUNT) -> StoredExpert:
    """A network with means of 0.25 and a standard deviation of a tenth, which samples."""
    spec = NetworkSpec(task.observation_shape, (), "tanh", "gaussian", task.action.size, sampled=True)
    size = (task.action.size, *task.observation_shape)
    arrays = {"head.weight": torch.zeros(size), "head.bias": torch.full(size[:1], 0.25),
              "log_std": torch.full(size[:1], np.log(0.1))}  # fmt: skip
    return write_expert(out, task.name, "ppo", spec, arrays, "made to sample")


def labels_of(root: Path, job: CollectJob) -> tuple[np.ndarray, np.ndarray]:
    """Actions and labels of a shard."""
    manifest = collect_shard(job)
    (block,) = read_blocks(job.shard.task, root / job.shard.task.name / manifest.data.name)
    assert block.labels is not None
    return block.actions, block.labels


def test_a_network_that_samples_is_labelled_with_its_mean(tmp_path: Path) -> None:
    network = sampled_network(tmp_path)
    mix = Mix((network,), (1.0,))
    assert not labels_as_it_acts(network.record)
    for noise in (None, "gaussian=0.1"):
        shard = ShardJob(FAKE_COUNT, "train", 0, 10, mix.kind, noise, mix.revision)
        actions, labels = labels_of(tmp_path / str(noise), CollectJob(shard, mix, tmp_path / str(noise), 4))
        assert (labels == 0.25).all() and (actions != 0.25).all()


def test_the_random_policy_labels_nothing_in_a_mix_with_one_that_does(tmp_path: Path) -> None:
    mix = Mix((sampled_network(tmp_path), store_random(tmp_path)), (0.5, 0.5))
    assert mix.can_label and not random_mix(tmp_path, FAKE_COUNT).can_label
    shard = ShardJob(FAKE_COUNT, "train", 0, 20, mix.kind, "gaussian=0.1", mix.revision)
    _, labels = labels_of(tmp_path, CollectJob(shard, mix, tmp_path, 4))
    starts = np.cumsum([0, *(len(expected_episode(FAKE_COUNT, seed)) for seed in range(20))])
    for seed in range(20):
        of_seed = labels[starts[seed] : starts[seed + 1]]
        assert np.isnan(of_seed).all() if mix.actor(seed).kind == "random" else (of_seed == 0.25).all()


def test_another_expert_labels_what_one_does_and_the_side_table_says_who(tmp_path: Path) -> None:
    mix, labels = random_mix(tmp_path, FAKE_COUNT), Mix((sampled_network(tmp_path),), (1.0,))
    shard = ShardJob(FAKE_COUNT, "train", 0, 10, mix.kind, None, labels.revision)
    actions, found = labels_of(tmp_path, CollectJob(shard, mix, tmp_path, 4, labels=labels))
    assert (found == 0.25).all()
    plain = collect_shard(CollectJob(ShardJob(FAKE_COUNT, "train", 0, 10, mix.kind), mix, tmp_path / "plain", 3))
    (block,) = read_blocks(FAKE_COUNT, tmp_path / "plain" / FAKE_COUNT.name / plain.data.name)
    assert block.actions.tobytes() == actions.tobytes()


class Fixed:
    """Acts as told: the actions of each seed, one after another, and 0 after their end."""

    def __init__(self, actions: dict[int, list[int]]) -> None:
        self._actions = actions
        self._left: dict[int, list[int]] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._left[slot] = list(self._actions[seed])

    def act(self, slots: Sequence[int], observations: Observations) -> list[int]:
        return [self._left[slot].pop(0) if self._left[slot] else 0 for slot in slots]


def test_the_bot_labels_the_states_of_another_from_what_that_one_really_did() -> None:
    task = dataclasses.replace(task_named("babyai-go-to-obj"), max_steps=60)
    seeds = range(12)
    wander = {seed: np.random.default_rng(seed).integers(0, 3, 15).tolist() for seed in seeds}
    for episode in rollout(task, LabelledPolicy(Fixed(wander), BabyAIBotPolicy(task)), seeds, 4):
        assert episode.labels is not None and (episode.labels != NO_LABEL).all()
        # Follow the labels after some steps of wandering: each must be the first step of a plan that works from there.
        begun = min(len(wander[episode.seed]), len(episode)) - 1
        mixed = {episode.seed: [*wander[episode.seed][:begun]]}
        (again,) = rollout(task, _Then(Fixed(mixed), BabyAIBotPolicy(task), begun), [episode.seed], 1)
        assert again.success
        if len(again) > begun:
            assert again.actions[begun] == episode.labels[begun]


class _Then(LabelledPolicy):
    """Executes one policy for some steps and then the labels of the other."""

    def __init__(self, actor: Any, labeller: Any, steps: int) -> None:
        super().__init__(actor, labeller)
        self._steps_left = steps

    def act(self, slots: Sequence[int], observations: Observations) -> Any:
        found = super().act(slots, observations)
        self._steps_left -= 1
        return found if self._steps_left >= 0 else list(found.labels)


def test_a_script_labels_each_state_with_its_action_there() -> None:
    task = dataclasses.replace(task_named("metaworld-reach"), max_steps=20)
    (episode,) = rollout(task, LabelledPolicy(RandomPolicy(task), ScriptedPolicy(task)), [3], 1)
    (own,) = rollout(task, ScriptedPolicy(task), [3], 1)
    assert episode.labels is not None and np.isfinite(episode.labels).all()
    assert episode.labels[0].tobytes() == own.actions[0].tobytes()  # the same state
    assert (episode.labels[5] != own.actions[5]).any()  # another one by now
