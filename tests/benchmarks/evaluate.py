"""Benchmark of evaluation: this project against JAT's code, several tasks vectorised together, and long episodes.

    python -m tests.benchmarks.evaluate

The baseline (JAT's code) has one environment, batch size 1 and recomputes the whole context at every step. This project
uses vectorised environments and a KV cache. Both play the same environments with the same untrained JAT network in the
same rollout, in alternating rounds; the medians of all rounds are printed. The time includes steps and resets of
environments, not their creation. It is processor time, of one thread by default, so that other load on the machine has
little effect.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.policy import Observations, Policy
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import RolloutPart, rollout, rollout_parts
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.seeds import seeds_of
from pipeline.tables import Column, Table, print_table
from tests.benchmarks.agent import checkpoint_of
from trainer.config import RECIPES, ModelConfig
from trainer.evaluation.playing import MAX_ENVS
from trainer.networks.layout import layout_of

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchEvalConfig:
    """Compare evaluation with the baseline, JAT's code."""

    task: str = "babyai-go-to-local,metaworld-reach,mujoco-halfcheetah"
    """Tasks of the comparison: task name, domain, glob, or comma list of these."""
    together: str = "metaworld-push*,metaworld-reach*"
    """Tasks of one layout to play both together and one by one, with an untrained network of recipe base; empty for
    none."""
    together_episodes: int = 10
    """Number of episodes of each of these tasks."""
    long_task: str = "mujoco-halfcheetah"
    """Task whose long episodes are timed step by step; empty for none."""
    hidden_size: int = 256
    """Width of the network; the released JAT has 768."""
    num_layers: int = 4
    """Number of blocks; the released JAT has 12."""
    num_heads: int = 4
    """Attention heads per block; the released JAT has 12."""
    context_steps: int = 128
    """Context length in time steps; JAT's evaluation used 128, 16 in Atari."""
    envs: int = MAX_ENVS
    """Number of vectorised environments."""
    steps: int = 200
    """Longest episode of the comparison, in steps; longer contexts slow down the baseline."""
    rounds: int = 3
    """Number of rounds of both implementations."""
    threads: int = 1
    """CPU threads; processor time is summed over all of them."""

    def __post_init__(self) -> None:
        check_at_least_one(
            self,
            "hidden_size",
            "num_layers",
            "context_steps",
            "together_episodes",
            "envs",
            "steps",
            "rounds",
            "threads",
        )
        if self.hidden_size % self.num_heads:
            raise UserError(f"--hidden-size {self.hidden_size} must be a multiple of --num-heads {self.num_heads}")


@dataclass
class Timed:
    """Policy wrapper that records when it was called, for how many environments, and how long it took.

    Attributes:
        decisions: number of environments, per call.
        seconds: per call, of the policy alone.
        began: time of the first call, in seconds of ``time.process_time``.
    """

    policy: Policy
    decisions: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    began: float = 0.0

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self.policy.reset(slots, seeds, envs)

    def act(self, slots: Sequence[int], observations: Observations) -> Iterable[Any]:
        before = time.process_time()
        self.began = self.began or before
        actions = self.policy.act(slots, observations)
        self.decisions.append(len(slots))
        self.seconds.append(time.process_time() - before)
        return actions


@dataclass(frozen=True)
class EvalRates:
    """Environment steps per processor second of a task, per round."""

    task: str
    ours: list[float]
    plain: list[float]

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios."""
        return median(a / b for a, b in zip(self.ours, self.plain, strict=True))


def untrained(config: BenchEvalConfig, task: Task) -> tuple[Checkpoint, Checkpoint]:
    """Return the same untrained JAT network for a task twice: with this project's KV cache and as the baseline."""
    import torch

    from tests.benchmarks.baselines.acting import PlainActingJat
    from trainer.networks.jat_model import JatModel

    text_tokens = 64
    size = task.observation_shape[0] + text_tokens * task.has_text
    model_config = ModelConfig(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        max_positions=2 * config.context_steps,
        vocab_size=512,
        max_discrete_size=size if task.has_text else ModelConfig.max_discrete_size,
        picture_size=0,
        idle_decoder=False,
    )
    torch.manual_seed(0)
    ours, plain = JatModel(model_config), PlainActingJat(model_config)
    plain.load_state_dict(ours.state_dict())
    return (
        checkpoint_of(ours, model_config, [task], config.context_steps, text_tokens),
        checkpoint_of(plain, model_config, [task], config.context_steps, text_tokens),
    )


