"""Task layouts: the kinds and sizes of observations and actions, which is all a network needs to know about a task."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from pipeline.envs.babyai import NUM_INTEGERS
from pipeline.envs.task import DISCRETE, IMAGE, Task


@dataclass(frozen=True)
class TaskLayout:
    """Kinds and sizes of one task's observations and actions.

    Attributes:
        observation: key of the main observation.
        observation_size: values per step, including text tokens.
        action: `discrete` or `continuous`.
        action_size: number of choices, or of dimensions.
        low, high: bounds of a continuous action.
        text_size: text tokens among the values of a vector of numbers or an image; those of integers are integers, too.
        is_grid_world: whether integers are those of a grid world with a mission; True in layouts older than this field.
    """

    observation: str
    observation_size: int
    action: str
    action_size: int
    low: float
    high: float
    text_size: int = 0
    is_grid_world: bool = True

    @property
    def main_size(self) -> int:
        """Values per step without those of ``text_size``."""
        return self.observation_size - self.text_size

    @property
    def observation_name(self) -> str:
        """Name that is equal for tasks whose observations can share an encoder."""
        name = self.observation if self.observation == IMAGE else f"{self.observation}_{self.main_size}"
        if self.observation == DISCRETE and not self.is_grid_world:
            name += "_flat"
        return f"{name}_text_{self.text_size}" if self.text_size else name

    @property
    def action_name(self) -> str:
        """Name that is equal for tasks whose actions can share an encoder and a decoder."""
        return f"{self.action}_{self.action_size}"


def layout_of(task: Task, text_tokens: int) -> TaskLayout:
    num_text = text_tokens if task.has_text else 0
    action = task.action
    return TaskLayout(
        task.observation,
        prod(task.observation_shape) + num_text,
        action.kind,
        action.size,
        action.low,
        action.high,
        text_size=0 if task.observation == DISCRETE else num_text,
        is_grid_world=is_grid_world(task),
    )


def is_grid_world(task: Task) -> bool:
    """Whether a task shows the integers of a grid world with a mission, as BabyAI does."""
    return task.observation == DISCRETE and task.observation_shape == (NUM_INTEGERS,) and task.has_text
