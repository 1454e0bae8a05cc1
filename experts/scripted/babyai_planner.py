"""minigrid's planner, with the same decisions in a fraction of the time.

Most of what minigrid's ``BabyAIBot`` spends goes into looking at the world again after the environment just did, and
into breadth-first searches: up to a dozen per step, each from the start. Here the view comes from the environment, and
the searches of one step share two trees that grow only as far as somebody asks. Sub-goals are minigrid's own.

Imported where a bot is made, because it needs minigrid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.utils.baby_ai_bot import BabyAIBot

Position = tuple[int, int]
# Told a position and what lies there (an object of minigrid or None): is this where the search ends?
Accept = Callable[[Position, Any], Any]


class FastBot(BabyAIBot):  # type: ignore[misc]
    """``BabyAIBot`` on a level wrapped in ``pipeline.envs.babyai.FlatView``, whose last observation it uses.

    The searches are not counted: ``bfs_counter`` and ``bfs_step_counter`` stay at 0.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        # Sub-goals ask for ``mission.unwrapped`` all the time; the level itself is the shortest way there.
        level: Any = env.unwrapped
        super().__init__(level)
        self._env = env
        # The cells seen so far, in the order of the level's list of cells, and as the array that minigrid's code reads.
        self._seen = bytearray(level.width * level.height)
        self.vis_mask = np.frombuffer(self._seen, np.bool_).reshape(level.height, level.width).T

    def replan(self, action_taken: Any = None) -> Any:
        """The next action, by the steps of minigrid's ``replan``.

        Only the sub-goal whose turn it is is told where the agent is: worked out once per step.
        """
        self._process_obs()
        self._check_erroneous_box_opening(action_taken)
        agent = self._agent_attributes()
        if self.stack:
            vars(self.stack[-1]).update(agent)
            self.stack[-1].replan_after_action(action_taken)
        while self.stack and self.stack[-1].is_exploratory():
            self.stack.pop()
        action = None
        while self.stack and action is None:
            vars(self.stack[-1]).update(agent)
            action = self.stack[-1].replan_before_action()
        if not self.stack:
            action = self.mission.actions.done
        self._remember_current_state()
        return action

    def _agent_attributes(self) -> dict[str, Any]:
        """What ``update_agent_attributes`` of minigrid sets in a sub-goal."""
        level = self.mission
        forward = level.agent_pos + level.dir_vec
        return {
            "pos": level.agent_pos,
            "dir_vec": level.dir_vec,
            "right_vec": level.right_vec,
            "fwd_pos": forward,
            "fwd_cell": level.grid.get(*forward),
            "carrying": level.carrying,
        }

    def _process_obs(self) -> None:
        for cell in self._env.get_wrapper_attr("visible_cells"):
            self._seen[cell] = True
        # Nothing changes until the next call, so all searches until then walk the same trees.
        x, y = self.mission.agent_pos
        forward_x, forward_y = self.mission.dir_vec
        width = self.mission.width
        self._walking = _Search(
            self.mission.grid, self._seen, [int(y) * width + int(x)], int(forward_y) * width + int(forward_x), False
        )
        self._moving_blockers: _Search | None = None

    def _shortest_path(
        self, accept_fn: Accept, try_with_blockers: bool = False
    ) -> tuple[list[Position] | None, Position | None, bool]:
        """The way to the nearest position that ``accept_fn`` takes, as minigrid finds it.

        Returns:
            the positions to step on, or None without a way; where it ends; whether objects may be in the way.
        """
        end = self._walking.find(accept_fn)
        if end is not None:
            return self._walking.path(end)[1:], self._walking.positions[end], False
        if not try_with_blockers:
            return None, None, False
        if self._moving_blockers is None:
            # The failed search has visited all that can be reached; minigrid goes on from all of it, facing right.
            self._moving_blockers = _Search(self.mission.grid, self._seen, self._walking.order, 1, True)
        end = self._moving_blockers.find(accept_fn)
        if end is None:
            return None, None, True
        beyond = self._moving_blockers.path(end)
        x, y = beyond[0]
        path = self._walking.path(y * self.mission.width + x) + beyond[1:]
        return path[1:], self._moving_blockers.positions[end], True


class _Search:
    """A breadth-first tree over the cells of a level, grown no further than the searches made in it need.

    Its visiting order does not depend on what is looked for, so that one tree serves all. A cell is its index
    ``y * width + x``. Levels have walls all around and a wall is never passed, so that no step leaves the level.

    Args:
        grid: minigrid's.
        seen: for each cell, whether it was ever seen; what was not is visited, but not passed.
        starts: the cells to visit first.
        forward: the step, as a difference of cells, that is straight on at the starts.
        through_objects: whether objects other than walls and closed doors can be passed.
    """

    def __init__(
        self, grid: Any, seen: Sequence[int], starts: Sequence[int], forward: int, through_objects: bool
    ) -> None:
        width = grid.width
        self._things = grid.grid
        self._seen = seen
        self._through_objects = through_objects
        # Straight on comes first, then the turns in the order of minigrid.
        self._steps = {
            1: (1, width, -width, -1),
            width: (width, 1, -1, -width),
            -1: (-1, -width, width, 1),
            -width: (-width, -1, 1, width),
        }
        self.positions = _positions(width, grid.height)
        self.order = list(starts)
        self._num_passed = 0
        self._arrived_by = dict.fromkeys(starts, forward)
        self._parent: dict[int, int | None] = dict.fromkeys(starts)

    def find(self, accept: Accept) -> int | None:
        """The first cell, in visiting order, that ``accept`` takes."""
        positions, things, seen, order = self.positions, self._things, self._seen, self.order
        arrived_by, parent = self._arrived_by, self._parent
        for number, cell in enumerate(order):  # which grows meanwhile
            thing = things[cell]
            if accept(positions[cell], thing):
                return cell
            if number < self._num_passed:
                continue
            self._num_passed += 1
            if not seen[cell] or not (thing is None or self._can_pass(thing)):
                continue
            for step in self._steps[arrived_by[cell]]:
                neighbour = cell + step
                if neighbour not in parent:
                    parent[neighbour] = cell
                    arrived_by[neighbour] = step
                    order.append(neighbour)
        return None

    def path(self, end: int) -> list[Position]:
        """The positions from a start to ``end``, both included."""
        path = []
        cell: int | None = end
        while cell is not None:
            path.append(self.positions[cell])
            cell = self._parent[cell]
        return path[::-1]

    def _can_pass(self, thing: Any) -> bool:
        kind = thing.type
        if kind == "wall":
            return False
        return bool(thing.is_open) if kind == "door" else self._through_objects


@functools.cache
def _positions(width: int, height: int) -> list[Position]:
    return [(x, y) for y in range(height) for x in range(width)]
