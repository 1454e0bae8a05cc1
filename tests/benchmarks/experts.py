"""Benchmark the decisions per second of each kind of expert on one core.

    python -m tests.benchmarks.experts --out runs/default

Every kind plays its own task with 1, 16 and 64 vectorised environments, and only the time inside the policy is
measured. Real environments are used, because a rule plans on the simulator's state and a network should receive real
observations.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from experts.registry import RANDOM, experts_of, make_policy
from experts.spec import NetworkSpec
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.tables import Column, Table, print_table

BATCHES = (1, 16, 64)


@dataclass(frozen=True)
class ActingBenchConfig:
    """Measure the decisions per second of every kind of expert."""

    task: str = "babyai-go-to-local,metaworld-reach,mujoco-hopper,atari-pong"
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of a run; its experts are timed in addition to the embedded ones and the rules."""
    decisions: int = 50
    """Number of decisions per environment."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "decisions")


class EnoughDecisions(Exception):  # noqa: N818  not an error: it ends a rollout whose episodes may be long
    """The policy was timed long enough."""


class TimedPolicy:
    """Sums the time spent in ``act`` and ends the rollout after ``num_calls`` calls; a first warm-up call is extra."""

    def __init__(self, policy: Policy, num_calls: int) -> None:
        self._policy, self._calls_left = policy, num_calls + 1
        self._is_warm = False
        self.seconds = 0.0
        self.num_decisions = 0

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._policy.reset(slots, seeds, envs)

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        if not self._calls_left:
            raise EnoughDecisions
        self._calls_left -= 1
        started = time.perf_counter()
        actions = list(self._policy.act(slots, observations))
        if self._is_warm:
            self.seconds += time.perf_counter() - started
            self.num_decisions += len(slots)
        self._is_warm = True
        return actions


def bench_policy(task: Task, policy: Policy, num_envs: int, num_calls: int) -> float:
    """Return decisions per second with ``num_envs`` vectorised environments, without the environments' own time."""
    timed = TimedPolicy(policy, num_calls)
    try:
        # More seeds than can be completed, as every episode takes at least one call.
        for _ in rollout(task, timed, range(num_envs * (num_calls + 2)), num_envs):
            pass
    except EnoughDecisions:
        pass
    return timed.num_decisions / timed.seconds


def policies(config: ActingBenchConfig, task: Task) -> Iterator[tuple[str, Policy]]:
    """Yield one expert per kind of the task; without any, an untrained network of Sample Factory's default size."""
    from experts.network import NetworkPolicy, PolicyNetwork

    kinds: set[str] = set()
    for expert in experts_of(config.out, task):
        if expert.record.kind not in kinds | {RANDOM}:
            kinds.add(expert.record.kind)
            yield expert.record.revision, make_policy(task, expert)
    if not kinds:
        spec = untrained_spec(task)
        yield f"{spec.encoder} (untrained)", NetworkPolicy(task, spec, PolicyNetwork(spec).state_dict(), "untrained")


def untrained_spec(task: Task) -> NetworkSpec:
    """Return a network for benchmarks: convolutions for images, otherwise two layers of 64, as in Sample Factory."""
    is_image = len(task.observation_shape) == 3
    height, width, channels = task.observation_shape if is_image else (0, 0, 0)
    return NetworkSpec(
        observation_shape=(channels, height, width) if is_image else task.observation_shape,
        encoder="convnet_atari" if is_image else "mlp",
        hidden=(512,) if is_image else (64, 64),
        activation="relu" if is_image else "tanh",
        head="categorical" if task.action.kind == "discrete" else "gaussian",
        action_size=task.action.size,
        scale=255.0 if is_image else 1.0,
    )


def main() -> None:
    import torch

    config = parse(ActingBenchConfig, prints_tables=True)
    torch.set_num_threads(1)
    batches = [Column(f"batch {size}", ",.0f") for size in BATCHES]
    table = Table("task", "expert", *batches, title="decisions per second on one core, environments left out")
    for task in select_tasks(config.task):
        for name, policy in policies(config, task):
            rates = [bench_policy(task, policy, size, config.decisions) for size in BATCHES]
            table.add_row(task.name, name, *rates)
    print_table(table)


if __name__ == "__main__":
    run("tests.benchmarks.experts")
