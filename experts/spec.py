"""The specification of a stored network; importing this module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.envs.task import Task
from pipeline.errors import UserError

# Upper limits, above the sizes of any policy that runs on a CPU.
MAX_LAYERS, MAX_SIZE = 100, 100_000


@dataclass(frozen=True)
class NetworkSpec:
    """Architecture of an expert's network; together with its arrays it defines the policy.

    The observation is transformed by ``(x - subtract) / scale`` and, if ``normalise``, by
    ``clip((x - mean) / sqrt(var + epsilon), +-clip)``. Then follow the convolutions of ``encoder``, the ``hidden``
    layers, and one linear head.

    Attributes:
        observation_shape: input shape of the network; channels first for images.
        encoder: ``mlp`` or the name of a convolution stack in ``network.CONVOLUTIONS``.
        hidden: widths of the linear layers between encoder and head.
        activation: activation function after every layer except the head.
        head: ``categorical`` (logits), ``gaussian`` (means, clipped to the bounds by the rollout) or ``squashed``
            (``tanh`` of the means, scaled to the bounds).
        action_size: number of discrete actions, or dimensions of a continuous action.
        action_low, action_high: bounds of every dimension of a continuous action.
        state_dependent_std: whether the head also outputs log standard deviations; otherwise they are an array.
        tanh_scale: Sample Factory's soft limit on gaussian means, ``tanh(m / s) * s``; 0 for none.
        sees_goal: whether the last entries must contain the goal, which the task hides (``Task.hidden_goal``).
        one_hot: numbers of values of the task's integers, which are shown to the network as ones and zeros; empty for
            vectors of numbers and images.
        sampled: whether actions are sampled from the distribution; otherwise the policy is greedy.
    """

    observation_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    activation: str
    head: Literal["categorical", "gaussian", "squashed"]
    action_size: int
    action_low: float = -1.0
    action_high: float = 1.0
    encoder: str = "mlp"
    normalise: bool = False
    epsilon: float = 1e-5
    clip: float = 5.0
    subtract: float = 0.0
    scale: float = 1.0
    state_dependent_std: bool = False
    tanh_scale: float = 0.0
    sees_goal: bool = False
    sampled: bool = False
    one_hot: tuple[int, ...] = ()

    def check(self, origin: str) -> None:
        """Validate sizes and numbers before anything of these sizes is allocated.

        Raises:
            UserError: a value is invalid; the message names it and ``origin``.
        """
        sizes = (*self.observation_shape, *self.hidden, self.action_size)
        if len(self.observation_shape) not in (1, 3) or len(self.hidden) > MAX_LAYERS:
            shape = dims(self.observation_shape[:9])
            raise UserError(
                f"{origin}: observations of shape {shape} and {len(self.hidden):,} hidden layers; allowed are vectors "
                f"and images, and {MAX_LAYERS} layers"
            )
        if self.one_hot and (sum(self.one_hot),) != self.observation_shape:
            raise UserError(
                f"{origin}: integers of {sum(self.one_hot)} values for {dims(self.observation_shape)} inputs"
            )
        if not all(1 <= size <= MAX_SIZE for size in sizes):
            raise UserError(f"{origin}: sizes {dims(sizes)} are not all from 1 to {MAX_SIZE:,}")
        if (len(self.observation_shape) == 3) != (self.encoder != "mlp"):
            raise UserError(f"{origin}: encoder {self.encoder[:40]!r} is not for {dims(self.observation_shape)}")
        numbers = (self.action_low, self.action_high, self.epsilon, self.clip, self.subtract, self.scale)
        if not all(map(math.isfinite, (*numbers, self.tanh_scale))) or self.scale == 0 or self.epsilon < 0:
            raise UserError(f"{origin}: a bound, epsilon, clip, scale or shift is not finite, or no divisor")

    def check_fits(self, task: Task, origin: str) -> None:
        """Check that the network's sizes are the task's.

        Raises:
            UserError: they differ; the message names ``origin``, both sizes and the fix.
        """
        if self.sees_goal and task.hidden_goal is None:
            raise UserError(
                f"{origin} sees a goal that its task hides, and {task.name} hides none; give another expert"
            )
        shape = task.observation_shape
        if self.one_hot and self.one_hot == task.observation_values:
            shape = (sum(self.one_hot),)
        if len(shape) == 3:
            shape = (shape[2], shape[0], shape[1])
        head = "discrete" if self.head == "categorical" else "continuous"
        found = (self.observation_shape, head, self.action_size)
        wanted = (shape, task.action.kind, task.action.size)
        if found != wanted:
            raise UserError(
                f"{origin} takes observations {dims(found[0])} and gives {found[1]} actions of size {found[2]}; "
                f"{task.name} ({task.env_id}) has observations {dims(wanted[0])} and {wanted[1]} actions of size "
                f"{wanted[2]}. It was trained on another task or version (gymnasium's v5 changed the sizes of ant, "
                f"humanoid and standup), or in a wrapped environment (RL Zoo's TimeFeatureWrapper adds a number); give "
                f"an expert of {task.env_id} itself"
            )


def dims(shape: Sequence[int]) -> str:
    """Format a shape, such as ``4x84x84``."""
    return "x".join(map(str, shape))
