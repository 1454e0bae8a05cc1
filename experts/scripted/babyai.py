"""The BabyAI bot of minigrid: a planner with access to the simulator's full state that solves the mission.

On some levels it pushes sub-goals forever. A limit on its stack stops that deterministically: the same episodes are
rejected on every machine. JAT's 20 ms timeout made the data depend on the computer's speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from pipeline.envs.policy import GiveUp, Observations
from pipeline.envs.task import Task
from pipeline.errors import reason_of

# Successful episodes stay far below (measured: under 20); a looping bot exceeds it in milliseconds.
MAX_SUBGOALS = 100


class LoopingError(RuntimeError):
    """The bot's stack of sub-goals exceeded ``MAX_SUBGOALS``."""


class _BoundedStack(list[Any]):
    def append(self, item: Any) -> None:
        if len(self) >= MAX_SUBGOALS:
            raise LoopingError(f"over {MAX_SUBGOALS} sub-goals")
        super().append(item)


class BabyAIBotPolicy:
    """Policy with one BabyAI bot per slot."""

    def __init__(self, task: Task) -> None:
        self._is_reference = task.is_reference
        self._bots: dict[int, Any] = {}
        self._envs: dict[int, gym.Env[Any, Any]] = {}
        self._planned: dict[int, int | None] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        from experts.scripted.babyai_planner import FastBot

        for slot, env in zip(slots, envs, strict=True):
            bot = BabyAIBot(env) if self._is_reference else FastBot(env)
            bot.stack = _BoundedStack(bot.stack)
            self._bots[slot], self._envs[slot], self._planned[slot] = bot, env, None

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        return [self._plan(slot) for slot in slots]

    def _plan(self, slot: int) -> int | GiveUp:
        # If noise replaced the planned action, pass the executed one to the bot, so that it can undo it.
        done = self._envs[slot].get_wrapper_attr("last_action")
        replaced = done if done != self._planned[slot] else None
        try:
            action = self._planned[slot] = int(self._bots[slot].replan(replaced))
        except Exception as error:  # noqa: BLE001  the planner raises whatever its assumptions break with; counted, never hidden
            return GiveUp(f"bot: {reason_of(error)}")
        return action
