"""The BabyAI bot of minigrid: a planner that sees the whole simulator and solves the mission.

On some levels it pushes sub-goals for ever. A limit on its stack ends that without a clock: what is rejected is the
same on every machine, unlike JAT's 20 ms alarm, which made the data depend on the computer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from pipeline.policy import GiveUp, Observations
from pipeline.tasks import Task

# Good episodes stay far below (measured: under 20); a looping bot passes it in milliseconds.
MAX_SUBGOALS = 100


class LoopingError(RuntimeError):
    """The bot's stack of sub-goals outgrew ``MAX_SUBGOALS``."""


class _BoundedStack(list[Any]):
    def append(self, item: Any) -> None:
        if len(self) >= MAX_SUBGOALS:
            raise LoopingError(f"over {MAX_SUBGOALS} sub-goals")
        super().append(item)


class BabyAIBotPolicy:
    """One bot per slot."""

    def __init__(self, task: Task) -> None:
        self._bots: dict[int, Any] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        from experts.babyai_planner import FastBot

        for slot, env in zip(slots, envs, strict=True):
            bot = FastBot(env)
            bot.stack = _BoundedStack(bot.stack)
            self._bots[slot] = bot

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        return [self._plan(self._bots[slot]) for slot in slots]

    def _plan(self, bot: Any) -> int | GiveUp:
        try:
            return int(bot.replan())
        except Exception as error:  # noqa: BLE001  the planner raises whatever its assumptions break with; counted, never hidden
            return GiveUp(f"bot: {type(error).__name__}: {error}")
