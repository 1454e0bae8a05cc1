"""What a stored network is, in words and numbers: read by whoever looks at the store, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.envs.task import Task
from pipeline.errors import UserError

# More than any policy has that a processor acts with.
MAX_LAYERS, MAX_SIZE = 100, 100_000


@dataclass(frozen=True)
class NetworkSpec:
    """What an expert's network computes; with its arrays it is the whole policy.

    The observation goes through ``(x - subtract) / scale``, then, if ``normalise``, through
    ``clip((x - mean) / sqrt(var + epsilon), +-clip)``; then the convolutions of ``encoder``, the ``hidden`` layers,
    and one linear head.

    Attributes:
        observation_shape: as the network takes it; channels first for images.
        encoder: ``mlp`` or the name of a convolution stack in ``network.CONVOLUTIONS``.
        hidden: widths of the linear layers between encoder and head.
        activation: after every layer but the head.
        head: ``categorical`` (logits), ``gaussian`` (means, clipped to the bounds by the rollout) or ``squashed``
            (``tanh`` of the means, stretched to the bounds).
        action_size: choices, or numbers.
        action_low, action_high: bounds of every number of a continuous action.
        state_dependent_std: whether the head also puts out log standard deviations; otherwise they are an array.
        tanh_scale: Sample Factory's soft limit on gaussian means, ``tanh(m / s) * s``; 0 for none.
        sees_goal: whether the last three entries must show Meta-World's goal, which the task hides.
        sampled: whether it acts by sampling its distribution, or greedily.
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

    def check(self, origin: str) -> None:
        """Refuse sizes and numbers that no policy has, before anything of these sizes is built.

        Raises:
            UserError: names ``origin`` and what is wrong.
        """
        sizes = (*self.observation_shape, *self.hidden, self.action_size)
        if len(self.observation_shape) not in (1, 3) or len(self.hidden) > MAX_LAYERS:
            shape = dims(self.observation_shape[:9])
            raise UserError(
                f"{origin}: observations of shape {shape} and {len(self.hidden):,} hidden layers; allowed are vectors "
                f"and images, and {MAX_LAYERS} layers"
            )
        if not all(1 <= size <= MAX_SIZE for size in sizes):
            raise UserError(f"{origin}: sizes {dims(sizes)} are not all from 1 to {MAX_SIZE:,}")
        if (len(self.observation_shape) == 3) != (self.encoder != "mlp"):
            raise UserError(f"{origin}: encoder {self.encoder[:40]!r} is not for {dims(self.observation_shape)}")
        numbers = (self.action_low, self.action_high, self.epsilon, self.clip, self.subtract, self.scale)
        if not all(map(math.isfinite, (*numbers, self.tanh_scale))) or self.scale == 0 or self.epsilon < 0:
            raise UserError(f"{origin}: a bound, epsilon, clip, scale or shift is not finite, or no divisor")

    def check_fits(self, task: Task, origin: str) -> None:
        """Refuse a network whose sizes are not the task's.

        Raises:
            UserError: names ``origin``, both sizes, and what to do.
        """
        shape = task.observation_shape
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
    """``4x84x84``."""
    return "x".join(map(str, shape))
