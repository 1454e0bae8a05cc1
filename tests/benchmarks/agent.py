"""Benchmark of acting: how fast a network acts on this machine; `tests.benchmarks.train` measures training.

    python -m tests.benchmarks.agent --recipe demo --out runs/demo

Uses untrained networks of the recipe's sizes, with one task of each domain in ``OUT/dataset``; writes no files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cli import parse, run
from pipeline.envs.policy import Observations
from pipeline.envs.task import CONTINUOUS, Task
from trainer.config import RECIPES, BaseModelConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint
    from trainer.networks.model import Model

MISSION = "go to the red ball"


def checkpoint_of(
    model: Model, config: ModelConfig | BaseModelConfig, tasks: Sequence[Task], context_steps: int, text_tokens: int
) -> Checkpoint:
    """Wrap an untrained network as a checkpoint that can act in tasks."""
    from trainer.checkpoint import AgentConfig, Checkpoint
    from trainer.data.tokenizer import train_tokenizer
    from trainer.networks.layout import layout_of

    layouts = [layout_of(task, text_tokens) for task in tasks]
    agent = AgentConfig(config, context_steps, text_tokens, [task.name for task in tasks], layouts, "", 0, 0)
    return Checkpoint(model, train_tokenizer([MISSION], config.vocab_size), {}, agent)


def bench_acting(config: TrainConfig, task: Task, num_slots: int, num_steps: int = 60) -> float:
    """Return decisions per second of an untrained agent with ``num_slots`` vectorised episodes, without environment
    time."""
    import torch

    from trainer.agent import Agent
    from trainer.networks.build import build_model
    from trainer.networks.layout import layout_of

    torch.set_num_threads(config.threads)
    model = build_model(config.model, [layout_of(task, config.text_tokens)])
    agent = Agent(
        checkpoint_of(model, config.model, [task], config.context_steps, config.text_tokens), [task] * num_slots
    )
    slots = list(range(num_slots))
    agent.reset(slots, slots, [])
    observations = Observations(
        values=np.zeros(
            (num_slots, *task.observation_shape), np.float32 if task.observation == CONTINUOUS else np.int64
        ),
        texts=[MISSION] * num_slots if task.has_text else None,
        rewards=np.zeros(num_slots, np.float32),
    )
    started = time.perf_counter()
    for _ in range(num_steps):
        agent.act(slots, observations)
    return num_slots * num_steps / (time.perf_counter() - started)


def main() -> None:
    from rich.console import Console

    from trainer.train import choose_tasks

    config = parse(TrainConfig, RECIPES)
    console = Console()
    tasks = choose_tasks(config)
    for task in {task.domain: task for task in tasks}.values():
        for num_slots in (1, 20):
            rate = bench_acting(config, task, num_slots)
            console.print(f"acting    {rate:12,.0f} decisions/s, {num_slots} at once, {task.name}")


if __name__ == "__main__":
    run("tests.benchmarks.agent")
