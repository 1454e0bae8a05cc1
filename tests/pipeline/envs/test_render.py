from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.envs.registry import select_tasks
from pipeline.envs.render import _with_caption, render_frame


@pytest.mark.parametrize(
    ("name", "action", "shape"),
    [
        ("babyai-go-to-local", 0, (192 + 17, 192, 3)),  # the mission stands below
        ("metaworld-reach", np.ones(4, np.float32), (240, 240, 3)),
        ("mujoco-hopper", np.ones(3, np.float32), (240, 240, 3)),
        ("mujoco-reacher", np.ones(2, np.float32), (240, 240, 3)),
        ("atari-pong", 2, (210, 160, 3)),
    ],
)
def test_a_frame_shows_the_present_state(name: str, action: Any, shape: tuple[int, ...]) -> None:
    (task,) = select_tasks(name)
    env = task.make_env(drawable=True)
    env.reset(seed=1)
    before = render_frame(env)
    assert (before.shape, before.dtype) == (shape, np.uint8)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 3
    np.testing.assert_array_equal(render_frame(env), before)
    for _ in range(15):
        env.step(action)
    assert (render_frame(env) != before).any()
    env.close()


def test_the_goal_of_metaworld_is_drawn() -> None:
    (task,) = select_tasks("metaworld-reach")
    env = task.make_env(drawable=True)
    env.reset(seed=1)
    unwrapped: Any = env.unwrapped
    before = render_frame(env)
    marker = next(i for i in range(unwrapped.model.nsite) if unwrapped.model.site(i).name == "goal")
    unwrapped.data.site_xpos[marker] += [0.0, 0.0, 0.15]
    assert (render_frame(env) != before).any(axis=-1).sum() > 20
    env.close()


def test_a_long_mission_is_drawn_whole() -> None:
    frame = np.zeros((10, 528, 3), np.uint8)
    missions = ("open the door", "pick up the red key, then open a door and go to the ball after you put it down " * 2)
    short, long = (_with_caption(frame, mission)[10:] for mission in missions)
    assert short.shape == long.shape == (48, 528, 3)
    for strip in (short, long):
        assert strip.any()
        assert not strip[:, [0, -1]].any()  # nothing reaches the edges
