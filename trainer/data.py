"""From the dataset's Parquet files to batches.

Parquet is the published truth; for training it is laid out once as flat arrays on disk, one row per time step, that
are memory-mapped. A window is then a slice, a batch one gather, and nothing needs to fit in memory.

The order of batches is a pure function of (seed, step): a resumed run continues with exactly the batch it would have
had, and nothing about the loader has to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.files import digest_of, read_json, temporary_beside, write_json
from pipeline.manifest import DatasetManifest
from pipeline.schema import read_blocks, read_lengths
from pipeline.tasks import CONTINUOUS, DISCRETE, IMAGE, Task
from trainer.model import StepBatch

# Below this a dimension counts as constant (Meta-World's hidden goal, for one) and is only centred.
MIN_STD = 1e-3


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation of a task's continuous observations ``(size,)`` and of its rewards."""

    observation_mean: np.ndarray
    observation_std: np.ndarray
    reward_std: float

    def observations(self, values: np.ndarray) -> np.ndarray:
        return (values - self.observation_mean) / self.observation_std

    def rewards(self, values: np.ndarray) -> np.ndarray:
        return values / np.float32(self.reward_std)


@dataclass(frozen=True)
class TaskArrays:
    """One split of one task as memory-mapped arrays of S steps in E episodes.

    Attributes:
        observations: ``(S, *task.observation_shape)`` float32, int16 or uint8.
        actions: ``(S,)`` int64 or ``(S, size)`` float32.
        rewards: ``(S,)`` float32.
        starts: ``(E + 1,)`` int64; episode e is steps ``starts[e]`` to ``starts[e + 1]``.
        text_ids: ``(S,)`` int32 rows of ``texts``, or None.
        texts: the distinct mission texts.
    """

    task: Task
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    starts: np.ndarray
    text_ids: np.ndarray | None
    texts: list[str]

    @property
    def num_steps(self) -> int:
        return int(self.starts[-1])

    def normaliser(self) -> Normaliser | None:
        """Statistics of a continuous task, in one pass; None for other tasks."""
        if self.task.observation != CONTINUOUS:
            return None
        mean = self.observations.mean(axis=0, dtype=np.float64)
        std = self.observations.std(axis=0, dtype=np.float64)
        std[std < MIN_STD] = 1.0
        reward_std = float(self.rewards.std(dtype=np.float64))
        return Normaliser(mean.astype(np.float32), std.astype(np.float32), max(reward_std, MIN_STD))


def load_arrays(dataset: Path, task: Task, split: str, cache: Path) -> TaskArrays:
    """Arrays of a split, laid out below ``cache`` if they are not there yet.

    Raises:
        UserError: the dataset has no such task.
    """
    manifest = DatasetManifest.load(dataset / DatasetManifest.FILE_NAME)
    if task.name not in manifest.tasks:
        raise UserError(f"{task.name} is not in {dataset}; it has: {', '.join(manifest.tasks)}")
    entries = manifest.tasks[task.name].splits[split].data
    directory = cache / f"{task.name}-{split}-{digest_of([entry.sha256 for entry in entries])}"
    if not directory.exists():
        with temporary_beside(directory) as temporary:
            _lay_out(task, [dataset / entry.name for entry in entries], temporary)
            temporary.rename(directory)
    return TaskArrays(
        task=task,
        observations=np.load(directory / "observations.npy", mmap_mode="r"),
        actions=np.load(directory / "actions.npy", mmap_mode="r"),
        rewards=np.load(directory / "rewards.npy", mmap_mode="r"),
        starts=np.load(directory / "starts.npy"),
        text_ids=np.load(directory / "text_ids.npy", mmap_mode="r") if task.has_text else None,
        texts=read_json(directory / "texts.json"),
    )


def _lay_out(task: Task, files: Sequence[Path], temporary: Path) -> None:
    """Stream the files into ``.npy`` arrays in a new folder."""
    lengths = np.concatenate([read_lengths(file) for file in files])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    num_steps = int(starts[-1])
    temporary.mkdir()
    observation_type = {CONTINUOUS: np.float32, DISCRETE: np.int16, IMAGE: np.uint8}[task.observation]
    discrete = task.action.kind == "discrete"
    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        "observations": (observation_type, task.observation_shape),
        "actions": (np.int64 if discrete else np.float32, () if discrete else (task.action.size,)),
        "rewards": (np.float32, ()),
    }
    if task.has_text:
        layout["text_ids"] = (np.int32, ())
    arrays = {
        name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, (num_steps, *shape))
        for name, (dtype, shape) in layout.items()
    }
    known_texts: dict[str, int] = {}
    position = 0
    for file in files:
        for block in read_blocks(task, file):
            steps = slice(position, position + len(block.rewards))
            arrays["observations"][steps] = block.observations
            arrays["actions"][steps] = block.actions
            arrays["rewards"][steps] = block.rewards
            if block.texts is not None:
                encoded = block.texts.dictionary_encode()
                ids = [known_texts.setdefault(text, len(known_texts)) for text in encoded.dictionary.to_pylist()]
                arrays["text_ids"][steps] = np.array(ids, np.int32)[encoded.indices.to_numpy()]
            position = steps.stop
    for array in arrays.values():
        array.flush()
    np.save(temporary / "starts.npy", starts)
    write_json(temporary / "texts.json", list(known_texts))


