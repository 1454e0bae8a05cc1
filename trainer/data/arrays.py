"""The dataset's Parquet files converted to memory-mapped arrays, one row per time step.

Parquet is the published format; for training it is converted once, in a cache folder named by its content, and
memory-mapped. A window of an episode is then a slice, and the data need not fit in memory. Images are decoded once
during the conversion, and each frame of their frame stacks is stored once.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.envs.episode import is_labelled
from pipeline.envs.frames import CHANNELS
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Task
from pipeline.errors import UserError
from pipeline.files import digest_of, rename_unless_exists, temporary_beside, write_json
from pipeline.records import read_values
from pipeline.seeds import SPLITS
from pipeline.storage.manifest import DatasetManifest, FileEntry
from pipeline.storage.schema import EpisodeBlock, label_column, read_blocks, read_lengths
from pipeline.storage.statistics import load_statistics

LABELS = ("labels", "labelled")  # arrays of tasks with labels only
LAYOUT_VERSION = 2  # format version of the arrays; other versions are converted again

# A dimension with a smaller standard deviation counts as constant (such as Meta-World's hidden goal) and is only
# centred.
MIN_STD = 1e-3


@dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation of a task's continuous observations ``(size,)`` and standard deviation of its
    rewards.

    Also holds those of n tasks, one per row of the normalised values: ``(n, size)`` and ``(n,)``.
    """

    observation_mean: np.ndarray
    observation_std: np.ndarray
    reward_std: float | np.ndarray

    def observations(self, values: np.ndarray) -> np.ndarray:
        return (values - self.observation_mean) / self.observation_std

    def rewards(self, values: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = values / np.asarray(self.reward_std, np.float32)
        return scaled

    @staticmethod
    def of_rows(normalisers: Sequence[Normaliser]) -> Normaliser:
        """Stack the normalisers of n tasks into one."""
        return Normaliser(
            np.stack([n.observation_mean for n in normalisers]),
            np.stack([n.observation_std for n in normalisers]),
            np.array([n.reward_std for n in normalisers], np.float32),
        )


@dataclass(frozen=True)
class TaskArrays:
    """One split of one task as memory-mapped arrays of S steps in E episodes.

    Attributes:
        observations: ``(S, *task.observation_shape)`` float32 or int16; for images ``(F, H, W)`` uint8 frames.
        actions: ``(S,)`` int64 or ``(S, size)`` float32.
        rewards: ``(S,)`` float32.
        starts: ``(E + 1,)`` int64; episode e is steps ``starts[e]`` to ``starts[e + 1]``.
        text_ids: ``(S,)`` int32 rows of ``texts``, or None.
        texts: the distinct mission texts.
        last_frames: for images ``(S,)`` int64: the frame stack of a step is this frame and the three before it; else
            None.
        labels: as ``actions``: the expert's label of each step, the executed action in episodes without labels. None if
            no episode has labels.
        labelled: ``(S,)`` bool: whether to learn ``labels``; False where the expert had no label. None likewise.
    """

    task: Task
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    starts: np.ndarray
    text_ids: np.ndarray | None
    texts: list[str]
    last_frames: np.ndarray | None = None
    labels: np.ndarray | None = None
    labelled: np.ndarray | None = None

    @property
    def num_steps(self) -> int:
        return int(self.starts[-1])

    def observations_at(self, steps: np.ndarray) -> np.ndarray:
        """Return observations ``(*steps.shape, *task.observation_shape)``; image channels are not contiguous in
        memory."""
        if self.last_frames is None:
            return np.take(self.observations, steps, axis=0)
        frames = np.take(self.last_frames, steps)[..., None] + np.arange(1 - CHANNELS, 1)
        return np.moveaxis(np.take(self.observations, frames, axis=0), -3, -1)


def load_normaliser(dataset: Path, task: Task) -> Normaliser | None:
    """Load the normaliser from the statistics of a continuous task's training episodes; None for other tasks.

    Raises:
        UserError: the dataset has no statistics of the task, or no training episode.
    """
    if task.observation != CONTINUOUS:
        return None
    train = load_statistics(dataset, task).splits["train"]
    if not train.num_steps:
        raise UserError(f"{task.name} has no training episode in {dataset}; leave it out, or collect some and build it")
    std = np.array(train.observations.std)
    std[std < MIN_STD] = 1.0
    mean = np.array(train.observations.mean, np.float32)
    return Normaliser(mean, std.astype(np.float32), max(train.rewards.std[0], MIN_STD))


def lay_out_images(dataset: Path, tasks: Sequence[Task], cache: Path, processes: int) -> None:
    """Convert the image tasks that are not cached yet, in parallel processes, because decoding takes long."""
    manifest = DatasetManifest.load(dataset / DatasetManifest.FILE_NAME)
    images = [task for task in tasks if task.observation == IMAGE]
    jobs = [(dataset, manifest, task, split, cache) for task in images for split in SPLITS]
    jobs = [job for job in jobs if not _directory(*job).exists()]
    if not jobs:
        return
    with ProcessPoolExecutor(min(processes, len(jobs)), multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(load_arrays, *job) for job in jobs]:
            future.result()


def load_arrays(dataset: Path, manifest: DatasetManifest, task: Task, split: str, cache: Path) -> TaskArrays:
    """Return the arrays of a split, converting them into ``cache`` if they are not there yet.

    Args:
        dataset: the dataset directory.
        manifest: manifest of the dataset; passed in because reading a large one takes milliseconds, and this function
            is called for every task.
        task, split: what to load.
        cache: folder of the converted arrays.

    Raises:
        UserError: the dataset has no such task.
    """
    directory = _directory(dataset, manifest, task, split, cache)
    if not directory.exists():
        with temporary_beside(directory) as temporary:
            _lay_out(task, [dataset / entry.name for entry in _entries(dataset, manifest, task, split)], temporary)
            rename_unless_exists(temporary, directory)  # several workers may convert the same files concurrently
    is_image = task.observation == IMAGE
    return TaskArrays(
        task=task,
        observations=_open_frames(directory, task) if is_image else _open(directory, "observations"),
        actions=_open(directory, "actions"),
        rewards=_open(directory, "rewards"),
        starts=np.load(directory / "starts.npy"),
        text_ids=_open(directory, "text_ids") if task.has_text else None,
        texts=read_values(directory / "texts.json", list[str], "the texts of a task", f"remove {directory}"),
        last_frames=_open(directory, "last_frames") if is_image else None,
        **{name: _open(directory, name) for name in LABELS if (directory / f"{name}.npy").exists()},
    )


def _directory(dataset: Path, manifest: DatasetManifest, task: Task, split: str, cache: Path) -> Path:
    digest = digest_of([LAYOUT_VERSION, [entry.sha256 for entry in _entries(dataset, manifest, task, split)]])
    return cache / f"{task.name}-{split}-{digest}"


def _entries(dataset: Path, manifest: DatasetManifest, task: Task, split: str) -> Sequence[FileEntry]:
    if task.name not in manifest.tasks:
        raise UserError(f"{task.name} is not in {dataset}; it has: {', '.join(manifest.tasks)}")
    return manifest.tasks[task.name].splits[split].data


def _open(directory: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r"))


def _open_frames(directory: Path, task: Task) -> np.ndarray:
    path, shape = directory / "frames.bin", task.observation_shape[:2]
    if not path.stat().st_size:  # a split without episodes; an empty file cannot be mapped
        return np.empty((0, *shape), np.uint8)
    return np.asarray(np.memmap(path, np.uint8, "r")).reshape(-1, *shape)


def _lay_out(task: Task, files: Sequence[Path], temporary: Path) -> None:
    """Stream the files into ``.npy`` arrays in a new folder."""
    lengths = np.concatenate([read_lengths(file) for file in files])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    num_steps = int(starts[-1])
    temporary.mkdir()
    discrete = task.action.kind == "discrete"
    layout: dict[str, tuple[Any, tuple[int, ...]]] = {
        "actions": (np.int64 if discrete else np.float32, () if discrete else (task.action.size,)),
        "rewards": (np.float32, ()),
    }
    if task.observation == IMAGE:
        layout["last_frames"] = (np.int64, ())
    else:
        layout["observations"] = (
            {CONTINUOUS: np.float32, DISCRETE: np.int16}[task.observation],
            task.observation_shape,
        )
    if task.has_text:
        layout["text_ids"] = (np.int32, ())
    if any(label_column(task) in pq.read_schema(file).names for file in files):
        layout |= {"labels": layout["actions"], "labelled": (np.bool_, ())}
    arrays = {
        name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, (num_steps, *shape))
        for name, (dtype, shape) in layout.items()
    }
    if task.observation == IMAGE:
        (temporary / "frames.bin").touch()
    known_texts: dict[str, int] = {}
    position = 0
    for file in files:
        for block in read_blocks(task, file):
            if not len(block.rewards):
                continue
            steps = slice(position, position + len(block.rewards))
            if task.observation == IMAGE:
                arrays["last_frames"][steps] = _append_frames(temporary / "frames.bin", block.observations)
            else:
                arrays["observations"][steps] = block.observations
            arrays["actions"][steps] = block.actions
            arrays["rewards"][steps] = block.rewards
            if "labels" in arrays:
                arrays["labels"][steps], arrays["labelled"][steps] = _targets(block)
            if block.texts is not None:
                encoded = block.texts.dictionary_encode()
                ids = [known_texts.setdefault(text, len(known_texts)) for text in encoded.dictionary.to_pylist()]
                arrays["text_ids"][steps] = np.array(ids, np.int32)[encoded.indices.to_numpy()]
            position = steps.stop
    for array in arrays.values():
        array.flush()
    np.save(temporary / "starts.npy", starts)
    write_json(temporary / "texts.json", list(known_texts))


def _targets(block: EpisodeBlock) -> tuple[np.ndarray, np.ndarray]:
    """What to learn at each step, and whether; steps without a label hold the executed action, which is finite."""
    if block.labels is None:
        return block.actions, np.ones(len(block.actions), bool)
    known = is_labelled(block.labels)
    return np.where(known if known.ndim == block.labels.ndim else known[:, None], block.labels, block.actions), known


def _append_frames(path: Path, stacks: np.ndarray) -> np.ndarray:
    """Append the frames of ``(T, H, W, 4)`` stacks, storing frames shared by consecutive stacks once; return the index
    of the last frame of each stack."""
    planes = np.moveaxis(stacks, -1, 1)
    goes_on = np.zeros(len(planes), bool)
    goes_on[1:] = [np.array_equal(old[1:], new[:-1]) for old, new in itertools.pairwise(planes)]
    with path.open("ab") as handle:
        before = handle.tell() // planes[0, 0].size if len(planes) else 0
        for follows, plane in zip(goes_on, planes, strict=True):
            handle.write(np.ascontiguousarray(plane[-1:] if follows else plane).data)
    last: np.ndarray = before + np.cumsum(np.where(goes_on, 1, CHANNELS)) - 1
    return last
