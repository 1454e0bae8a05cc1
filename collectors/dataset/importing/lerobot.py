"""Read a LeRobotDataset v3 as episodes, from a folder or the Hub.

The files are found by the standard names of the format; no path in the files is followed. Datasets that ``jat dataset
export`` wrote say of every episode its task, split and outcome (columns ``jat/...``). Of others, an episode is of a
task if the text of its task is the task's name, or all are where there is only one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.dataset.importing.rows import Ended, episode_of_row, opened
from collectors.documents.sources import tail_digest
from pipeline.envs.episode import Episode
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError, first_line
from pipeline.files import digest_of
from pipeline.foreign import MIB, check_file
from pipeline.runtime.heartbeat import WORKER_PROGRESS
from pipeline.storage.observations import observation_column
from pipeline.storage.parquet_limits import MAX_STEPS, check_limits
from pipeline.storage.schema import REWARDS, TEXTS, action_column

INFO = "meta/info.json"  # present in every LeRobot dataset
TASKS = "meta/tasks.parquet"
PREFIX = "jat/"
STATES = ("observation.state", "observation.environment_state", "observation")
ACTION, REWARD_NAMES = "action", ("next.reward", "reward")
MAX_INFO_BYTES = 16 * MIB
MAX_FILES = 10**6
PLACE = ("episode_index", "tasks", "length", "data/chunk_index", "data/file_index")
OURS = ("task", "split", "environment", "success", "ended", "final_observation")


@dataclass(frozen=True)
class StoredPlace:
    """Where an episode is, and what its dataset says of it.

    Attributes:
        file: path of its data file in the dataset.
        index: its ``episode_index``.
        length: number of steps.
        said: values of the columns ``jat/...``; empty for datasets of others.
    """

    file: str
    index: int
    length: int
    said: Mapping[str, Any]


@dataclass(frozen=True)
class LeRobotEpisodes:
    """The episodes of a task by split; without splits all are ``train``.

    Attributes:
        episodes: where they are, by split.
        has_splits: whether the dataset says of what split an episode is.
        environment: the id that it was collected in, if the dataset says so.
        tasks: names of all tasks of the dataset.
        columns: by JAT's columns of the task, those of the dataset.
    """

    episodes: Mapping[str, tuple[StoredPlace, ...]]
    has_splits: bool
    environment: str | None
    tasks: tuple[str, ...]
    columns: Mapping[str, str]


def folder_digest(folder: Path) -> str:
    """Identifies the content of a dataset in a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return digest_of([(str(p.relative_to(folder)), p.stat().st_size, tail_digest(p)) for p in paths])


def open_lerobot(root: str, task: Task) -> LeRobotEpisodes:
    """Find the episodes of a task.

    Args:
        root: a folder, or ``hf://datasets/owner/name@commit``.
        task: the task.

    Raises:
        UserError: the dataset cannot be read, is of another version, or its columns do not fit the task.
    """
    info = _read_info(root)
    _check_features(root, info["features"], task)
    tables = list(_episode_tables(root))
    rows = [row for table in tables for row in table.to_pylist()]
    has_splits = bool(tables) and PREFIX + "split" in tables[0].column_names
    names = tuple(dict.fromkeys(row.get(PREFIX + "task") or " / ".join(row["tasks"] or ()) for row in rows))
    found: dict[str, list[StoredPlace]] = {"train": [], "test": []}
    environment = None
    for row in rows:
        name = row.get(PREFIX + "task")
        if task.name not in (name, *(row["tasks"] or ())) and (name is not None or len(names) > 1):
            continue
        split = row.get(PREFIX + "split")
        environment = environment or row.get(PREFIX + "environment")
        found["test" if split == "test" else "train"].append(_place(root, row))
    episodes = {split: tuple(places) for split, places in found.items()}
    columns = {jat: name for jat, name in _columns(info["features"], task).items() if name}
    return LeRobotEpisodes(episodes, has_splits, environment, names, columns)


