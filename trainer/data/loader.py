"""Loads batches in training order; threads prefetch them while the network computes.

The mixture alone, a pure function of (seed, step), determines the order. Each of W workers takes every W-th micro-batch
of an optimiser step, and threads only prefetch in that order: neither their number nor a resume changes the contents of
a step.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

FIRST_DRAWS = 1 << 16  # of a mixture without end; it doubles when they are used up


class Batches(Protocol):
    """Source of batches of one task, or of one set of texts. Thread-safe."""

    num_batches: int

    def parts(self, index: int) -> Sequence[Any]:
        """Return the ``index``-th batch of an endless sequence of epochs, as model batches, each of one width."""

    def describe(self, index: int) -> str:
        """Describe the contents of a batch, for messages."""


@dataclass(frozen=True)
class SourceShare:
    """A model batch with its numbers of real and padded time steps (for texts: tokens)."""

    batch: Any
    num_steps: int
    padded_steps: int


@dataclass(frozen=True)
class MicroBatch:
    """One draw of the mixture.

    Attributes:
        source: index of its task among the sources.
        index: index of the batch within the source.
        parts: the parts of the batch.
    """

    source: int
    index: int
    parts: tuple[SourceShare, ...]

    @property
    def num_steps(self) -> int:
        return sum(part.num_steps for part in self.parts)


class Mixture:
    """The sequence of (task, batch index) draws, sampled by sampling weight.

    Args:
        weights: sampling weight of each task.
        seed: of the draws.
        num_draws: the length of the sequence; None for a sequence without end, which begins the same.
        first: number of the first draw; those before it were another mixture's.
        drawn: how many of those were of each task; none if None.
    """

    def __init__(
        self,
        weights: Sequence[float],
        seed: int,
        num_draws: int | None = None,
        first: int = 0,
        drawn: Sequence[int] | None = None,
    ) -> None:
        self.num_draws = num_draws
        self._probabilities = np.array(weights, np.float64) / np.sum(weights)
        self._seed = (seed, 0, first) if first else (seed, 0)
        self._first = first
        self._drawn = [0] * len(weights) if drawn is None else list(drawn)
        self._draw(FIRST_DRAWS if num_draws is None else max(0, num_draws - first))

    def __getitem__(self, draw: int) -> tuple[int, int]:
        """Return task and batch index of the ``draw``-th batch."""
        draw -= self._first
        self._extend(draw)
        return int(self._tasks[draw]), int(self._indices[draw])

    def drawn_before(self, draw: int) -> list[int]:
        """Return how many of the draws before ``draw`` are of each task."""
        self._extend(draw - self._first - 1)
        own = np.bincount(self._tasks[: draw - self._first], minlength=len(self._drawn))
        return [int(count) for count in own + self._drawn]

    def _extend(self, draw: int) -> None:
        while self.num_draws is None and draw >= len(self._tasks):
            self._draw(2 * len(self._tasks))

    def _draw(self, count: int) -> None:
        """Make the first ``count`` draws. With the same seed, fewer draws are the beginning of more."""
        num_tasks = len(self._probabilities)
        self._tasks = np.random.default_rng(self._seed).choice(num_tasks, count, p=self._probabilities)
        # Number of earlier draws of the drawn task, which is the index of its next batch.
        self._indices = np.zeros(count, np.int64)
        for task in range(num_tasks):
            drawn = self._tasks == task
            self._indices[drawn] = self._drawn[task] + np.arange(drawn.sum())


class Loader:
    """The micro-batches of one worker, starting at an optimiser step.

    Args:
        sources: sources to draw from.
        mixture: order of the draws.
        micro_batches: draws per optimiser step, of all workers together.
        first_step: optimiser step to start at.
        rank, world_size: rank of this worker and number of workers.
        threads: number of prefetching threads.
        ahead: number of micro-batches to prefetch.
    """

    def __init__(
        self,
        sources: Sequence[Batches],
        mixture: Mixture,
        micro_batches: int,
        first_step: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        ahead: int = 4,
    ) -> None:
        self._sources, self._mixture = sources, mixture
        self._draws = self._own_draws(micro_batches, first_step, rank, world_size)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
        self._coming: deque[Future[MicroBatch]] = deque()
        for _ in range(ahead):
            self._submit()
        self.waited_s = 0.0  # seconds that training waited for data

    def next(self) -> MicroBatch:
        """Return the next micro-batch, waiting for it if necessary."""
        started = time.perf_counter()
        micro_batch = self._coming.popleft().result()
        self.waited_s += time.perf_counter() - started
        self._submit()
        return micro_batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _own_draws(self, micro_batches: int, first_step: int, rank: int, world_size: int) -> Iterator[int]:
        for begin in itertools.count(first_step * micro_batches, micro_batches):
            if self._mixture.num_draws is not None and begin >= self._mixture.num_draws:
                return
            yield from range(begin + rank, begin + micro_batches, world_size)

    def _submit(self) -> None:
        draw = next(self._draws, None)
        if draw is not None:
            self._coming.append(self._pool.submit(self._load, *self._mixture[draw]))

    def _load(self, source: int, index: int) -> MicroBatch:
        return MicroBatch(source, index, as_parts(self._sources[source].parts(index)))


def as_parts(batches: Sequence[Any]) -> tuple[SourceShare, ...]:
    """Wrap model batches with their sizes."""
    return tuple(SourceShare(batch, int(batch.mask.sum()), batch.mask.numel()) for batch in batches)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all its tensors moved to a device."""
    if device.type == "cpu":
        return batch
    tensors = {
        field.name: value.pin_memory().to(device, non_blocking=True)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **tensors)