class TaskBatches:
    """Batches of windows of one task, each with little padding.

    Episodes are cut into windows of at most ``context_steps``. In each epoch windows are shuffled, sorted by length
    (a stable sort, so equal lengths stay shuffled), cut into batches of at most ``batch_steps`` padded steps, and the
    batches shuffled. Neighbours in a batch then have nearly the same length.
    """

    def __init__(
        self,
        arrays: TaskArrays,
        tokens: np.ndarray | None,
        normaliser: Normaliser | None,
        context_steps: int,
        batch_steps: int,
        seed: Sequence[int],
    ) -> None:
        self._arrays, self._tokens, self._normaliser = arrays, tokens, normaliser
        self._batch_steps, self._seed = batch_steps, tuple(seed)
        self._starts, self._lengths = _windows(arrays.starts, context_steps)
        self._epoch = -1
        self._order: list[np.ndarray] = []
        self.num_batches = len(self._plan_epoch(0))

    def batch(self, index: int) -> StepBatch:
        """The ``index``-th batch of an endless sequence of epochs."""
        epoch, position = divmod(index, self.num_batches)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._plan_epoch(epoch)
        chosen = self._order[position]
        return self._gather(self._starts[chosen], self._lengths[chosen])

    def _plan_epoch(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((*self._seed, epoch))
        shuffled = generator.permutation(len(self._lengths))
        ordered = shuffled[np.argsort(self._lengths[shuffled], kind="stable")]
        # Taken from the longest end, a batch's width is known from its first window. The number of batches depends
        # on the sorted lengths alone, so it is the same in every epoch.
        batches = []
        end = len(ordered)
        while end > 0:
            count = max(1, self._batch_steps // int(self._lengths[ordered[end - 1]]))
            batches.append(ordered[max(0, end - count) : end])
            end -= count
        return [batches[i] for i in generator.permutation(len(batches))]

    def _gather(self, starts: np.ndarray, lengths: np.ndarray) -> StepBatch:
        arrays = self._arrays
        offsets = np.arange(int(lengths.max()))
        mask = offsets < lengths[:, None]
        # Padding repeats a window's last step; the mask keeps it out of the loss and causality out of the rest.
        steps = starts[:, None] + np.minimum(offsets, lengths[:, None] - 1)
        first = np.isin(starts, arrays.starts)[:, None] & (offsets == 0)
        rewards = np.where(first, 0.0, arrays.rewards[np.maximum(steps - 1, 0)]).astype(np.float32)
        observations = arrays.observations[steps]
        texts = None if arrays.text_ids is None else self._tokens[arrays.text_ids[steps]]  # type: ignore[index]
        return StepBatch(
            kind=arrays.task.observation,
            observations=torch.from_numpy(prepare_observations(arrays.task, observations, texts, self._normaliser)),
            previous_rewards=torch.from_numpy(prepare_rewards(rewards, self._normaliser)),
            actions=torch.from_numpy(arrays.actions[steps]),
            mask=torch.from_numpy(mask),
        )


def prepare_observations(
    task: Task, values: np.ndarray, tokens: np.ndarray | None, normaliser: Normaliser | None
) -> np.ndarray:
    """Stored or live observations ``(..., *shape)`` as the model takes them. One function for training and acting."""
    if task.observation == CONTINUOUS:
        return values if normaliser is None else normaliser.observations(values)
    if task.observation == DISCRETE:
        values = values.astype(np.int64)
        return values if tokens is None else np.concatenate([values, tokens], axis=-1)
    return np.moveaxis(values, -1, -3).astype(np.float32) / 127.5 - 1.0


def prepare_rewards(rewards: np.ndarray, normaliser: Normaliser | None) -> np.ndarray:
    return rewards if normaliser is None else normaliser.rewards(rewards)


def _windows(episode_starts: np.ndarray, context_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """First step and length of every window."""
    lengths = np.diff(episode_starts)
    counts = -(-lengths // context_steps)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(episode_starts[:-1], counts) + within * context_steps
    ends = np.minimum(starts + context_steps, np.repeat(episode_starts[1:], counts))
    return starts, ends - starts


class Mixture:
    """Which task's which batch comes at every step, drawn by sampling weight."""

    def __init__(self, weights: Sequence[float], num_draws: int, seed: int) -> None:
        probabilities = np.array(weights, np.float64) / np.sum(weights)
        self._tasks = np.random.default_rng((seed, 0)).choice(len(weights), num_draws, p=probabilities)
        # How often the drawn task was drawn before: the index of its next batch.
        self._indices = np.zeros(num_draws, np.int64)
        for task in range(len(weights)):
            drawn = self._tasks == task
            self._indices[drawn] = np.arange(drawn.sum())

    def __getitem__(self, draw: int) -> tuple[int, int]:
        """Task and batch index of the ``draw``-th batch."""
        return int(self._tasks[draw]), int(self._indices[draw])
