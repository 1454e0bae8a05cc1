"""Batches from the dataset's arrays: a window is a slice of them, a batch is one gather.

The order of batches is a pure function of (seed, step): a resumed run continues with exactly the same batches, and the
loader has no state to save.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch

from pipeline.envs.task import CONTINUOUS, DISCRETE, Task
from trainer.batch import StepBatch
from trainer.data.arrays import Normaliser, TaskArrays

# A batch is split into the fewest parts (at most MAX_PARTS) with at most this share of padding; each part is a separate
# pass through the network.
GOOD_PADDING, MAX_PARTS = 0.02, 4


class BatchPlan:
    """Assigns windows to batches, in an endless sequence of epochs; batches have hardly any padding.

    In each epoch windows are shuffled, sorted by length (a stable sort, so equal lengths stay shuffled), cut into
    batches, and the batches are shuffled. Windows of a batch then have similar lengths; where they still differ, the
    batch is split into parts of different widths. Thread-safe.

    Args:
        lengths: ``(N,)`` lengths of the windows.
        batch_size: maximum size of a batch, including padding.
        seed: determines the order.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: Sequence[int]) -> None:
        self._lengths, self._seed = lengths, tuple(seed)
        # The sorted lengths are the same in every epoch, and so are the places to cut.
        self._cuts = plan_cuts(np.sort(lengths), batch_size)
        self.num_batches = len(self._cuts)
        # Two epochs are cached because threads may use both at an epoch's end.
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def parts(self, index: int) -> list[np.ndarray]:
        """Return the windows of each part of the ``index``-th batch."""
        epoch, position = divmod(index, self.num_batches)
        windows, batch_order = self._order(epoch)
        return [windows[begin:end] for begin, end in itertools.pairwise(self._cuts[batch_order[position]])]

    def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows sorted by length, shuffled among equal lengths, and the order of the batches in this
        epoch."""
        generator = np.random.default_rng((*self._seed, epoch))
        shuffled = generator.permutation(len(self._lengths))
        ordered = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        return ordered, generator.permutation(self.num_batches)


class TaskBatches:
    """Batches of windows of one task: its episodes, cut into windows of at most ``context_steps``.

    Args:
        arrays: the time steps.
        tokens: ``(len(arrays.texts), n)`` int64, for tasks with texts.
        normaliser: normaliser of observations and rewards, or None.
        context_steps: maximum length of a window.
        batch_steps: time steps per batch, including padding.
        seed: determines the order.
        task_index: index of the task in the network's list.
        episodes: rows of the episodes to take windows of; all if None.
        to_go: ``(S,)`` standardised return to go of each step. What earned it was executed, so labels are not learned.
    """

    def __init__(
        self,
        arrays: TaskArrays,
        tokens: np.ndarray | None,
        normaliser: Normaliser | None,
        context_steps: int,
        batch_steps: int,
        seed: Sequence[int],
        task_index: int = 0,
        episodes: np.ndarray | None = None,
        to_go: np.ndarray | None = None,
    ) -> None:
        self._arrays, self._tokens, self._normaliser = arrays, tokens, normaliser
        self._starts, self._lengths, self._begins = cut_windows(arrays.starts, context_steps)
        if episodes is not None:
            rows = np.searchsorted(arrays.starts, self._starts, side="right") - 1
            kept = np.isin(rows, episodes)
            self._starts, self._lengths, self._begins = (x[kept] for x in (self._starts, self._lengths, self._begins))
        self._to_go = to_go
        self._task_index = task_index
        self._plan = BatchPlan(self._lengths, batch_steps, seed)
        self.num_batches = self._plan.num_batches

    def parts(self, index: int) -> list[StepBatch]:
        """Return the ``index``-th batch of an endless sequence of epochs, in parts of different widths."""
        return [self._gather(windows) for windows in self._plan.parts(index)]

    def describe(self, index: int) -> str:
        """Describe a batch by task and rows of its episodes, for messages."""
        starts = self._starts[np.concatenate(self._plan.parts(index))]
        return f"{self._arrays.task.name}, episode rows {name_rows(self._arrays.starts, starts)}"

    def _gather(self, windows: np.ndarray) -> StepBatch:
        arrays = self._arrays
        steps, mask = pad_windows(self._starts[windows], self._lengths[windows])
        rewards = np.take(arrays.rewards, np.maximum(steps - 1, 0))
        rewards[self._begins[windows], 0] = 0.0
        observations = arrays.observations_at(steps)
        texts = None if arrays.text_ids is None else self._tokens[np.take(arrays.text_ids, steps)]  # type: ignore[index]
        learned = (None, None) if self._to_go is not None else (arrays.labels, arrays.labelled)
        labels, labelled = (None if x is None else np.take(x, steps, axis=0) for x in learned)
        return StepBatch(
            kind=arrays.task.observation,
            observations=torch.from_numpy(prepare_observations(arrays.task, observations, texts, self._normaliser)),
            previous_rewards=torch.from_numpy(prepare_rewards(rewards, self._normaliser)),
            actions=torch.from_numpy(np.take(arrays.actions, steps, axis=0)),
            mask=torch.from_numpy(mask),
            tasks=torch.full((len(windows),), self._task_index),
            labels=None if labels is None else torch.from_numpy(labels),
            labelled=None if labelled is None else torch.from_numpy(labelled & mask),
            to_go=None if self._to_go is None else torch.from_numpy(np.take(self._to_go, steps)),
        )


def name_rows(row_starts: np.ndarray, windows: np.ndarray, most: int = 20) -> str:
    """List the row numbers of windows given by their first steps: at most ``most``, and the count of the others."""
    rows = np.unique(np.searchsorted(row_starts, windows, side="right") - 1)
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, rows[:most].tolist())) + more


def plan_cuts(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return where to cut windows sorted by length into batches, and each batch into parts.

    Args:
        lengths: ``(N,)``, ascending.
        batch_size: maximum number of padded steps per batch; a longer window is a batch of its own.

    Returns:
        per batch the starts of its parts and its end, ``(parts + 1,)`` indices into ``lengths``.
    """
    total = np.concatenate([[0], np.cumsum(lengths)])
    batches = []
    end = len(lengths)
    while end > 0:
        # Begin with as many as would fit without padding, then remove windows until they fit with it. One window always
        # does.
        begin = min(end - 1, int(np.searchsorted(total, total[end] - batch_size)))
        while True:
            cuts = begin + _cut_into_parts(lengths[begin:end])
            padded = int((np.diff(cuts) * lengths[cuts[1:] - 1]).sum())
            if padded <= batch_size or end - begin == 1:
                break
            begin = end - max(1, min(end - begin - 1, (end - begin) * batch_size // padded))
        batches.append(cuts)
        end = begin
    return batches


def _cut_into_parts(lengths: np.ndarray) -> np.ndarray:
    """Return the fewest parts, at most ``MAX_PARTS``, with at most ``GOOD_PADDING`` padding, else the split with the
    least.

    ``best[j]`` is the smallest padded size of the windows up to the j-th distinct length with a given number of parts.
    """
    num_steps = int(lengths.sum())
    last = np.append(np.flatnonzero(np.diff(lengths)), len(lengths) - 1)  # the last window of each distinct length
    widths, ends = lengths[last], last + 1
    best = np.concatenate([[0], widths * ends])
    begins = [np.zeros(len(best), np.int64)]
    edges = np.concatenate([[0], ends])
    while best[-1] > num_steps / (1 - GOOD_PADDING) and len(begins) < MAX_PARTS:
        # sizes[i, j]: a last part from the i-th edge to the j-th, after the best split with one part fewer.
        sizes = best[:, None] + np.concatenate([[0], widths]) * (edges - edges[:, None])
        sizes[np.tril_indices(len(edges), -1)] = np.iinfo(np.int64).max
        begins.append(sizes.argmin(axis=0))
        best = sizes.min(axis=0)
    cuts, place = [len(lengths)], len(edges) - 1
    for begin in reversed(begins):
        place = int(begin[place])
        cuts.append(int(edges[place]))
    return np.unique(cuts)


def prepare_observations(
    task: Task, values: np.ndarray, tokens: np.ndarray | None, normaliser: Normaliser | None
) -> np.ndarray:
    """Convert stored or live observations ``(..., *shape)`` to model inputs. Training and acting share this
    function."""
    if task.observation == CONTINUOUS:
        values = values if normaliser is None else normaliser.observations(values)
        return values if tokens is None else np.concatenate([values, tokens.astype(np.float32)], axis=-1)
    if task.observation == DISCRETE:
        values = values.astype(np.int64)
        return values if tokens is None else np.concatenate([values, tokens], axis=-1)
    images = np.moveaxis(values, -1, -3).astype(np.float32) / 127.5 - 1.0
    return images if tokens is None else np.concatenate([images, text_plane(tokens, images.shape[-2:])], axis=-3)


def text_plane(tokens: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Lay text tokens ``(..., n)`` out as one more channel ``(..., 1, H, W)`` of an image, zeros behind them."""
    plane = np.zeros((*tokens.shape[:-1], shape[0] * shape[1]), np.float32)
    plane[..., : tokens.shape[-1]] = tokens
    return plane.reshape(*tokens.shape[:-1], 1, *shape)


def prepare_rewards(rewards: np.ndarray, normaliser: Normaliser | None) -> np.ndarray:
    return rewards if normaliser is None else normaliser.rewards(rewards)


def cut_windows(row_starts: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut rows (episodes or documents) into windows; return the first step and length of each, and whether it begins a
    row.

    Args:
        row_starts: ``(rows + 1,)``, as ``TaskArrays.starts``.
        longest: maximum number of steps of a window.
    """
    lengths = np.diff(row_starts)
    counts = -(-lengths // longest)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(row_starts[:-1], counts) + within * longest
    ends = np.minimum(starts + longest, np.repeat(row_starts[1:], counts))
    return starts, ends - starts, within == 0


def pad_windows(starts: np.ndarray, lengths: np.ndarray, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps of windows ``(B, T)``, and a mask of the real ones; T is ``width``, or the longest length.

    Padding repeats a window's last step; the mask excludes it from the loss, and causality from all real steps.
    """
    offsets = np.arange(int(lengths.max()) if width is None else width)
    return starts[:, None] + np.minimum(offsets, lengths[:, None] - 1), offsets < lengths[:, None]
