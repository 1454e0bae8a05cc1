"""Write Minari datasets: ``jat/<task>/train-v0`` and ``test-v0`` in a folder that Minari takes as its own.

Episodes have T + 1 observations, the last one from the side table. Images are stored without loss. Seed, expert, return
and success are metadata of each episode.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from collectors.dataset.exporting.episodes import Batch, count_episodes, read_batches
from collectors.dataset.importing.minari import DIRECTION, ENVIRONMENT, MISSION, VIEW
from collectors.dataset.layout import CARD
from collectors.dataset.surgery.source import Source
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError, how_to_install
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS

NAMESPACE = "jat"
TEXT = """---
license: apache-2.0
tags: [minari]
---

Episodes of {tasks} as Minari datasets, written by `jat dataset export --format minari`.

```python
import os

os.environ["MINARI_DATASETS_PATH"] = "the folder"
import minari

dataset = minari.load_dataset("jat/TASK/train-v0")
```
"""
GRID = (7, 7, 3)  # BabyAI's view; an observation is the direction, then this
METADATA = ("expert", "expert_revision", "return", "success", "ended", "noise", "versions", "flagged")


def check_minari(source: Source, tasks: Sequence[Task]) -> None:
    """Check that Minari's format can hold the episodes.

    Raises:
        UserError: Minari is not installed, a task has no space there, or episodes lack the observation after the last
            action.
    """
    try:
        import h5py  # noqa: F401
        import minari  # noqa: F401
    except ImportError as error:
        fix = how_to_install("minari", "setup-dev")
        raise UserError(f"--format minari needs a package that is missing ({error}); run {fix}") from error
    for task in tasks:
        if task.observation not in (CONTINUOUS, IMAGE) and task.observation_shape != (1 + int(np.prod(GRID)),):
            raise UserError(f"{task.name} has observations of {task.observation_shape}, no grid that Minari knows")
        missing, count = 0, 0
        for split in SPLITS:
            for piece in source.pieces(task, split):
                accepted = piece.side.filter(piece.side["row"].is_valid())
                has_final = "final_observation" in accepted.column_names
                missing += accepted["final_observation"].null_count if has_final else len(accepted)
                count += len(accepted)
        if missing:
            raise UserError(
                f"{missing} of {count} episodes of {task.name} have no observation after the last action, which Minari "
                f"wants (older versions did not keep it): collect them again, or export with --format lerobot"
            )


def write_minari(target: Path, source: Source, tasks: Sequence[Task]) -> None:
    """Write two datasets per task, one for each split with episodes.

    Args:
        target: folder to write to, for ``MINARI_DATASETS_PATH``.
        source: the dataset.
        tasks: the tasks, checked by ``check_minari``.

    Raises:
        UserError: a file of the dataset is damaged.
    """
    import minari
    from minari.dataset.minari_storage import MinariStorage

    storages: dict[tuple[str, str], Any] = {}
    progress = Progress("episodes exported", count_episodes(source, tasks))
    for batch in read_batches(source, tasks):
        key = batch.task.name, batch.split
        if key not in storages:
            name = f"{NAMESPACE}/{batch.task.name}/{batch.split}-v0"
            folder = target / name / "data"
            folder.mkdir(parents=True)
            storages[key] = MinariStorage.new(
                folder,
                _observation_space(batch.task),
                _action_space(batch.task),
                data_format="hdf5",
                jpeg_encoding=False,
            )
            storages[key].update_metadata(_metadata(batch.task, name, minari.__version__, source))
        storage = storages[key]
        first = storage.total_episodes
        storage.update_episodes(_buffers(batch))
        said = [{n: side[n] for n in METADATA if side.get(n) is not None} for side in batch.rows]
        storage.update_episode_metadata(said, range(first, first + len(said)))
        progress.advance(len(said))

    named = ", ".join(f"`{task.name}`" for task in tasks)
    (target / CARD).write_text(TEXT.format(tasks=named), encoding="utf-8")


def _metadata(task: Task, name: str, version: str, source: Source) -> dict[str, Any]:
    info = source.manifest.tasks[task.name]
    found = {
        "dataset_id": name,
        "minari_version": version,
        "algorithm_name": info.expert,
        "description": f"Episodes of {task.name} ({task.env_id}), written by `jat dataset export --format minari`.",
        ENVIRONMENT: task.env_id,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task.env_id in gym.registry:
            found["env_spec"] = gym.spec(task.env_id).to_json()
    return found


def _observation_space(task: Task) -> gym.Space[Any]:
    if task.observation == IMAGE:
        return gym.spaces.Box(0, 255, task.observation_shape, np.uint8)
    if task.observation == CONTINUOUS:
        return gym.spaces.Box(-np.inf, np.inf, task.observation_shape, np.float32)
    spaces: dict[str, gym.Space[Any]] = {
        DIRECTION: gym.spaces.Discrete(4),
        VIEW: gym.spaces.Box(0, 255, GRID, np.uint8),
        MISSION: gym.spaces.Text(1000),
    }
    return gym.spaces.Dict(spaces)


def _action_space(task: Task) -> gym.Space[Any]:
    action = task.action
    if action.kind == "discrete":
        return gym.spaces.Discrete(action.size)
    return gym.spaces.Box(action.low, action.high, (action.size,), np.float32)


def _buffers(batch: Batch) -> Iterator[Any]:
    """The episodes as Minari's buffers, with T + 1 observations."""
    from minari.data_collector import EpisodeBuffer

    task, ends = batch.task, np.cumsum(batch.steps.lengths)
    for end, length, side in zip(ends.tolist(), batch.steps.lengths.tolist(), batch.rows, strict=True):
        steps = slice(end - length, end)
        observations = batch.steps.observations[steps]
        final = np.array(side["final_observation"], np.float32).astype(observations.dtype)
        values = np.concatenate([observations, final.reshape(1, *task.observation_shape)])
        texts = None if batch.steps.texts is None else batch.steps.texts.slice(end - length, length).to_pylist()
        last = np.arange(length) == length - 1
        yield EpisodeBuffer(
            seed=side["seed"],
            observations=_nested(values, texts),
            actions=batch.steps.actions[steps],
            rewards=batch.steps.rewards[steps],
            terminations=last & (side["ended"] == "terminated"),
            truncations=last & (side["ended"] == "truncated"),
        )


def _nested(values: np.ndarray, texts: list[str] | None) -> Any:
    """Observations as Minari's space has them; the mission after the last action is that before it."""
    if texts is None:
        return values
    view = values[:, 1:].reshape(-1, *GRID).astype(np.uint8)
    return {DIRECTION: values[:, 0], VIEW: view, MISSION: [*texts, texts[-1]]}
