"""Train the pendulum with so small a recipe that a checkpoint comes within seconds.

python -m tests.experts.sample_factory.small OUT
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from experts.sample_factory import recipes
from experts.sample_factory.train import train
from experts.training import TrainJob
from tests.experts.sample_factory.tasks import task_named

SMALL = dataclasses.replace(
    recipes.MUJOCO,
    hyperparameters=dataclasses.replace(
        recipes.MUJOCO.hyperparameters, rollout=32, batch_size=64, num_batches_per_epoch=2, worker_num_splits=1
    ),
    num_envs=4,
    save_every_s=1,
)


def small_job(out: Path, target: float | None = None) -> TrainJob:
    return TrainJob(task_named("mujoco-pendulum"), "sample-factory", out, steps=10**9, seconds=10**6, target=target)


if __name__ == "__main__":
    recipes.MUJOCO = SMALL
    train(small_job(Path(sys.argv[1])), num_cpus=1)
