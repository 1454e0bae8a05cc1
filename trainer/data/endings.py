"""How episodes of a dataset end: what was observed after the last action, from the side tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError
from pipeline.storage.episode_rules import Problem
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.validate import read_side
from pipeline.text import format_count


@dataclass(frozen=True)
class Endings:
    """The ends of the episodes of a split.

    Attributes:
        final_observations: the observation after the last action, ``task.observation_shape``, by row of the episode.
        terminated: ``(E,)`` bool: the environment ended the episode, and no step limit did.
    """

    final_observations: dict[int, np.ndarray]
    terminated: np.ndarray


def load_endings(dataset: Path, manifest: DatasetManifest, task: Task, split: str, rows: np.ndarray) -> Endings:
    """Load the ends of a split's episodes.

    Args:
        dataset, manifest: the dataset.
        task, split: of the episodes.
        rows: the episodes whose final observations are wanted.

    Raises:
        UserError: a side table is damaged, or one of the episodes has no final observation.
    """
    dtype = {CONTINUOUS: np.float32, IMAGE: np.uint8}.get(task.observation, np.int64)
    wanted, finals, ended = set(rows.tolist()), dict[int, np.ndarray](), list[str]()
    size = int(np.prod(task.observation_shape))
    for entry in manifest.tasks[task.name].splits[split].episodes:
        side = read_side(dataset / entry.name, _refuse)
        assert side is not None  # _refuse raises
        accepted = side.filter(pc.is_valid(side["row"]))
        if "final_observation" in accepted.column_names:
            here = [row for row in range(len(accepted)) if len(ended) + row in wanted]
            for row, values in zip(here, accepted["final_observation"].take(here).to_numpy(), strict=True):
                if values is not None and len(values) == size:
                    finals[len(ended) + row] = values.astype(dtype).reshape(task.observation_shape)
        ended += accepted["ended"].to_pylist()
    if missing := sorted(wanted - finals.keys()):
        raise UserError(
            f"{format_count(len(missing), 'episode')} of {task.name}, {split}, such as row {missing[0]}, without a "
            "final observation (imported, or of an older version): collect again, or choose others with episodes="
        )
    return Endings(finals, np.array([how == "terminated" for how in ended], bool))


def _refuse(problem: Problem) -> None:
    raise UserError(f"{problem}; run `jat dataset validate` for all that is wrong with the dataset")
