from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experts.registry import experts_of, make_policy
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from tests.benchmarks.experts import ActingBenchConfig, bench_policy, policies
from tests.fakes import FAKE_COUNT, AssertingPolicy, CountingEnv, store_network

pytestmark = pytest.mark.usefixtures("nothing_embedded")


class SleepyPolicy(AssertingPolicy):
    """Takes a hundredth of a second per call, however many environments there are, and a second for the first."""

    num_calls = 0

    def act(self, slots: Sequence[int], observations: Observations) -> list[Any]:
        time.sleep(0.01 if self.num_calls else 1.0)
        self.num_calls += 1
        return super().act(slots, observations)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_only_the_time_inside_the_policy_counts_and_not_its_first_call(
    num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CountingEnv.step

    def slow_step(self: CountingEnv, action: Any) -> Any:
        time.sleep(0.1)
        return step(self, action)

    monkeypatch.setattr(CountingEnv, "step", slow_step)
    policy = SleepyPolicy(FAKE_COUNT)
    rate = bench_policy(FAKE_COUNT, policy, num_envs, 3)
    assert policy.num_calls == 4
    assert 0.15 * 100 * num_envs < rate <= 100 * num_envs


def test_every_kind_that_a_task_has_is_timed_once(tmp_path: Path) -> None:
    store_network(tmp_path, FAKE_COUNT, 0.1)
    store_network(tmp_path, FAKE_COUNT, 0.2)
    store_network(tmp_path, FAKE_COUNT, 0.3, "sac")
    found = [name.split("-")[0] for name, _ in policies(ActingBenchConfig(out=tmp_path), FAKE_COUNT)]
    assert found == ["ppo", "sac"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("metaworld-reach", "scripted-"),
        ("mujoco-hopper", "mlp (untrained)"),
        ("atari-pong", "convnet_atari (untrained)"),
    ],
)
def test_a_task_without_networks_is_timed_with_rules_or_an_untrained_one(
    name: str, expected: str, tmp_path: Path
) -> None:  # fmt: skip
    (task,) = select_tasks(name)
    ((found, policy),) = policies(ActingBenchConfig(out=tmp_path), task)
    assert found.startswith(expected)
    if "untrained" in found:
        observations = Observations(np.zeros((3, *task.observation_shape), np.float32), None, np.zeros(3, np.float32))
        policy.reset([0, 1, 2], [0, 1, 2], [None] * 3)  # type: ignore[list-item]
        assert len(list(policy.act([0, 1, 2], observations))) == 3
    else:
        assert type(policy) is type(make_policy(task, experts_of(tmp_path, task)[0]))
