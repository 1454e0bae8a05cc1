"""Converts gymnasium's spaces to a task's: what an environment shows and takes becomes JAT's columns.

Observations:
    Box: a vector of float32, laid flat; pictures of bytes become ``IMAGE_SHAPE``.
    Discrete, MultiDiscrete, MultiBinary: a vector of integers from 0.
    Dict: one of these, or several that are laid flat as one vector (integers as one-hot), in the order of their keys;
        beside them at most one Text.
Pictures: resized to 84 x 84. Grey ones become a stack of the last four frames, as in Atari; coloured ones get the
channels red, green, blue, and the previous frame in grey.

Actions:
    Discrete, MultiDiscrete: one choice of all combinations, the last number changing fastest.
    Box: a vector of float32 with one lower and one upper bound; where they differ by dimension, -1 to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, IMAGE_SHAPE, TEXT, Action, Part
from pipeline.errors import UserError

MIN_PICTURE = 16  # pixels; smaller arrays of bytes are boards, not pictures
MAX_CHOICES = 4096  # of discrete actions, all combinations counted
MAX_VALUES = 2**15  # of an integer in an observation, as the trainer's arrays store it
MAX_NUMBERS = 100_000  # of a vector
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class ObservationLayout:
    """How an observation space becomes a task's observation.

    Attributes:
        kind: key of the main observation, one of JAT's three.
        shape: its shape.
        values: numbers of values of each integer; empty for other kinds.
        main: keys of the Dict's parts that the main observation is made of; empty if the space is no Dict.
        text: key of the Dict's text, or None.
        parts: the vector's parts by key of the Dict, if it is made of several.
    """

    kind: str
    shape: tuple[int, ...]
    values: tuple[int, ...] = ()
    main: tuple[str, ...] = ()
    text: str | None = None
    parts: tuple[Part, ...] = ()


def observation_layout(space: spaces.Space[Any], origin: str) -> ObservationLayout:
    """Find the layout of an observation space.

    Raises:
        UserError: names the space and what would work.
    """
    if isinstance(space, spaces.Dict):
        return _dict_layout(space, origin)
    if _is_picture(space):
        return ObservationLayout(IMAGE, IMAGE_SHAPE)
    if isinstance(space, spaces.Box):
        return ObservationLayout(CONTINUOUS, (_size(prod(space.shape) or 1, origin),))
    values = _values(space)
    if values is None:
        raise UserError(
            f"{origin} has observations of the space {space}, which cannot be had; a Box, a Discrete, a MultiDiscrete, "
            "or a Dict of these with at most one Text would work: wrap the environment"
        )
    if max(values) > MAX_VALUES:
        raise UserError(f"{origin} has integers of {max(values)} values, at most {MAX_VALUES} would work")
    return ObservationLayout(DISCRETE, (_size(len(values), origin),), values)


def _dict_layout(space: spaces.Dict, origin: str) -> ObservationLayout:
    texts = [key for key, part in space.items() if isinstance(part, spaces.Text) or "Mission" in type(part).__name__]
    main = tuple(key for key in space if key not in texts)
    pictures = [key for key in main if _is_picture(space[key])]
    if len(texts) > 1 or not main or (pictures and len(main) > 1):
        raise UserError(
            f"{origin} has observations of the space {space}: one picture, or vectors and integers, with at most one "
            "Text would work; drop the other parts with gymnasium.wrappers.FilterObservation"
        )
    text = texts[0] if texts else None
    if len(main) == 1:
        only = observation_layout(space[main[0]], f"{origin}, part {main[0]!r},")
        if only.main or only.text:
            raise UserError(f"{origin} has a Dict in a Dict; flatten it with a wrapper")
        return ObservationLayout(only.kind, only.shape, only.values, main, text)
    flat = spaces.Dict({key: space[key] for key in main})  # which sorts its keys
    try:
        size = spaces.flatdim(flat)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{origin} has a part that cannot be laid flat ({error}): {space}; Box, Discrete and MultiDiscrete work"
        ) from error
    parts = tuple(Part(key, spaces.flatdim(space[key]), _one_hot_values(space[key])) for key in flat)
    return ObservationLayout(CONTINUOUS, (_size(size, origin),), (), main, text, parts)


def _one_hot_values(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Numbers of values of the integers that gymnasium flattens to one-hot."""
    return _values(space) or () if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else ()


def _size(size: int, origin: str) -> int:
    if size > MAX_NUMBERS:
        raise UserError(f"{origin} has {size:,} numbers a step, at most {MAX_NUMBERS:,} would work")
    return size


def _is_picture(space: spaces.Space[Any]) -> bool:
    shape = space.shape if isinstance(space, spaces.Box) and space.dtype == np.uint8 else ()
    if len(shape) not in (2, 3):
        return False
    sides = shape if len(shape) == 2 else shape[:2] if shape[2] in (1, 3, 4) else shape[1:]
    channels = 1 if len(shape) == 2 else shape[2] if shape[2] in (1, 3, 4) else shape[0]
    return channels in (1, 3, 4) and min(sides) >= MIN_PICTURE


