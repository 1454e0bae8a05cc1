"""One task: what is seen, what may be done, and how its environment is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import gymnasium as gym

# Observation keys, as JAT names them. A task has one of the first three; BabyAI adds the text.
CONTINUOUS, DISCRETE, IMAGE, TEXT = (
    "continuous_observation",
    "discrete_observation",
    "image_observation",
    "text_observation",
)


@dataclass(frozen=True)
class Action:
    """What an agent may do: ``size`` choices (discrete), or ``size`` numbers in ``[low, high]`` (continuous)."""

    kind: Literal["discrete", "continuous"]
    size: int
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Task:
    """One row of a domain's table.

    Attributes:
        name: JAT's name for the task, e.g. ``metaworld-reach``.
        domain: the part before the first dash.
        env_id: the environment id used here.
        jat_env_id: the id JAT used; differs where a newer version had to be taken.
        observation: key of the main observation.
        observation_shape: its shape for one time step.
        has_text: whether a mission text (``text_observation``) comes with every observation.
        action: what may be done.
        max_steps: the most agent steps an episode can take, whatever its seed.
        success: where success is read: ``info`` (``info["success"]`` at any step), ``reward`` (a positive reward on
            the last step) or ``None`` when the environment has no notion of it.
        packages: the distributions whose versions decide what an episode looks like.
        lockstep: environments that one core steps fastest at a time. Networks gain from many; simulators lose once
            their states no longer fit the processor's cache together.
        factory: builds the environment; heavy imports happen inside it.
        drawable_factory: builds one with the same episodes that ``pipeline/envs/render.py`` can draw, where
            ``factory``'s
            cannot be drawn; None where it can.
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

    def make_env(self, drawable: bool = False) -> gym.Env[Any, Any]:
        """A new environment whose observations are a dict with JAT's keys.

        ``reset(seed=s)`` fixes the whole episode, the goal included: same seed and same actions, same episode.

        Args:
            drawable: whether frames will be drawn of it.
        """
        return (self.drawable_factory if drawable and self.drawable_factory else self.factory)(self)