def bench_task(config: BenchEvalConfig, task: Task) -> EvalRates:
    """Run both in alternating rounds: ``envs`` vectorised episodes, and a single one with the baseline."""
    from trainer.agent import Agent

    task = dataclasses.replace(task, max_steps=min(task.max_steps, config.steps))
    checkpoints = untrained(config, task)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(config.rounds):
        for checkpoint, num_envs, found in zip(checkpoints, (config.envs, 1), rates, strict=True):
            timed = Timed(Agent(checkpoint, [task] * num_envs))
            for _ in rollout(task, timed, seeds_of("evaluate", num_envs), num_envs, keep_observations=False):
                pass
            found.append(sum(timed.decisions) / (time.process_time() - timed.began))
            log.info("%s, %d at once: %.0f steps/s", task.name, num_envs, found[-1])
    return EvalRates(task.name, *rates)


def bench_together(config: BenchEvalConfig, tasks: Sequence[Task]) -> list[float]:
    """Return the processor time of playing tasks one by one divided by that of playing all together, per round."""
    from trainer.agent import Agent
    from trainer.networks.build import build_model

    recipe, seeds = RECIPES["base"](), seeds_of("evaluate", config.together_episodes)
    layouts = [layout_of(task, recipe.text_tokens) for task in tasks]
    model = build_model(recipe.model, layouts)
    checkpoint = checkpoint_of(model, recipe.model, tasks, recipe.context_steps, recipe.text_tokens)

    def seconds(together: Sequence[Task]) -> float:
        timed = Timed(Agent(checkpoint, [task for task in together for _ in seeds]))
        parts = [RolloutPart(task, seeds, len(seeds)) for task in together]
        for _ in rollout_parts(parts, timed, keep_observations=False):
            pass
        return time.process_time() - timed.began

    return [sum(seconds([task]) for task in tasks) / seconds(tasks) for _ in range(config.rounds)]


def bench_long(config: BenchEvalConfig, task: Task) -> list[float]:
    """Return processor milliseconds per decision over the length of episodes, in segments of one context length.

    The first segment, in which the context fills up, is excluded.
    """
    from trainer.agent import Agent

    checkpoint, _ = untrained(config, task)
    timed = Timed(Agent(checkpoint, [task] * config.envs))
    for _ in rollout(task, timed, seeds_of("evaluate", config.envs), config.envs, keep_observations=False):
        pass
    length = config.context_steps
    stretches = range(length, len(timed.seconds) - length + 1, length)
    return [
        1000 * sum(timed.seconds[begin : begin + length]) / sum(timed.decisions[begin : begin + length])
        for begin in stretches
    ]


def main() -> None:
    config = parse(BenchEvalConfig, prints_tables=True)

    import torch

    torch.set_num_threads(config.threads)
    tasks = select_tasks(config.task)
    together = select_tasks(config.together) if config.together else ()
    long_task = select_tasks(config.long_task)[0] if config.long_task else None
    columns = (Column("ours, steps/s", ",.0f"), Column("JAT's way", ",.0f", "jat_steps_per_s"), Column("ratio", ".1f"))
    table = Table("task", *columns, "of turns", title="goal: 10 times")
    for task in tasks:
        rates = bench_task(config, task)
        ratios = [a / b for a, b in zip(rates.ours, rates.plain, strict=True)]
        table.add_row(
            task.name, median(rates.ours), median(rates.plain), rates.ratio,
            f"{min(ratios):.1f} to {max(ratios):.1f}",
        )  # fmt: skip
    print_table(table)
    if together:
        ratios = bench_together(config, together)
        log.info(
            "%d episodes of each of %d tasks, one task after the other / all together, processor time: %s",
            config.together_episodes, len(together), ", ".join(f"{ratio:.2f}" for ratio in ratios),
        )  # fmt: skip
    if long_task is None:
        return
    costs = bench_long(config, long_task)
    if len(costs) < 2:
        log.info("%s is too short: no two stretches of %d steps after the first", long_task.name, config.context_steps)
        return
    stretches = ", ".join(f"{cost:.3f}" for cost in costs)
    log.info(
        "%s, processor ms per decision in stretches of %d steps: %s; last / first %.2f",
        long_task.name, config.context_steps, stretches, costs[-1] / costs[0],
    )  # fmt: skip


if __name__ == "__main__":
    run("tests.benchmarks.evaluate")
