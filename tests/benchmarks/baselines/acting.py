"""The baseline of ``tests/benchmarks/evaluate.py``: JAT's way of acting recomputes the whole context at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.batch import StepBatch
from trainer.networks.jat_model import JatModel
from trainer.networks.layout import TaskLayout
from trainer.networks.model import RolloutCache


class PlainActingJat(JatModel):
    """JAT's network without a KV cache."""

    def block_sizes(self, layout: TaskLayout) -> tuple[int, ...]:
        return (1,)

    def new_memory(self, tasks: Sequence[int], layout: TaskLayout, context_steps: int) -> PlainMemory:
        """Return the history of a single episode."""
        (task,) = tasks
        return PlainMemory(self, task, layout, context_steps)


class PlainMemory(RolloutCache):
    """The last time steps of one episode, as raw inputs."""

    num_slots = 1

    def __init__(self, model: JatModel, task: int, layout: TaskLayout, context_steps: int) -> None:
        self._model, self._layout, self._context_steps = model, layout, context_steps
        self._tasks = torch.tensor([task])
        self._observations: list[Tensor] = []
        self._rewards: list[Tensor] = []
        self._actions: list[Tensor] = []

    def forget(self, slots: Sequence[int]) -> None:
        self._observations, self._rewards, self._actions = [], [], []

    def observe(
        self, slots: Tensor, observations: Tensor, previous_rewards: Tensor, to_go: Tensor | None = None
    ) -> Tensor:
        self._observations = [*self._observations, observations][-self._context_steps :]
        self._rewards = [*self._rewards, previous_rewards][-self._context_steps :]
        steps = len(self._observations)
        # The requested action is unknown; nothing that is decoded here attends to it.
        is_discrete = self._layout.action == "discrete"
        unknown = torch.zeros(1, dtype=torch.int64) if is_discrete else torch.zeros(1, self._layout.action_size)
        batch = StepBatch(
            kind=self._layout.observation,
            observations=torch.stack(self._observations, dim=1),
            previous_rewards=torch.stack(self._rewards, dim=1),
            actions=torch.stack([*self._actions[len(self._actions) - steps + 1 :], unknown], dim=1),
            mask=torch.ones(1, steps, dtype=torch.bool),
            tasks=self._tasks,
        )
        actions, _ = self._model(batch)
        return actions[:, -1, : self._layout.action_size]

    def act(self, slots: Tensor, actions: Tensor) -> None:
        self._actions = [*self._actions, actions][-self._context_steps :]
