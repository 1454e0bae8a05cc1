"""Batches in the order of training, read ahead by threads while the network is at work.

What comes when is decided by the mixture alone, a pure function of (seed, step). A worker takes every W-th of an
optimiser step's micro-batches, and threads only read ahead in that order: neither their number nor a resume changes
what a step is made of.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Batches(Protocol):
    """Where batches of one task, or of one set of texts, come from. Threads may ask at once."""

    num_batches: int

    def parts(self, index: int) -> Sequence[Any]:
        """The ``index``-th batch of an endless sequence of epochs, as batches of the model, each of one width."""

    def describe(self, index: int) -> str:
        """What a batch is made of, for messages."""


@dataclass(frozen=True)
class SourceShare:
    """A batch of the model, with its real and its padded time steps (of texts: tokens)."""

    batch: Any
    num_steps: int
    padded_steps: int


@dataclass(frozen=True)
class MicroBatch:
    """What is drawn at once.

    Attributes:
        source: index of its task among the sources.
        index: of the batch there.
        parts: together the batch.
    """

    source: int
    index: int
    parts: tuple[SourceShare, ...]

    @property
    def num_steps(self) -> int:
        return sum(part.num_steps for part in self.parts)


class Mixture:
    """Which task's which batch comes at every draw, drawn by sampling weight."""

    def __init__(self, weights: Sequence[float], num_draws: int, seed: int) -> None:
        probabilities = np.array(weights, np.float64) / np.sum(weights)
        self._tasks = np.random.default_rng((seed, 0)).choice(len(weights), num_draws, p=probabilities)
        # How often the drawn task was drawn before: the index of its next batch.
        self._indices = np.zeros(num_draws, np.int64)
        for task in range(len(weights)):
            drawn = self._tasks == task
            self._indices[drawn] = np.arange(drawn.sum())

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, draw: int) -> tuple[int, int]:
        """Task and batch index of the ``draw``-th batch."""
        return int(self._tasks[draw]), int(self._indices[draw])


class Loader:
    """The micro-batches of one worker, from an optimiser step on.

    Args:
        sources: what to draw from.
        mixture: what is drawn when.
        micro_batches: draws per optimiser step, of all workers together.
        first_step: where to begin.
        rank, world_size: this worker and how many there are.
        threads: readers.
        ahead: micro-batches read before they are needed.
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
        self.waited_s = 0.0  # how long training stood still for data

    def next(self) -> MicroBatch:
        """The next one, waiting for it if need be."""
        started = time.perf_counter()
        micro_batch = self._coming.popleft().result()
        self.waited_s += time.perf_counter() - started
        self._submit()
        return micro_batch

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _own_draws(self, micro_batches: int, first_step: int, rank: int, world_size: int) -> Iterator[int]:
        for begin in range(first_step * micro_batches, len(self._mixture), micro_batches):
            yield from range(begin + rank, begin + micro_batches, world_size)

    def _submit(self) -> None:
        draw = next(self._draws, None)
        if draw is not None:
            self._coming.append(self._pool.submit(self._load, draw))

    def _load(self, draw: int) -> MicroBatch:
        source, index = self._mixture[draw]
        return MicroBatch(source, index, as_parts(self._sources[source].parts(index)))


def as_parts(batches: Sequence[Any]) -> tuple[SourceShare, ...]:
    """Batches of the model with their sizes."""
    return tuple(SourceShare(batch, int(batch.mask.sum()), batch.mask.numel()) for batch in batches)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device."""
    if device.type == "cpu":
        return batch
    tensors = {
        field.name: value.pin_memory().to(device, non_blocking=True)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **tensors)
