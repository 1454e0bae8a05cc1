"""Adaptive sampling in a training: when the needs of its tasks are measured, and the draws that follow.

The needs come from held-out losses, or from the scores of a few episodes that the network plays. What follows is a
mixture of its own from that step on, so the batches are a function of the seed and of what the checkpoint says of the
sampling: a resumed run draws the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.data.adaptive import SamplingState, updated
from trainer.data.loader import Mixture
from trainer.data.sources import TrainingData, sampling_shares
from trainer.training.group import Group

# Plays with a network and returns the mean normalised score of tasks, by index; a task of which no episode counts, or
# that has no scale, is left out. The arguments are the network, its weights on any device, the number of the
# measurement, which no other one of the run has, and the tasks to play.
Player = Callable[[Checkpoint, Mapping[str, Tensor], int, Sequence[int]], Mapping[int, float]]


class AdaptiveSampling:
    """The shares of a run's draws, measured anew every ``sampling_every`` steps.

    Args:
        config: settings of the run; its sampling is adaptive.
        data: the sources to draw from; tasks come first.
        group: the workers.
        state: that of the checkpoint which the run resumes from; None for a new run.
    """

    def __init__(self, config: TrainConfig, data: TrainingData, group: Group, state: SamplingState | None) -> None:
        self._config, self._data, self._group = config, data, group
        self._num_tasks = len(data.sources) - len(data.corpora)
        self._mixture = self._draws(state)

    @property
    def mixture(self) -> Mixture:
        """The draws since the last update."""
        return self._mixture

    def _draws(self, state: SamplingState | None) -> Mixture:
        if state is None:
            return self._data.mixture(self._config)
        first = state.step * self._config.micro_batches
        return self._data.mixture(self._config, state.shares, first, state.drawn)

    def is_due(self, state: SamplingState | None, step: int) -> bool:
        """Whether to measure after ``step`` optimiser steps, given the state so far."""
        if step == 0:  # the score of an untrained network needs no measurement
            return state is None and (self._config.sampling == "adaptive-loss" or self._config.start is not None)
        return step % self._config.sampling_every == 0 and (state is None or state.step != step)

    def update(
        self,
        state: SamplingState | None,
        step: int,
        losses: Callable[[], Sequence[float | None]],
        play: Callable[[int, Sequence[int]], Mapping[int, float]],
    ) -> SamplingState:
        """Measure the tasks, draw by what they need from here on, and return the new state.

        Args:
            state: the state so far.
            step: optimiser steps done.
            losses: measures the held-out loss of every source.
            play: plays tasks, given the number of the measurement and their indices; returns their scores.
        """
        begun = time.monotonic()
        first: Sequence[float | None] = ()
        if self._config.sampling == "adaptive-loss":
            found = [*losses()[: self._num_tasks], *[None] * len(self._data.corpora)]
            first = state.first if state else found
            needs = [_left(now, then) for now, then in zip(found, first, strict=True)]
        else:
            needs = self._needs_by_score(play, state.updates if state else 0)
        (seconds,) = self._group.max([time.monotonic() - begun])
        drawn = self._mixture.drawn_before(step * self._config.micro_batches)
        new = updated(state, needs, sampling_shares(self._data.sources), step, drawn, seconds, first)
        self._mixture = self._draws(new)
        return new

    def _needs_by_score(
        self, play: Callable[[int, Sequence[int]], Mapping[int, float]], number: int
    ) -> list[float | None]:
        scores = play(number, range(self._group.rank, self._num_tasks, self._group.world_size))
        is_known = self._group.sum([float(index in scores) for index in range(self._num_tasks)])
        summed = self._group.sum([scores.get(index, 0.0) for index in range(self._num_tasks)])
        needs = [min(1.0, max(0.0, 1 - score)) for score in summed]
        found = [need if known else None for need, known in zip(needs, is_known, strict=True)]
        return [*found, *[None] * len(self._data.corpora)]

    def columns(self, state: SamplingState) -> dict[str, float]:
        """The columns of an update in the training log."""
        names = [source.name for source in self._data.sources]
        shares = {f"share/{name}": share for name, share in zip(names, state.shares, strict=True)}
        needs = {f"need/{name}": need for name, need in zip(names, state.needs, strict=True) if need is not None}
        return {**shares, **needs, "sampling_seconds": state.seconds}


def _left(now: float | None, first: float | None) -> float | None:
    """The share of a task's first loss that is left, at most 1."""
    if now is None or first is None or first <= 0:
        return None
    return min(1.0, max(0.0, now / first))
