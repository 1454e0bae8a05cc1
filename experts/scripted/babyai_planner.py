"""A faster version of minigrid's planner that takes the same decisions.

minigrid's ``BabyAIBot`` spends most of its time on computing the view, which the environment has just computed, and on
breadth-first searches: up to a dozen per step, each from scratch. Here the view is taken from the environment, and the
searches of one step share two trees that are expanded lazily. Sub-goals are minigrid's own classes.

This module is imported only where a bot is made, because it needs minigrid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from minigrid.utils.baby_ai_bot import BabyAIBot

Position = tuple[int, int]
# Goal test of a search: called with a position and the cell's content (an object of minigrid or None).
Accept = Callable[[Position, Any], Any]


class FastBot(BabyAIBot):  # type: ignore[misc]
    """``BabyAIBot`` for a level wrapped in ``pipeline.envs.babyai.FlatView``; uses the wrapper's last observation.

    Searches are not counted: ``bfs_counter`` and ``bfs_step_counter`` stay at 0.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        # Sub-goals access ``mission.unwrapped`` very often; it is fastest on the unwrapped level itself.
        level: Any = env.unwrapped
        super().__init__(level)
        self._env = env
        # The cells seen so far, in the order of the level's list of cells; vis_mask is a view for minigrid's code.
        self._seen = bytearray(level.width * level.height)
        self.vis_mask = np.frombuffer(self._seen, np.bool_).reshape(level.height, level.width).T

    def replan(self, action_taken: Any = None) -> Any:
        """Return the next action, with the steps of minigrid's ``replan``.

        The agent's attributes are computed once per step and set only in the current sub-goal.
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
        """Return the attributes that minigrid's ``update_agent_attributes`` sets in a sub-goal."""
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
        # The state does not change until the next call, so all searches until then share the same trees.
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
        """Return minigrid's path to the nearest position that ``accept_fn`` accepts.

        Returns:
            The positions to step on, or None if there is no path; the end position; whether objects may be in the way.
        """
        end = self._walking.find(accept_fn)
        if end is not None:
            return self._walking.path(end)[1:], self._walking.positions[end], False
        if not try_with_blockers:
            return None, None, False
        if self._moving_blockers is None:
            # The failed search has visited all reachable cells; minigrid starts the next one from them, facing right.
            self._moving_blockers = _Search(self.mission.grid, self._seen, self._walking.order, 1, True)
        end = self._moving_blockers.find(accept_fn)
        if end is None:
            return None, None, True
        beyond = self._moving_blockers.path(end)
        x, y = beyond[0]
        path = self._walking.path(y * self.mission.width + x) + beyond[1:]
        return path[1:], self._moving_blockers.positions[end], True


class _Search:
    """A breadth-first tree over the cells of a level, expanded lazily by the searches in it.

    The visiting order does not depend on the goal, so one tree serves all searches. A cell is the index
    ``y * width + x``. Levels are surrounded by walls and walls are never passed, so no step leaves the level.

    Args:
        grid: grid of minigrid.
        seen: for each cell, whether it was ever seen; unseen cells are visited, but not passed.
        starts: cells to visit first.
        forward: the forward step at the starts, as a difference of cell indices.
        through_objects: whether objects other than walls and closed doors can be passed.
    """

    def __init__(
        self, grid: Any, seen: Sequence[int], starts: Sequence[int], forward: int, through_objects: bool
    ) -> None:
        width = grid.width
        self._things = grid.grid
        self._seen = seen
        self._through_objects = through_objects
        # The forward step comes first, then the turns in minigrid's order.
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
        """Return the first cell in visiting order that ``accept`` accepts; None if there is none."""
        positions, things, seen, order = self.positions, self._things, self._seen, self.order
        arrived_by, parent = self._arrived_by, self._parent
        for number, cell in enumerate(order):  # the list grows during the loop
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
        """Return the positions from a start to ``end``, both included."""
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
