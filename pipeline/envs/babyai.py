"""Defines the BabyAI domain: 39 grid-world levels with a mission in natural language.

Observations: ``discrete_observation``, 148 integers = the direction, then the 7 x 7 x 3 view flattened in C order; and
``text_observation``, the mission, at every step. Most levels compute their step limit from the mission; the table holds
the largest limit of each level.
"""

from __future__ import annotations

import contextlib
import functools
import io
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.domain import Domain, SuppliedExpert
from pipeline.envs.task import DISCRETE, TEXT, Action, Task

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
VIEW_SIZE = 7
VIEW_SHAPE = (VIEW_SIZE, VIEW_SIZE, 3)
NUM_INTEGERS = 1 + VIEW_SIZE * VIEW_SIZE * 3  # of a step: the direction, then the view
# Numbers of object types, colours and states in minigrid's encoding of a cell.
CELL_SIZES = (11, 6, 3)


# minigrid's encodings of cells. Cells outside the level appear as a grey wall.
UNSEEN, EMPTY, WALL = bytes([0, 0, 0]), bytes([1, 0, 0]), bytes([2, 5, 0])
# For each set of columns, encoded as a bit mask, its columns in order.
_COLUMNS = tuple(tuple(i for i in range(VIEW_SIZE) if bits >> i & 1) for bits in range(1 << VIEW_SIZE))