def _values(space: spaces.Space[Any]) -> tuple[int, ...] | None:
    """Numbers of values of the integers of a space; None if it is not one of integers."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return (2,) * prod(space.shape)
    return None


def action_layout(space: spaces.Space[Any], origin: str) -> Action:
    """Find the action of a task for an action space.

    Raises:
        UserError: names the space and what would work.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        choices = prod(_values(space) or ())
        if choices > MAX_CHOICES:
            raise UserError(
                f"{origin} has {choices:,} combinations of actions ({space}), at most {MAX_CHOICES:,} work; group "
                "them with a wrapper"
            )
        return Action("discrete", choices)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UserError(
                f"{origin} has actions without bounds ({space}); finite ones would work, as "
                "gymnasium.wrappers.RescaleAction gives"
            )
        low, high = _bounds(space)
        return Action("continuous", prod(space.shape), low, high)
    raise UserError(
        f"{origin} has actions of the space {space}, which cannot be had; a Box of floats, a Discrete or a "
        "MultiDiscrete would work: wrap the environment"
    )


def _bounds(space: spaces.Box) -> tuple[float, float]:
    """The bounds of all dimensions; -1 and 1 if they differ by dimension."""
    lows, highs = np.unique(space.low), np.unique(space.high)
    return (float(lows[0]), float(highs[0])) if len(lows) == len(highs) == 1 else (-1.0, 1.0)


class TaskView(gym.Wrapper[Any, Any, Any, Any]):
    """Shows any environment in the layout of a task.

    Args:
        env: the environment; its ``reset(seed=...)`` must determine the episode.
        origin: its name in messages.
    """

    def __init__(self, env: gym.Env[Any, Any], origin: str) -> None:
        super().__init__(env)
        self.layout = observation_layout(env.observation_space, origin)
        self._observe, self._execute = _observer(env.observation_space, self.layout), _executor(env.action_space)
        self._frames: np.ndarray | None = None
        kind, shape = self.layout.kind, self.layout.shape
        parts: dict[str, spaces.Space[Any]] = {
            kind: spaces.Box(0, 255, shape, np.uint8)
            if kind == IMAGE
            else spaces.MultiDiscrete(list(self.layout.values))
            if kind == DISCRETE
            else spaces.Box(-np.inf, np.inf, shape, np.float32)
        }
        if self.layout.text is not None:
            parts[TEXT] = env.observation_space[self.layout.text]  # type: ignore[index]
        self.observation_space = spaces.Dict(parts)
        action = action_layout(env.action_space, origin)
        self.action_space = (
            spaces.Discrete(action.size)
            if action.kind == "discrete"
            else spaces.Box(action.low, action.high, (action.size,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames = None
        return self._show(observation), info

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self._execute(action))
        return self._show(observation), float(reward), bool(terminated), bool(truncated), info

    def _show(self, observation: Any) -> dict[str, Any]:
        main = self._observe(observation)
        if self.layout.kind == IMAGE:
            main = self._frames = stack_picture(main, self._frames)
        shown: dict[str, Any] = {self.layout.kind: main}
        if self.layout.text is not None:
            shown[TEXT] = str(observation[self.layout.text])
        return shown


def _observer(space: spaces.Space[Any], layout: ObservationLayout) -> Callable[[Any], np.ndarray]:
    """The main observation of an observation, before pictures are stacked."""
    if layout.main and isinstance(space, spaces.Dict):
        if len(layout.main) > 1:
            chosen = spaces.Dict({key: space[key] for key in layout.main})
            return lambda seen: np.asarray(spaces.flatten(chosen, {key: seen[key] for key in layout.main}), np.float32)
        key = layout.main[0]
        inner = _observer(space[key], ObservationLayout(layout.kind, layout.shape))
        return lambda seen: inner(seen[key])
    if layout.kind == DISCRETE:
        start = np.ravel(getattr(space, "start", 0))
        return lambda seen: np.asarray(np.ravel(seen) - start, np.int64)
    if layout.kind == IMAGE:
        return np.asarray
    return lambda seen: np.array(seen, np.float32).reshape(-1)


def _executor(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """Convert a task's action to one of the environment."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda action: int(action) + start
    if isinstance(space, spaces.MultiDiscrete):
        shape, starts = space.nvec.shape, space.start
        sizes = tuple(int(n) for n in np.ravel(space.nvec))
        return lambda action: np.reshape(np.unravel_index(int(action), sizes), shape).astype(space.dtype) + starts
    if not isinstance(space, spaces.Box):
        raise TypeError(f"not checked: {space}")
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    if len(np.unique(low)) == len(np.unique(high)) == 1:
        return lambda action: np.reshape(action, space.shape).astype(space.dtype)
    return lambda action: (low + (np.reshape(action, space.shape) + 1) / 2 * (high - low)).astype(space.dtype)


def stack_picture(picture: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """Convert a picture to ``IMAGE_SHAPE``, given the previous converted one of the episode, or None.

    Args:
        picture: ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` uint8 with 1, 3 or 4 channels; a fourth one is dropped.
        before: the result for the previous step.
    """
    import cv2

    if picture.ndim == 3 and picture.shape[2] not in (1, 3, 4):
        picture = np.moveaxis(picture, 0, -1)
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    colours = picture if picture.ndim == 2 else picture[..., :3]
    small = cv2.resize(np.ascontiguousarray(colours), IMAGE_SHAPE[:2], interpolation=cv2.INTER_AREA)
    if small.ndim == 2:
        if before is None:
            return np.repeat(small[..., None], IMAGE_SHAPE[2], axis=2)
        return np.concatenate([before[..., 1:], small[..., None]], axis=2)
    last = small if before is None else before[..., :3]
    grey = np.rint(last @ GREY).astype(np.uint8)
    return np.concatenate([small, grey[..., None]], axis=2)
