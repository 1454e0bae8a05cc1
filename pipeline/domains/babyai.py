"""BabyAI: 39 grid-world levels with a mission in words.

Observation: ``discrete_observation``, 148 integers = the direction, then the 7 x 7 x 3 view flattened in C order, and
``text_observation``, the mission, at every step. Most levels set their own step limit from the mission; the table
holds the largest one the level can set.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.tasks import DISCRETE, TEXT, Action, Task

# name, environment id without "BabyAI-" and "-v0", largest step limit
LEVELS = (
    ("action-obj-door", "ActionObjDoor", 441),
    ("blocked-unlock-pickup", "BlockedUnlockPickup", 576),
    ("boss-level", "BossLevel", 4608),
    ("boss-level-no-unlock", "BossLevelNoUnlock", 4608),
    ("find-obj-s5", "FindObjS5", 500),
    ("go-to", "GoTo", 576),
    ("go-to-door", "GoToDoor", 441),
    ("go-to-imp-unlock", "GoToImpUnlock", 576),
    ("go-to-local", "GoToLocal", 64),
    ("go-to-obj", "GoToObj", 64),
    ("go-to-obj-door", "GoToObjDoor", 576),
    ("go-to-red-ball", "GoToRedBall", 64),
    ("go-to-red-ball-grey", "GoToRedBallGrey", 64),
    ("go-to-red-ball-no-dists", "GoToRedBallNoDists", 64),
    ("go-to-red-blue-ball", "GoToRedBlueBall", 64),
    ("go-to-seq", "GoToSeq", 2304),
    ("key-corridor", "KeyCorridor", 1080),
    ("mini-boss-level", "MiniBossLevel", 800),
    ("move-two-across-s8n9", "MoveTwoAcrossS8N9", 1024),
    ("one-room-s8", "OneRoomS8", 64),
    ("open", "Open", 576),
    ("open-door", "OpenDoor", 576),
    ("open-doors-order-n4", "OpenDoorsOrderN4", 720),
    ("open-red-door", "OpenRedDoor", 50),
    ("open-two-doors", "OpenTwoDoors", 720),
    ("pickup", "Pickup", 576),
    ("pickup-above", "PickupAbove", 288),
    ("pickup-dist", "PickupDist", 49),
    ("pickup-loc", "PickupLoc", 64),
    ("put-next", "PutNextS7N4", 392),
    ("put-next-local", "PutNextLocal", 128),
    ("synth", "Synth", 1152),
    ("synth-loc", "SynthLoc", 1152),
    ("synth-seq", "SynthSeq", 4608),
    ("unblock-pickup", "UnblockPickup", 576),
    ("unlock", "Unlock", 576),
    ("unlock-local", "UnlockLocal", 576),
    ("unlock-pickup", "UnlockPickup", 72),
    ("unlock-to-unlock", "UnlockToUnlock", 1080),
)

NUM_DIRECTIONS = 4
VIEW_SHAPE = (7, 7, 3)
# Numbers of object types, colours and states in minigrid's encoding of a cell.
CELL_SIZES = (11, 6, 3)


class FlatView(gym.Wrapper[Any, Any, Any, Any]):
    """Direction and view as one integer vector, the mission as text, the reward as a float."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        sizes = [NUM_DIRECTIONS, *np.broadcast_to(CELL_SIZES, VIEW_SHAPE).ravel()]
        # gymnasium's Text space would have to list every character of every mission; the level's own knows them.
        mission = env.observation_space["mission"]  # type: ignore[index]
        self.observation_space = gym.spaces.Dict({DISCRETE: gym.spaces.MultiDiscrete(sizes), TEXT: mission})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        # minigrid prints a line for every layout it rejects while it draws a level.
        with Path(os.devnull).open("w") as devnull, contextlib.redirect_stdout(devnull):
            observation, info = self.env.reset(seed=seed, options=options)
        return _flatten(observation), info

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _flatten(observation), float(reward), terminated, truncated, info


def _flatten(observation: dict[str, Any]) -> dict[str, Any]:
    flat = np.empty(148, np.int64)
    flat[0] = observation["direction"]
    flat[1:] = observation["image"].ravel()
    return {DISCRETE: flat, TEXT: observation["mission"]}


def make_env(task: Task) -> gym.Env[Any, Any]:
    import minigrid  # noqa: F401  registers the levels

    return FlatView(
        gym.make(task.env_id, render_mode="rgb_array", highlight=False, tile_size=24, disable_env_checker=True)
    )


TASKS = tuple(
    Task(
        name=f"babyai-{name}",
        domain="babyai",
        env_id=f"BabyAI-{env}-v0",
        jat_env_id=f"BabyAI-{env}-v0",
        observation=DISCRETE,
        observation_shape=(148,),
        has_text=True,
        action=Action("discrete", 7),
        max_steps=max_steps,
        success="reward",
        packages=("minigrid", "gymnasium", "numpy"),
        factory=make_env,
    )
    for name, env, max_steps in LEVELS
)
