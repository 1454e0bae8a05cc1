"""How fast a network acts on this machine; how fast it trains is `trainer.bench_train`.

    python -m trainer.bench --recipe demo --out runs/demo

Uses ``OUT/dataset`` and writes only its memory-mapped layout (``OUT/train/cache``), which training uses too.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from pipeline.cli import parse, run
from pipeline.policy import Observations
from pipeline.tasks import Task
from trainer.config import RECIPES, TrainConfig


def bench_acting(config: TrainConfig, task: Task, num_slots: int, num_steps: int = 60) -> float:
    """Decisions per second of an untrained agent over ``num_slots`` episodes in lockstep, environments left out."""
    import torch

    from trainer.agent import Agent
    from trainer.checkpoint import AgentConfig, Checkpoint
    from trainer.data.tokenizer import train_tokenizer
    from trainer.networks.build import build_model
    from trainer.networks.layout import layout_of

    torch.set_num_threads(config.threads)
    layouts = [layout_of(task, config.text_tokens)]
    agent_config = AgentConfig(config.model, config.context_steps, config.text_tokens, [task.name], layouts, "", 0, 0)
    tokenizer = train_tokenizer(["go to the red ball"], config.model.vocab_size)
    agent = Agent(Checkpoint(build_model(config.model, layouts), tokenizer, {}, agent_config), task, num_slots)
    slots = list(range(num_slots))
    agent.reset(slots, slots, [])
    observations = Observations(
        values=np.zeros(
            (num_slots, *task.observation_shape), np.float32 if task.action.kind == "continuous" else np.int64
        ),
        texts=["go to the red ball"] * num_slots if task.has_text else None,
        rewards=np.zeros(num_slots, np.float32),
    )
    started = time.perf_counter()
    for _ in range(num_steps):
        agent.act(slots, observations)
    return num_slots * num_steps / (time.perf_counter() - started)


def main() -> None:
    from rich.console import Console

    from trainer.train import choose_tasks

    config = dataclasses.replace(parse(TrainConfig, RECIPES, default_recipe="small"), steps=100)
    console = Console()
    tasks = choose_tasks(config)
    for task in {task.domain: task for task in tasks}.values():
        for num_slots in (1, 20):
            rate = bench_acting(config, task, num_slots)
            console.print(f"acting    {rate:12,.0f} decisions/s, {num_slots} at once, {task.name}")


if __name__ == "__main__":
    run("trainer.bench")
