"""Windows of a dataset's episodes as a PyTorch dataset, for models of your own.

    from torch.utils.data import DataLoader
    from trainer.data import Windows

    windows = Windows("runs/demo/dataset", "babyai-open-door", length=64)
    for batch in DataLoader(windows, batch_size=32, shuffle=True):
        ...

Every item is a dict of tensors of fixed shapes, in all domains, so PyTorch's own ``DataLoader`` batches it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError
from pipeline.seeds import SPLITS
from pipeline.storage.manifest import DatasetManifest
from trainer.data.arrays import load_arrays
from trainer.data.batches import cut_windows, pad_windows
from trainer.data.endings import load_endings

CACHE = ".arrays"  # folder beside the dataset with its episodes as memory-mapped arrays


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Windows of at most ``length`` steps of one task's episodes, padded to ``length``.

    An item has, for L = ``length`` steps:

    - ``observations``: ``(L, size)`` float32 or int64, or ``(L, 4, 84, 84)`` uint8 images, the newest frame last
    - ``actions``: ``(L, size)`` float32 or ``(L,)`` int64
    - ``labels`` and ``labelled``, in tasks with labels: as ``actions``, what an expert would have done, and ``(L,)``
      bool, whether it could say; the executed actions in episodes without labels
    - ``rewards``: ``(L,)`` float32; ``rewards[t]`` is what ``actions[t]`` earned
    - ``mask``: ``(L,)`` bool, false for the padding at the end, which repeats the last step
    - with ``next_observations``: ``next_observations`` as ``observations``, what each action led to, the final
      observation of the episode included; and ``terminations``: ``(L,)`` bool, true where the action ended the episode,
      so nothing follows. At a step limit it is false, and the value of the final observation counts
    - ``episode``: row of the episode in its split, as in ``load_dataset(dataset, task)[split]``
    - ``first``: step of the episode at which the window begins
    - ``texts``, in tasks with missions: ``(L,)`` int64 indices into ``windows.texts``

    Args:
        dataset: folder of the dataset.
        task: name of a task, or the task itself.
        split: ``train`` or ``test``.
        length: steps of a window; episodes are cut at its multiples.
        episodes: rows of the episodes to use, such as the successful ones; None: all.
        cache: folder for the episodes as memory-mapped arrays, written once; ``.arrays`` beside the dataset if None.
        next_observations: whether items have what temporal-difference learning wants.

    Raises:
        UserError: there is no such dataset, task, split or episode, or nothing to cut windows from; or an episode has
            no final observation and ``next_observations`` is true.
    """

    def __init__(
        self,
        dataset: str | Path,
        task: str | Task,
        split: str = "train",
        length: int = 64,
        episodes: Collection[int] | None = None,
        cache: str | Path | None = None,
        next_observations: bool = False,
    ) -> None:
        folder = Path(dataset)
        self.task = _one_task(task)
        self.length = length
        if length < 1:
            raise UserError(f"length is {length}; it must be at least 1")
        if split not in SPLITS:
            raise UserError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        path = folder / DatasetManifest.FILE_NAME
        if not path.exists():
            raise UserError(f"{folder} is no dataset: it has no {path.name}; name a folder made by `jat dataset`")
        manifest = DatasetManifest.load(path)
        self._arrays = load_arrays(folder, manifest, self.task, split, Path(cache) if cache else folder.parent / CACHE)
        starts, lengths, _ = cut_windows(self._arrays.starts, length)
        rows = np.searchsorted(self._arrays.starts, starts, side="right") - 1
        if episodes is not None:
            chosen = np.array([] if len(episodes) == 0 else list(episodes))
            num_episodes = len(self._arrays.starts) - 1
            outside = [value for value in chosen.tolist() if not _is_row(value, num_episodes)]
            if outside:
                raise UserError(f"episodes has {outside[0]}; the rows of {self.task.name}, {split}, are 0 to "
                                f"{num_episodes - 1}; of a mask, give np.flatnonzero")  # fmt: skip
            is_kept = np.isin(rows, chosen)
            starts, lengths, rows = starts[is_kept], lengths[is_kept], rows[is_kept]
        if not len(starts):
            raise UserError(f"no episode of {self.task.name}, {split}, is left to cut windows from")
        self._starts, self._lengths, self._rows = starts, lengths, rows
        self._endings = load_endings(folder, manifest, self.task, split, np.unique(rows)) if next_observations else None

    @property
    def texts(self) -> list[str]:
        """The distinct mission texts; empty for a task without missions."""
        return self._arrays.texts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        arrays = self._arrays
        (steps,), (mask,) = pad_windows(self._starts[[index]], self._lengths[[index]], self.length)
        item = {
            "observations": self._tensor(arrays.observations_at(steps)),
            "actions": torch.from_numpy(np.take(arrays.actions, steps, axis=0)),
            "rewards": torch.from_numpy(np.take(arrays.rewards, steps)),
            "mask": torch.from_numpy(mask),
            "episode": torch.tensor(int(self._rows[index])),
            "first": torch.tensor(int(self._starts[index] - arrays.starts[self._rows[index]])),
        }
        if arrays.labels is not None and arrays.labelled is not None:
            item["labels"] = torch.from_numpy(np.take(arrays.labels, steps, axis=0))
            item["labelled"] = torch.from_numpy(np.take(arrays.labelled, steps) & mask)
        if arrays.text_ids is not None:
            item["texts"] = torch.from_numpy(np.take(arrays.text_ids, steps).astype(np.int64))
        if self._endings is not None:
            row = int(self._rows[index])
            is_last = steps == arrays.starts[row + 1] - 1
            following = arrays.observations_at(steps + ~is_last)
            following[is_last] = self._endings.final_observations[row]
            item["next_observations"] = self._tensor(following)
            item["terminations"] = torch.from_numpy(is_last & self._endings.terminated[row])
        return item

    def _tensor(self, observations: np.ndarray) -> torch.Tensor:
        if self.task.observation == IMAGE:
            observations = np.ascontiguousarray(np.moveaxis(observations, -1, -3))
        elif self.task.observation != CONTINUOUS:
            observations = observations.astype(np.int64)
        return torch.from_numpy(observations)


def _is_row(value: object, num_episodes: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < num_episodes


def _one_task(task: str | Task) -> Task:
    if isinstance(task, Task):
        return task
    found = select_tasks(task)
    if len(found) > 1:
        raise UserError(f"{task!r} matches {len(found)} tasks; name one, such as {found[0].name}")
    return found[0]