def _read_info(root: str) -> dict[str, Any]:
    import fsspec

    if "://" not in root:
        check_file(Path(root) / INFO, MAX_INFO_BYTES, Path(root))
    with fsspec.open(f"{root}/{INFO}", "rb") as handle:
        text = handle.read(MAX_INFO_BYTES)
    try:
        info = json.loads(text)
        version = str(info["codebase_version"])[:20]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{root}/{INFO} cannot be understood ({first_line(error)})") from error
    if not version.startswith("v3."):
        raise UserError(
            f"{root} is a LeRobot dataset of version {version!r}; v3 is read: convert it with lerobot's "
            f"convert_dataset_v21_to_v30"
        )
    features = info.get("features")
    sound = isinstance(features, dict) and all(
        isinstance(f, dict) and isinstance(f.get("dtype"), str) and isinstance(f.get("shape"), list)
        for f in features.values()
    )
    if not sound:
        raise UserError(f"{root}/{INFO} cannot be understood: its features have no dtype and shape")
    return dict(info)


def _columns(features: Mapping[str, Any], task: Task) -> dict[str, str | None]:
    """LeRobot's columns by JAT's; None where there is none that fits."""
    if task.observation == IMAGE:
        images = [name for name in features if name.startswith("observation.image")]
        images = [name for name in images if features[name]["dtype"] == "image"]  # videos are not exact
        observation = next((name for name in images if _shape(features[name]) == task.observation_shape), None)
    else:
        fitting = [name for name in STATES if name in features and _shape(features[name]) == task.observation_shape]
        observation = next(iter(fitting), None)
    size = 1 if task.action.kind == "discrete" else task.action.size
    action = ACTION if ACTION in features and _shape(features[ACTION]) == (size,) else None
    reward = next((name for name in REWARD_NAMES if name in features), None)
    return {observation_column(task): observation, action_column(task): action, REWARDS: reward}


