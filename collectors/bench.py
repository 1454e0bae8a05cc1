"""What collection costs over bare environment stepping, on one core.

    python -m collectors.bench --task babyai-go-to-local,metaworld-reach

Three ways over the same seeds, alternating so that a slow moment of the machine hits all of them: the environment
alone with the expert's actions replayed, environment and expert in the rollout, and the whole way to a finished shard.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from collectors.collect import CollectJob, collect_shard
from experts.choice import Mix
from experts.registry import RANDOM, experts_of
from pipeline.cli import parse, print_table, run
from pipeline.episode import Episode
from pipeline.errors import UserError
from pipeline.plan import ShardJob
from pipeline.rollout import rollout
from pipeline.tasks import Task, select_tasks


@dataclass(frozen=True)
class BenchConfig:
    """Time stepping, stepping + expert, and collection, side by side on one core."""

    task: str = "babyai-go-to-local,babyai-open-door,metaworld-reach,metaworld-drawer-close"
    """Task name, domain, glob, or comma list of these."""
    steps: int = 4000
    """Environment steps per measurement, about."""
    rounds: int = 5
    """Alternating measurements; the median is shown."""
    envs: int = 16
    """Environments in lockstep."""
    out: Path = Path("runs/default")
    """Root of a run whose experts are taken before the embedded ones and the rules."""


def bench_task(config: BenchConfig, task: Task) -> dict[str, float]:
    """Median steps per second of each way.

    Raises:
        UserError: the task has no expert.
    """
    experts = [expert for expert in experts_of(config.out, task) if expert.record.kind != RANDOM]
    if not experts:
        raise UserError(f"{task.name} has no expert to time; run `make experts TASK={task.name}` first")
    mix = Mix((experts[-1],), (1.0,))  # a rule where there is one, so that figures compare over time
    policy = mix.make_policy(task)
    episodes = list(rollout(task, policy, range(8), config.envs))
    num_episodes = max(8, int(config.steps / np.mean([len(e) for e in episodes])))
    episodes = list(rollout(task, policy, range(num_episodes), config.envs))
    num_steps = sum(map(len, episodes))
    env = task.make_env()

    def step() -> None:
        _replay(env, episodes)

    def act() -> None:
        for _ in rollout(task, policy, range(num_episodes), config.envs):
            pass

    def collect() -> None:
        with tempfile.TemporaryDirectory() as directory:
            shard = ShardJob(task, "train", 0, num_episodes, mix.kind)
            collect_shard(CollectJob(shard, mix, Path(directory), config.envs))

    ways: dict[str, Callable[[], None]] = {"stepping": step, "with expert": act, "to a shard": collect}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    env.close()
    return {name: num_steps / median(values) for name, values in seconds.items()}


def _replay(env: object, episodes: Sequence[Episode]) -> None:
    for episode in episodes:
        env.reset(seed=episode.seed)  # type: ignore[attr-defined]
        for action in episode.actions:
            env.step(action)  # type: ignore[attr-defined]


def main() -> None:
    from rich.table import Table

    config = parse(BenchConfig)
    table = Table("task", "stepping", "with expert", "to a shard", "shard / expert", title="steps/s on one core")
    for task in select_tasks(config.task):
        rates = bench_task(config, task)
        ratio = rates["to a shard"] / rates["with expert"]
        table.add_row(task.name, *(f"{rate:,.0f}" for rate in rates.values()), f"{ratio:.2f}")
    print_table(table)


if __name__ == "__main__":
    run("collectors.bench")
