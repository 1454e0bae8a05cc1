"""Hyperparameters of PPO on one CPU core, and the budget of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from experts.training import Budget, TrainJob
from experts.training_record import check_same_settings
from pipeline.envs.registry import domain_of
from pipeline.envs.task import IMAGE, Task

HOUR_S = 3600.0


@dataclass(frozen=True)
class PPORecipe:
    """Hyperparameters for training an Atari expert on one core.

    Attributes:
        num_envs: number of vectorised games.
        rollout_steps: steps per game and iteration. Each iteration trains on ``num_envs * rollout_steps`` steps for
            ``epochs`` epochs in minibatches of ``batch_size``, then discards them.
        learning_rate: initial learning rate of Adam; it decreases linearly to 0 at the budget of steps.
        gamma, gae_lambda: discount, and the lambda of generalised advantage estimation (arXiv 1506.02438).
        clip_range: clip range of the probability ratio (arXiv 1707.06347).
        entropy_coefficient, value_coefficient: weights of the entropy bonus and of the value loss.
        max_grad_norm: gradients are clipped to this norm.
        encoder: name of the convolutions in ``experts.network.CONVOLUTIONS``.
        hidden: width of the layer between the convolutions and the heads.
    """

    num_envs: int = 32
    rollout_steps: int = 64
    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 5e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.1
    entropy_coefficient: float = 0.01
    value_coefficient: float = 0.5
    max_grad_norm: float = 0.5
    encoder: str = "convnet_half"
    hidden: int = 256


ATARI = PPORecipe()
# A step is one action, which is repeated for four emulator frames.
BUDGET = Budget(steps=10_000_000, seconds=24 * HOUR_S)


def can_train(task: Task) -> bool:
    """Whether the recipe is made for a task: arcade games with frame stacks."""
    return task.observation == IMAGE and domain_of(task).is_arcade


def settings_of(job: TrainJob, recipe: PPORecipe) -> dict[str, Any]:
    """Return the settings that must not change on resuming; the budget is not one of them, as it may be raised."""
    return {"task": job.task.name, "seed": job.seed, "recipe": asdict(recipe)}


def check(job: TrainJob, recipe: PPORecipe = ATARI) -> None:
    """Raise if the training in the job's folder was started with other settings.

    Raises:
        UserError: names the settings that differ and the fix.
    """
    check_same_settings(job, settings_of(job, recipe))