def _shape(feature: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(feature["shape"])


def _check_features(root: str, features: Mapping[str, Any], task: Task) -> None:
    missing = [name for name, column in _columns(features, task).items() if column is None]
    if missing:
        there = ", ".join(f"{name} {f['dtype']} {tuple(f['shape'])}" for name, f in list(features.items())[:12])
        raise UserError(
            f"{root} has no column for {', '.join(missing)} of {task.name} (observations {task.observation_shape}, "
            f"{task.action.size} {'choices' if task.action.kind == 'discrete' else 'numbers'} per action, a reward); "
            f"it has {there}"
        )


def _list(root: str, folder: str) -> list[str]:
    """Parquet files of a folder of the dataset, as paths in it."""
    import fsspec

    files, path = fsspec.core.url_to_fs(root)
    found = sorted(files.glob(f"{path}/{folder}/chunk-*/file-*.parquet"))
    return [name[len(path) + 1 :] for name in found]


def _episode_tables(root: str) -> Iterator[pa.Table]:
    for name in _list(root, "meta/episodes"):
        with opened(f"{root}/{name}") as (parquet, _):
            wanted = (*PLACE, *(PREFIX + column for column in OURS))
            there = [column for column in wanted if column in parquet.schema_arrow.names]
            absent = [column for column in PLACE if column not in there]
            if absent:
                raise UserError(f"{root}/{name} has no column {absent[0]}; it is not of a LeRobot dataset v3")
            yield parquet.read(columns=there)


def _place(root: str, row: Mapping[str, Any]) -> StoredPlace:
    numbers = [row[name] for name in ("episode_index", "length", "data/chunk_index", "data/file_index")]
    limits = (10**9, MAX_STEPS, MAX_FILES, MAX_FILES)
    if not all(isinstance(n, int) and 0 <= n < limit for n, limit in zip(numbers, limits, strict=True)):
        raise UserError(f"{root}: an episode has no valid place: {str(numbers)[:100]}")
    index, length, chunk, file = numbers
    said = {name: row[PREFIX + name] for name in OURS if row.get(PREFIX + name) is not None}
    return StoredPlace(f"data/chunk-{chunk:03d}/file-{file:03d}.parquet", index, length, said)


@dataclass(frozen=True)
class LeRobotRows:
    """Episodes of a LeRobot dataset, see ``Rows``."""

    root: str
    episodes: tuple[StoredPlace, ...]
    columns: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        return len(self.episodes)

    def read(self, task: Task, first: int, count: int) -> Iterator[Episode]:
        """See ``Rows``.

        Raises:
            UserError: a file cannot be read, or does not have the steps that ``meta/episodes`` says.
        """
        wanted = self.episodes[first : first + count]
        texts = _read_tasks(self.root) if task.has_text else None
        number = first
        for file in dict.fromkeys(place.file for place in wanted):
            of_file = [place for place in wanted if place.file == file]
            for place, steps in zip(of_file, _steps_of(self.root, file, of_file, self.columns, texts), strict=True):
                WORKER_PROGRESS.beats += 1
                yield _restored(task, place, episode_of_row(task, number, steps))
                number += 1


def _steps_of(
    root: str, file: str, places: list[StoredPlace], columns: Mapping[str, str], texts: list[str] | None
) -> Iterator[dict[str, pa.Array | None]]:
    """The steps of some episodes of a file, which has them in the order of their indices, by JAT's columns."""
    waiting = {place.index: place for place in places}
    last = max(waiting)
    held: dict[int, list[pa.Table]] = {}
    order = [place.index for place in places]
    with opened(f"{root}/{file}") as (parquet, _):
        check_limits(parquet.metadata)
        names = ["episode_index", *columns.values(), *(["task_index"] if texts is not None else [])]
        for group in range(parquet.num_row_groups):
            indices = parquet.read_row_group(group, columns=["episode_index"])["episode_index"].to_numpy()
            here = [index for index in np.unique(indices).tolist() if index in waiting]
            if here:
                table = parquet.read_row_group(group, columns=names)
                for index in here:
                    held.setdefault(index, []).append(table.filter(pc.equal(table["episode_index"], index)))
            is_over = bool(len(indices)) and int(indices.max()) >= last
            while order and order[0] in held and sum(map(len, held[order[0]])) >= waiting[order[0]].length:
                index = order.pop(0)
                yield _row(pa.concat_tables(held.pop(index)), columns, texts)
            if is_over and not order:
                return
    if order:
        found = sum(map(len, held.get(order[0], ())))
        raise UserError(
            f"{root}/{file}: episode {order[0]} has {found} steps, {waiting[order[0]].length} by meta/episodes"
        )


def _row(table: pa.Table, columns: Mapping[str, str], texts: list[str] | None) -> dict[str, pa.Array | None]:
    row: dict[str, pa.Array | None] = {jat: _as_array(table[name]) for jat, name in columns.items()}
    if texts is not None:
        indices = table["task_index"].to_numpy()
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(texts):
            raise UserError(f"task_index {indices.max()}, and {TASKS} has {len(texts)} tasks")
        row[TEXTS] = pa.array([texts[index] for index in indices], pa.string())
    return row


def _as_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _read_tasks(root: str) -> list[str]:
    """The texts of the tasks in the order of their indices."""
    with opened(f"{root}/{TASKS}") as (parquet, _):
        table = parquet.read()
    names = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or not names:
        raise UserError(
            f"{root}/{TASKS} has the columns {', '.join(table.column_names)}; expected task_index and a text"
        )
    pairs = sorted(zip(table["task_index"].to_pylist(), map(str, table[names[0]].to_pylist()), strict=True))
    if [index for index, _ in pairs] != list(range(len(pairs))):
        raise UserError(f"{root}/{TASKS}: the indices of tasks are not 0 to {len(pairs) - 1}")
    return [text for _, text in pairs]


def _restored(task: Task, place: StoredPlace, episode: Episode) -> Episode:
    """The episode with what ``jat dataset export`` wrote beside it."""
    said = place.said
    if episode.rejected or not said:
        return episode
    final = said.get("final_observation")
    if final is not None and len(final) == int(np.prod(task.observation_shape)) and np.isfinite(final).all():
        dtype = {CONTINUOUS: np.float32, IMAGE: np.uint8}.get(task.observation, np.int64)
        values = np.array(final, np.float32).astype(dtype).reshape(task.observation_shape)
        episode = replace(episode, final_observation=values)
    if said.get("ended") in get_args(Ended):
        episode = replace(episode, ended=said["ended"])
    if task.success is not None and isinstance(said.get("success"), bool):
        episode = replace(episode, success=said["success"])
    return episode