class FlatView(gym.Wrapper[Any, Any, Any, Any]):
    """Flattens direction and view into one integer vector; the mission is text and the reward a float.

    Attributes:
        last_action: the previous action of this episode; None at its start.
        visible_cells: indices ``y * width + x`` into the level's list of cells, for the cells in the last observation;
            empty in a reference.
    """

    def __init__(self, env: gym.Env[Any, Any], is_reference: bool = False) -> None:
        super().__init__(env)
        sizes = [NUM_DIRECTIONS, *np.broadcast_to(CELL_SIZES, VIEW_SHAPE).ravel()]
        # gymnasium's Text space would have to list every character of every mission; reuse the level's own space.
        mission = env.observation_space["mission"]  # type: ignore[index]
        self.observation_space = gym.spaces.Dict({DISCRETE: gym.spaces.MultiDiscrete(sizes), TEXT: mission})
        self.last_action: int | None = None
        self.visible_cells: list[int] = []
        level: Any = env.unwrapped
        self._level = level
        # minigrid computes these cell by cell, which took most of the time of a step and of some resets. They are
        # replaced on this instance only, by methods with the same results; minigrid's classes are not changed.
        if not is_reference:
            level.gen_obs = self._look
            level.check_objs_reachable = self._check_objs_reachable

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.last_action = None
        # minigrid prints a line for every layout that it rejects while it generates a level.
        with contextlib.redirect_stdout(io.StringIO()):
            observation, info = self.env.reset(seed=seed, options=options)
        return _flatten(observation), info

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.last_action = action
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _flatten(observation), float(reward), terminated, truncated, info

    def _look(self) -> dict[str, Any]:
        """Compute the same as minigrid's ``gen_obs``: the view as uint8 ``(7, 7, 3)``, columns first, and the rest."""
        level = self._level
        things = level.grid.grid
        x, y = level.agent_pos
        view = _view_cells(level.grid.width, level.grid.height, int(x), int(y), int(level.agent_dir))
        codes = [UNSEEN] * (VIEW_SIZE * VIEW_SIZE)
        visible_cells = []
        row, seen = VIEW_SIZE - 1, 1 << VIEW_SIZE // 2
        while seen and row >= 0:
            cells = view[row]
            clear = 0
            for column, cell in enumerate(cells):
                if cell is not None and ((thing := things[cell]) is None or thing.see_behind()):
                    clear |= 1 << column
            seen, ahead = _spread(seen, clear)
            for column in _COLUMNS[seen]:
                cell = cells[column]
                if cell is None:
                    codes[column * VIEW_SIZE + row] = WALL
                else:
                    thing = things[cell]
                    codes[column * VIEW_SIZE + row] = EMPTY if thing is None else bytes(thing.encode())
                    visible_cells.append(cell)
            row, seen = row - 1, ahead
        # The agent's own cell is the middle of the last row; it shows the object that the agent carries.
        codes[VIEW_SIZE // 2 * VIEW_SIZE + VIEW_SIZE - 1] = bytes(level.carrying.encode()) if level.carrying else EMPTY
        self.visible_cells = visible_cells
        image = np.frombuffer(bytearray().join(codes), np.uint8).reshape(VIEW_SHAPE)
        return {"image": image, "direction": level.agent_dir, "mission": level.mission}

    def _check_objs_reachable(self, raise_exc: bool = True) -> bool:
        """Whether the agent can reach every object without moving any; else raise RejectSampling if ``raise_exc``."""
        from minigrid.envs.babyai.core.roomgrid_level import RejectSampling

        level = self._level
        things, width = level.grid.grid, level.grid.width
        x, y = level.agent_pos
        reached = set()
        waiting = [int(y) * width + int(x)]
        while waiting:  # stays in the level, because walls surround it
            cell = waiting.pop()
            if cell not in reached:
                reached.add(cell)
                if things[cell] is None or things[cell].type == "door":
                    waiting += (cell + 1, cell - 1, cell + width, cell - width)
        unreached = [i for i, thing in enumerate(things) if thing and thing.type != "wall" and i not in reached]
        if unreached and raise_exc:
            raise RejectSampling(f"unreachable object in cell {unreached[0]}")
        return not unreached


@functools.cache
def _view_cells(width: int, height: int, x: int, y: int, direction: int) -> tuple[tuple[int | None, ...], ...]:
    """Return the cells in the agent's view, by row and column of the view; None for cells outside the level."""
    forward_x, forward_y = ((1, 0), (0, 1), (-1, 0), (0, -1))[direction]
    right_x, right_y = -forward_y, forward_x

    def cell(row: int, column: int) -> int | None:
        ahead, aside = VIEW_SIZE - 1 - row, column - VIEW_SIZE // 2
        cell_x = x + ahead * forward_x + aside * right_x
        cell_y = y + ahead * forward_y + aside * right_y
        return cell_y * width + cell_x if 0 <= cell_x < width and 0 <= cell_y < height else None

    return tuple(tuple(cell(row, column) for column in range(VIEW_SIZE)) for row in range(VIEW_SIZE))


@functools.cache
def _spread(seen: int, clear: int) -> tuple[int, int]:
    """Compute the visible cells of one row of the view, as minigrid defines them; bit i is column i.

    Args:
        seen: cells that are visible from the row behind.
        clear: cells that do not block the view.

    Returns:
        the visible cells of this row, and the cells of the row ahead that are visible through it.
    """
    ahead = 0
    for columns, step in ((range(VIEW_SIZE - 1), 1), (range(VIEW_SIZE - 1, 0, -1), -1)):
        for column in columns:
            if (seen & clear) >> column & 1:
                seen |= 1 << column + step
                ahead |= 1 << column | 1 << column + step
    return seen, ahead


def _flatten(observation: dict[str, Any]) -> dict[str, Any]:
    flat = np.empty(NUM_INTEGERS, np.int64)
    flat[0] = observation["direction"]
    flat[1:] = observation["image"].ravel()
    return {DISCRETE: flat, TEXT: observation["mission"]}


def make_env(task: Task) -> gym.Env[Any, Any]:
    import minigrid  # noqa: F401  registers the levels

    level = gym.make(task.env_id, render_mode="rgb_array", highlight=False, tile_size=24, disable_env_checker=True)
    return FlatView(level, task.is_reference)


TASKS = tuple(
    Task(
        name=f"babyai-{name}",
        domain="babyai",
        env_id=f"BabyAI-{env}-v0",
        jat_env_id=f"BabyAI-{env}-v0",
        observation=DISCRETE,
        observation_shape=(NUM_INTEGERS,),
        has_text=True,
        action=Action("discrete", 7),
        max_steps=max_steps,
        success="reward",
        packages=("minigrid", "gymnasium", "numpy"),
        factory=make_env,
    )
    for name, env, max_steps in LEVELS
)

DOMAIN = Domain(
    name="babyai",
    title="BabyAI",
    tasks=TASKS,
    about="Missions in words, in grid worlds that are only seen in part. A step is 148 integers (the direction the "
    "agent looks in, then its 7 x 7 x 3 view laid flat) and the text of the mission; the action is one of 7.",
    differences=(
        "JAT left out episodes whose planning took longer than 20 ms, so which ones it has depended on the "
        "machine and leans to easy ones; here an episode is rejected when the bot's plan outgrows a fixed size.",
        "No episode is empty (JAT's `babyai-pickup-dist` has 5,360 without a step).",
    ),
    licence="minigrid, which holds the BabyAI levels and the bot, is Apache-2.0.",
    citations=(
        """@inproceedings{chevalierboisvert2019babyai,
  title = {BabyAI: A Platform to Study the Sample Efficiency of Grounded Language Learning},
  author = {Chevalier-Boisvert, Maxime and Bahdanau, Dzmitry and Lahlou, Salem and Willems, Lucas and
            Saharia, Chitwan and Nguyen, Thien Huu and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations},
  year = {2019}
}""",
    ),
    colours=("#1d6fb8", "#64b1f7"),
    steps_per_frame=1,
    frames_per_s=5,
    steps_per_s=5,
    shard_episodes=10_000,
    jat_iqm=0.99,
    jat_context_steps=128,
    experts={
        "bot": SuppliedExpert(
            "experts.scripted.babyai:BabyAIBotPolicy", "minigrid", "the planner that ships with minigrid"
        )
    },
)
