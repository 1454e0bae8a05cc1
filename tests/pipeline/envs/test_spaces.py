from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from pipeline.envs.spaces import TaskView, action_layout, observation_layout, stack_picture
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, TEXT, Action
from pipeline.errors import UserError

PICTURE = spaces.Box(0, 255, (60, 80, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "kind", "shape", "values"),
    [
        (spaces.Box(-1, 1, (3,)), CONTINUOUS, (3,), ()),
        (spaces.Box(-1, 1, (2, 3), np.float64), CONTINUOUS, (6,), ()),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), CONTINUOUS, (147,), ()),
        (PICTURE, IMAGE, (84, 84, 4), ()),
        (spaces.Box(0, 255, (3, 60, 80), np.uint8), IMAGE, (84, 84, 4), ()),
        (spaces.Box(0, 255, (60, 80), np.uint8), IMAGE, (84, 84, 4), ()),
        (spaces.Discrete(5), DISCRETE, (1,), (5,)),
        (spaces.MultiDiscrete([2, 3]), DISCRETE, (2,), (2, 3)),
        (spaces.MultiBinary(4), DISCRETE, (4,), (2, 2, 2, 2)),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2,))), CONTINUOUS, (5,), ()),
        (spaces.Dict(picture=PICTURE, words=spaces.Text(9)), IMAGE, (84, 84, 4), ()),
    ],
)
def test_a_space_becomes_one_of_jats_observations(
    space: spaces.Space[Any], kind: str, shape: tuple[int, ...], values: tuple[int, ...]
) -> None:
    layout = observation_layout(space, "gym:X-v0")
    assert (layout.kind, layout.shape, layout.values) == (kind, shape, values)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), r"the space Tuple\(Discrete\(2\)\), which cannot be had; a Box, .* work"),
        (spaces.Text(5), "the space Text"),
        (spaces.Dict(a=PICTURE, b=spaces.Discrete(2)), r"one picture, or vectors .*FilterObservation"),
        (spaces.Dict(a=spaces.Text(5), b=spaces.Text(5)), "at most one Text would work"),
        (spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)), b=spaces.Discrete(2)), "cannot be laid flat"),
        (spaces.Discrete(100_000), "integers of 100000 values, at most 32768 would work"),
    ],
)
def test_an_observation_that_cannot_be_had_is_named_with_what_would_work(
    space: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"gym:X-v0 .*{message}"):
        observation_layout(space, "gym:X-v0")


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(4, start=2), Action("discrete", 4)),
        (spaces.MultiDiscrete([2, 3]), Action("discrete", 6)),
        (spaces.Box(-2, 2, (3,)), Action("continuous", 3, -2.0, 2.0)),
        (spaces.Box(np.array([0, -1]), np.array([1, 5]), dtype=np.float64), Action("continuous", 2)),
    ],
)
def test_an_action_space_becomes_choices_or_numbers(space: spaces.Space[Any], action: Action) -> None:
    assert action_layout(space, "gym:X-v0") == action


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "actions without bounds .*RescaleAction"),
        (spaces.MultiBinary(3), r"actions of the space MultiBinary\(3\), which cannot be had; a Box of floats"),
        (spaces.MultiDiscrete([100, 100]), "10,000 combinations of actions .*at most 4,096 work"),
    ],
)
def test_an_action_that_cannot_be_had_is_named_with_what_would_work(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        action_layout(space, "gym:X-v0")


class Echo(gym.Env[Any, Any]):
    """Shows samples of its space, and remembers the last action."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action
        self.shown: Any = None
        self.taken: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        self.shown = self.observation_space.sample()
        return self.shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken, self.shown = action, self.observation_space.sample()
        return self.shown, 0.5, False, False, {}


def test_every_combination_of_a_multi_discrete_action_is_one_choice() -> None:
    env = Echo(spaces.Discrete(3), spaces.MultiDiscrete([2, 3], start=[0, 10]))
    view = TaskView(env, "X")
    view.reset(seed=0)
    taken = set()
    for action in range(6):
        view.step(action)
        assert env.action_space.contains(env.taken)
        taken.add(tuple(env.taken.tolist()))
    assert taken == {(i, 10 + j) for i in range(2) for j in range(3)}


def test_bounds_that_differ_by_dimension_are_scaled() -> None:
    low, high = np.array([0.0, -1.0], np.float32), np.array([1.0, 5.0], np.float32)
    env = Echo(spaces.Discrete(3), spaces.Box(low, high))
    view = TaskView(env, "X")
    view.reset(seed=0)
    for action, expected in (([-1, -1], low), ([1, 1], high), ([0, 0], [0.5, 2.0])):
        view.step(np.array(action, np.float32))
        np.testing.assert_allclose(env.taken, expected)
        assert env.taken.dtype == np.float32


def test_parts_of_a_dict_are_laid_flat_and_its_text_is_kept() -> None:
    space = spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.Box(-1, 1, (2,)), words=spaces.Text(5))
    env = Echo(space, spaces.Discrete(2))
    view = TaskView(env, "X")
    shown, _ = view.reset(seed=3)
    expected = [*np.eye(3)[env.shown["a"] - 1], *env.shown["b"]]
    np.testing.assert_array_equal(shown[CONTINUOUS], np.array(expected, np.float32))
    assert shown[CONTINUOUS].dtype == np.float32 and shown[TEXT] == env.shown["words"]
    assert view.observation_space.contains(shown)


def test_integers_begin_at_zero() -> None:
    env = Echo(spaces.Discrete(3, start=5), spaces.Discrete(2, start=-1))
    view = TaskView(env, "X")
    shown, _ = view.reset(seed=0)
    assert shown[DISCRETE].tolist() == [env.shown - 5] and shown[DISCRETE].dtype == np.int64
    view.step(0)
    assert env.taken == -1


def test_grey_pictures_are_stacked_and_coloured_ones_keep_their_colours_and_the_last_frame() -> None:
    grey = [np.full((60, 80, 1), value, np.uint8) for value in (10, 20, 30)]
    stack = None
    for picture in grey:
        stack = stack_picture(picture, stack)
    assert stack is not None and stack.shape == (84, 84, 4) and stack[5, 5].tolist() == [10, 10, 20, 30]
    red, blue = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 100
    first = stack_picture(red, None)
    second = stack_picture(np.moveaxis(blue, -1, 0), first)  # channels first
    assert first[5, 5].tolist() == [200, 0, 0, 60]
    assert second[5, 5].tolist() == [0, 0, 100, 60]
