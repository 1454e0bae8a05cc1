"""Task layouts: the kinds and sizes of observations and actions, which is all a network needs to know about a task."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pipeline.envs.task import IMAGE, Task


@dataclass(frozen=True)
class TaskLayout:
    """Kinds and sizes of one task's observations and actions.

    Attributes:
        observation: key of the main observation.
        observation_size: values per step, including text tokens.
        action: `discrete` or `continuous`.
        action_size: number of choices, or of dimensions.
        low, high: bounds of a continuous action.
    """

    observation: str
    observation_size: int
    action: str
    action_size: int
    low: float
    high: float

    @property
    def observation_name(self) -> str:
        """Name that is equal for tasks whose observations can share an encoder."""
        return self.observation if self.observation == IMAGE else f"{self.observation}_{self.observation_size}"

    @property
    def action_name(self) -> str:
        """Name that is equal for tasks whose actions can share an encoder and a decoder."""
        return f"{self.action}_{self.action_size}"


def layout_of(task: Task, text_tokens: int) -> TaskLayout:
    size = prod(task.observation_shape) + (text_tokens if task.has_text else 0)
    action = task.action
    return TaskLayout(task.observation, size, action.kind, action.size, action.low, action.high)
