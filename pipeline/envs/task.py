"""Defines the record of one task: its observation and action spaces, and the factory of its environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

# Observation keys, named as in JAT. A task has one of the first three; BabyAI tasks also have the text.
CONTINUOUS, DISCRETE, IMAGE, TEXT = (
    "continuous_observation",
    "discrete_observation",
    "image_observation",
    "text_observation",
)

IMAGE_SHAPE = (84, 84, 4)  # of every image observation: height, width, and four frames or colours


@dataclass(frozen=True)
class Action:
    """An action space: ``size`` choices (discrete), or ``size`` numbers in ``[low, high]`` (continuous)."""

    kind: Literal["discrete", "continuous"]
    size: int
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Part:
    """A named part of a vector of observations, which has a column of its own in files: ``observations.<name>``.

    Attributes:
        name: of letters, digits, ``_`` and ``-``.
        size: numbers of the vector that are of this part.
        values: numbers of values of each of its integers, which the vector has as one-hot; empty for real numbers.
    """

    name: str
    size: int
    values: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """Numbers of a step in the column."""
        return len(self.values) or self.size

    def decode(self, vectors: np.ndarray) -> np.ndarray:
        """Numbers ``(S, size)`` of the vector -> ``(S, width)`` of the column: float32, or int64 from 0."""
        import numpy as np

        if not self.values:
            return vectors
        ends = np.cumsum(self.values)
        pieces = np.split(vectors, ends[:-1], axis=1)
        return np.stack([piece.argmax(axis=1) for piece in pieces], axis=1).astype(np.int64)

    def encode(self, column: np.ndarray) -> np.ndarray:
        """The inverse of ``decode``."""
        import numpy as np

        if not self.values:
            return column
        pieces = [np.eye(count, dtype=np.float32)[column[:, i]] for i, count in enumerate(self.values)]
        return np.concatenate(pieces, axis=1)


@dataclass(frozen=True)
class Task:
    """One row of a domain's table.

    Attributes:
        name: JAT's name for the task, e.g. ``metaworld-reach``.
        domain: name of its domain, the part before the first dash.
        env_id: the environment id used here.
        jat_env_id: the id that JAT used; it differs if a newer version is required here.
        observation: key of the main observation.
        observation_shape: its shape for one time step.
        has_text: whether every observation includes a mission text (``text_observation``).
        action: the action space.
        max_steps: the largest number of agent steps in an episode, for any seed.
        success: source of the success flag: ``info`` (``info["success"]`` at any step), ``reward`` (a positive reward
            on the last step) or ``None`` if the environment does not define success.
        packages: the distributions whose versions determine the content of an episode.
        lockstep: number of vectorised environments per core, tuned for throughput. Networks are faster with larger
            batches; simulators are slower once their states together exceed the processor's cache.
        factory: builds the environment; heavy imports happen inside it.
        drawable_factory: builds an environment with the same episodes that ``pipeline/envs/render.py`` can render, if
            ``factory``'s environment cannot be rendered; else None.
        observation_values: number of values of each integer of a discrete observation, if they are known.
        parts: named parts of a continuous observation, in the vector's order, if files are to have a column for each.
        hidden_goal: reads the goal of an episode from its environment, ``(n,)``, if the last n entries of the
            observation hide it. Experts may see it there; the agent never does.
        is_reference: whether environments and policies are made of the libraries' own classes only, without the faster
            ones that replace parts of them here.
    """

    name: str
    domain: str
    env_id: str
    jat_env_id: str
    observation: str
    observation_shape: tuple[int, ...]
    action: Action
    max_steps: int
    success: Literal["info", "reward"] | None
    packages: tuple[str, ...]
    factory: Callable[[Task], gym.Env[Any, Any]]
    has_text: bool = False
    lockstep: int = 16
    drawable_factory: Callable[[Task], gym.Env[Any, Any]] | None = None
    observation_values: tuple[int, ...] = ()
    parts: tuple[Part, ...] = ()
    hidden_goal: Callable[[gym.Env[Any, Any]], np.ndarray] | None = None
    is_reference: bool = False

    def as_reference(self) -> Task:
        """Return this task with the libraries' own classes only: the same numbers, only slower."""
        return replace(self, is_reference=True)

    def make_env(self, drawable: bool = False) -> gym.Env[Any, Any]:
        """Create an environment whose observations are a dict with JAT's keys.

        ``reset(seed=s)`` determines the whole episode, including the goal: the same seed and actions give the same
        episode.

        Args:
            drawable: whether frames of it will be rendered.
        """
        return (self.drawable_factory if drawable and self.drawable_factory else self.factory)(self)
