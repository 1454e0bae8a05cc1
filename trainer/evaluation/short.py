"""Short evaluations during a training: what adaptive sampling goes by. Nothing is written.

Each measurement plays seeds of its own, which belong to no dataset and to no other evaluation, so nothing is chosen by
the seeds that results are measured on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipeline.envs.rollout import RolloutPart, rollout_parts
from pipeline.envs.task import Task
from pipeline.scoring.measurement import Measurement
from pipeline.scoring.scores import is_scorable, normalise
from pipeline.seeds import seed_range
from trainer.checkpoint import Checkpoint
from trainer.evaluation.playing import in_groups, key_of, lockstep_of

if TYPE_CHECKING:
    from trainer.networks.model import Model

log = logging.getLogger(__name__)


class ShortEvaluation:
    """Plays a few episodes of tasks with a network that is in training; a ``trainer.training.sampling.Player``.

    Args:
        tasks: the tasks of the training, in the order of its network.
        references: measurements of the random policy and of the expert, by task.
        episodes: number of episodes of each task.
    """

    def __init__(
        self, tasks: Sequence[Task], references: Mapping[Task, tuple[Measurement, Measurement]], episodes: int
    ) -> None:
        self._tasks, self._episodes = list(tasks), episodes
        means = [[float(m.accepted_returns.mean()) for m in references[task]] for task in tasks]
        self._scale = [(random, expert) for random, expert in means]
        self._model: Model | None = None
        without = [task.name for task, scale in zip(tasks, self._scale, strict=True) if not is_scorable(*scale)]
        if without:
            log.warning("without a score, so drawn as without adaptation: %s", ", ".join(without))

    def __call__(
        self, agent: Checkpoint, weights: Mapping[str, Tensor], number: int, own: Sequence[int]
    ) -> dict[int, float]:
        """Return the mean normalised score of the tasks with indices ``own``; see ``Player``."""
        from trainer.agent import Agent
        from trainer.networks.build import build_model

        own = [index for index in own if is_scorable(*self._scale[index])]
        if not own:
            return {}
        if self._model is None:  # a copy on the CPU: the network itself may be compiled, or on another device
            self._model = build_model(agent.config.model, agent.config.layouts)
        self._model.load_state_dict({name: value.cpu() for name, value in weights.items()})
        copy = Checkpoint(self._model, agent.tokenizer, agent.normalisers, agent.config)
        returns: dict[int, list[float]] = {index: [] for index in own}
        place = {self._tasks[index]: index for index in own}
        for group in in_groups([(key_of(agent.config, self._tasks[i]), self._episodes) for i in own], workers=1):
            parts = [RolloutPart(self._tasks[own[i]], self._seeds(number), lockstep_of(self._episodes)) for i in group]
            slots = [part.task for part in parts for _ in range(part.num_slots)]
            for task, episode in rollout_parts(parts, Agent(copy, slots), keep_observations=False):
                if episode.rejected is None:
                    returns[place[task]].append(episode.total_reward)
        return {i: float(np.mean(normalise(found, *self._scale[i]))) for i, found in returns.items() if found}

    def _seeds(self, number: int) -> list[int]:
        """The seeds of one measurement; after the last one they begin anew."""
        seeds = seed_range("sampling")
        first = number * self._episodes
        return [seeds[k % len(seeds)] for k in range(first, first + self._episodes)]
