"""Measure the cost of collection over bare environment stepping and its gain over the baseline, on one core.

    python -m tests.benchmarks.collect --task babyai-go-to-local,metaworld-reach,mujoco-halfcheetah,atari-pong

Four variants run the same task in alternation, so that a slow phase of the machine affects all of them: the environment
alone with an expert's replayed actions, environment and expert in the rollout, collection up to a checked shard, and
the baseline of ``tests/benchmarks/baselines/collecting.py``. BabyAI and Meta-World use scripted experts, MuJoCo and
Atari an untrained network of Sample Factory, so that no result depends on training. Times are processor times.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from collectors.jobs import CollectJob, collect_shard
from experts.choice import Mix
from experts.registry import RANDOM, experts_of
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.episode import Episode
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError, how_to_install
from pipeline.runtime.pool import freeze_heap
from pipeline.storage.plan import ShardJob
from pipeline.storage.validate import check_shard
from pipeline.tables import Column, Table, print_table
from tests.benchmarks.baselines.collecting import Begin, collect_plainly, rule_actor, sample_factory_actor

ROUNDS_OF_LOCKSTEP = 3
STEPPING, ACTING, COLLECTING, PLAIN = "stepping", "with expert", "to a checked shard", "plain way"


@dataclass(frozen=True)
class CollectBenchConfig:
    """Time stepping, stepping + expert, collection, and the baseline, side by side on one core."""

    task: str = "babyai-go-to-local,metaworld-reach,mujoco-halfcheetah,mujoco-pendulum,atari-pong"
    """Task name, domain, glob, or comma list of these."""
    steps: int = 40_000
    """Approximate environment steps per measurement; more if episodes are long. The baseline plays an eighth of the
    episodes."""
    rounds: int = 3
    """Number of alternating measurements; the table shows their median, and the median of the ratios within a round."""
    envs: int | None = None
    """Number of vectorised environments; if not given, the fastest number for each task."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps", "rounds", *(["envs"] if self.envs is not None else []))


@dataclass(frozen=True)
class BenchResult:
    """The result of one task.

    Attributes:
        rates: steps per second of each variant, by round.
        bytes_per_step: of the shard's data file, and of the baseline's file.
    """

    rates: dict[str, list[float]]
    bytes_per_step: tuple[float, float]

    def rate(self, way: str) -> float:
        return median(self.rates[way])

    def ratio(self, way: str, other: str) -> float:
        """Speed-up of ``way`` over ``other``, median over the rounds."""
        return median(a / b for a, b in zip(self.rates[way], self.rates[other], strict=True))


def bench_task(config: CollectBenchConfig, task: Task, folder: Path) -> BenchResult:
    """Measure one task.

    Args:
        config: the options.
        task: the task to play.
        folder: an empty folder for the output.

    Raises:
        UserError: Sample Factory is needed and not installed.
    """
    begin, mix = _expert(task, folder)
    policy = mix.make_policy(task)
    lengths = [len(episode) for episode in rollout(task, policy, range(4), 4, keep_observations=False)]
    # At least several episodes per vectorised environment, as in a shard, because the batch shrinks towards its end.
    num_episodes = max(ROUNDS_OF_LOCKSTEP * (config.envs or task.lockstep), round(config.steps / np.mean(lengths)))
    seeds = range(num_episodes)
    plain_seeds = range(max(1, num_episodes // 8))
    episodes = list(rollout(task, policy, seeds, config.envs, keep_observations=False))
    num_steps = sum(map(len, episodes))
    env = task.make_env()
    shard = ShardJob(task, "train", 0, num_episodes, mix.kind)
    plain_file = folder / "plain.parquet"

    def step() -> int:
        _replay(env, episodes)
        return num_steps

    def act() -> int:
        return sum(len(episode) for episode in rollout(task, policy, seeds, config.envs, keep_observations=False))

    def collect() -> int:
        manifest = collect_shard(CollectJob(shard, mix, folder, config.envs))
        check_shard(task, folder / task.name, manifest)
        return manifest.num_steps

    def plainly() -> int:
        return collect_plainly(task, begin, plain_seeds, plain_file)

    ways: dict[str, Callable[[], int]] = {STEPPING: step, ACTING: act, COLLECTING: collect, PLAIN: plainly}
    freeze_heap()  # as workers do after their first shard
    rates: dict[str, list[float]] = {name: [] for name in ways}
    sizes = {}
    for _ in range(config.rounds):
        for name, way in ways.items():
            started = time.process_time()
            done = way()
            rates[name].append(done / (time.process_time() - started))
            if name in (COLLECTING, PLAIN):
                file = plain_file if name == PLAIN else folder / task.name / f"{shard.stem}.parquet"
                sizes[name] = file.stat().st_size / done
    env.close()
    return BenchResult(rates, (sizes[COLLECTING], sizes[PLAIN]))


def _expert(task: Task, folder: Path) -> tuple[Begin, Mix]:
    """The expert for the baseline and for the rollout."""
    rules = [expert for expert in experts_of(folder, task) if expert.record.network is None]
    rules = [expert for expert in rules if expert.record.kind != RANDOM]
    if rules:
        return rule_actor(task, rules[0]), Mix((rules[0],), (1.0,))
    try:
        begin, expert = sample_factory_actor(task, folder)
    except ImportError as error:
        raise UserError(
            f"{task.name} is timed with a network of Sample Factory's; run {how_to_install('experts', 'setup-experts')}"
        ) from error
    return begin, Mix((expert,), (1.0,))


def _replay(env: object, episodes: Sequence[Episode]) -> None:
    for episode in episodes:
        env.reset(seed=episode.seed)  # type: ignore[attr-defined]
        for action in episode.actions:
            env.step(action)  # type: ignore[attr-defined]


def main() -> None:
    import torch
    from datasets.utils.logging import disable_progress_bar

    config = parse(CollectBenchConfig, prints_tables=True)
    # Pin everything to one core, threads of simulators and libraries included.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    disable_progress_bar()
    warnings.simplefilter("ignore")
    table = Table(
        "task",
        *(Column(heading, ",.0f") for heading in (STEPPING, ACTING, COLLECTING, PLAIN)),
        Column("shard / expert", ".2f"),
        Column("shard / plain", ".1f"),
        Column("bytes per step", ",.0f"),
        Column("plain way's", ",.0f"),
        Column("share of plain", ".2f"),
        title="steps/s on one core",
    )
    for task in select_tasks(config.task):
        with tempfile.TemporaryDirectory() as directory:
            found = bench_task(config, task, Path(directory))
        ours, plain = found.bytes_per_step
        table.add_row(
            task.name,
            *(found.rate(way) for way in (STEPPING, ACTING, COLLECTING, PLAIN)),
            found.ratio(COLLECTING, ACTING),
            found.ratio(COLLECTING, PLAIN),
            ours,
            plain,
            ours / plain,
        )
    print_table(table)


if __name__ == "__main__":
    run("tests.benchmarks.collect")
