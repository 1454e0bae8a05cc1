"""Write a LeRobotDataset v3: frames in ``data/``, episodes, tasks and statistics in ``meta/``.

The format as ``lerobot`` 0.4 reads it (``lerobot/datasets/lerobot_dataset.py``). Observations are ``observation.state``
or, for images, ``observation.images.frames`` with the stored image files. What the format has no place for is in
columns ``jat/...`` of ``meta/episodes``, from which an import restores every episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collectors.dataset.exporting.episodes import Batch, count_episodes, read_batches
from collectors.dataset.surgery.source import Source
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.files import write_json
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS
from pipeline.storage.observations import observation_column, step_array
from pipeline.storage.schema import action_column

VERSION = "v3.0"
INFO = "meta/info.json"
STATE, FRAMES, ACTION, REWARD, DONE = (
    "observation.state", "observation.images.frames", "action", "next.reward", "next.done",
)  # fmt: skip
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK, FILE_MB = 1000, 100
PREFIX = "jat/"  # of the columns of episodes that are not LeRobot's
SIDE_COLUMNS = {
    "seed": pa.int64(), "expert": pa.string(), "expert_revision": pa.string(), "return": pa.float64(),
    "success": pa.bool_(), "ended": pa.string(), "noise": pa.string(), "versions": pa.string(),
    "flagged": pa.string(), "final_observation": pa.list_(pa.float32()),
}  # fmt: skip
CARD = """---
license: apache-2.0
task_categories: [robotics]
tags: [LeRobot]
configs:
- config_name: default
  data_files: data/*/*.parquet
---

Episodes of {tasks} as a LeRobotDataset v3, written by `jat dataset export --format lerobot`.

```python
from lerobot.datasets.lerobot_dataset import LeRobotDataset

dataset = LeRobotDataset("OWNER/NAME")  # or LeRobotDataset("any/name", root="the folder")
```

`meta/episodes` has for every episode, in columns `jat/...`, its task, split, seed, expert, return, success, how it
ended, and the observation after the last action. `jat dataset import` gives the same episodes back.
"""


def layout_of(task: Task) -> tuple[Any, ...]:
    """What the tasks of one LeRobotDataset have in common."""
    return task.observation, task.observation_shape, task.has_text, task.action


def write_lerobot(target: Path, source: Source, tasks: Sequence[Task], fps: int) -> None:
    """Write the episodes of tasks of one layout; ``meta/info.json`` is written last.

    Args:
        target: folder to write to.
        source: the dataset.
        tasks: the tasks.
        fps: steps per second.

    Raises:
        UserError: a file of the dataset is damaged.
    """
    task = tasks[0]
    data = _RollingFiles(target, DATA_PATH, _frame_schema(task))
    episodes = _RollingFiles(target, EPISODES_PATH, None)
    texts: dict[str, int] = {}
    totals: dict[str, dict[str, np.ndarray]] = {}
    counts = dict.fromkeys(SPLITS, 0)
    num_frames = 0
    progress = Progress("episodes exported", count_episodes(source, tasks))
    with data, episodes:
        for batch in read_batches(source, tasks):
            first_episode = sum(counts.values())
            frames = _frames(batch, fps, first_episode, num_frames, texts)
            place = data.write(frames)
            stats = _statistics(batch, frames)
            rows = _episode_rows(batch, frames, first_episode, num_frames, list(texts), place, stats)
            episodes.write_rows(rows)
            totals = _merge_statistics(totals, stats)
            counts[batch.split] += len(batch.rows)
            num_frames += len(frames)
            progress.advance(len(batch.rows))
    _write_tasks(target, texts)
    write_json(target / "meta" / "stats.json", {name: _listed(of_one) for name, of_one in totals.items()})
    named = ", ".join(f"`{task.name}`" for task in tasks)
    (target / "README.md").write_text(CARD.format(tasks=named), encoding="utf-8")
    ends = np.cumsum([0, *(counts[split] for split in SPLITS)]).tolist()
    info = {
        "codebase_version": VERSION,
        "robot_type": task.domain,
        "total_episodes": ends[-1],
        "total_frames": num_frames,
        "total_tasks": len(texts),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": FILE_MB,
        "video_files_size_in_mb": 2 * FILE_MB,
        "fps": fps,
        "splits": {s: f"{ends[i]}:{ends[i + 1]}" for i, s in enumerate(SPLITS) if counts[s]},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": _features(task),
    }
    write_json(target / INFO, info)


def _features(task: Task) -> dict[str, dict[str, Any]]:
    def numbers(dtype: str, size: int = 1, name: str = "") -> dict[str, Any]:
        return {"dtype": dtype, "shape": [size], "names": [f"{name}_{i}" for i in range(size)] if name else None}

    found: dict[str, dict[str, Any]] = {}
    if task.observation == IMAGE:
        found[FRAMES] = {
            "dtype": "image",
            "shape": list(task.observation_shape),
            "names": ["height", "width", "channel"],
        }
    else:
        dtype = "float32" if task.observation == CONTINUOUS else "int64"
        found[STATE] = numbers(dtype, task.observation_shape[0], "state")
    is_discrete = task.action.kind == "discrete"
    found[ACTION] = numbers("int64") if is_discrete else numbers("float32", task.action.size, "action")
    found |= {REWARD: numbers("float32"), DONE: numbers("bool"), "timestamp": numbers("float32")}
    return found | {name: numbers("int64") for name in ("frame_index", "episode_index", "index", "task_index")}


def _frame_schema(task: Task) -> pa.Schema:
    """Columns of ``data/``, as LeRobot derives them from the features."""
    from datasets import Features, Image, List, Value

    columns: dict[str, Any] = {}
    for name, feature in _features(task).items():
        (size, *_) = feature["shape"]
        if feature["dtype"] == "image":
            columns[name] = Image()
        else:
            columns[name] = Value(feature["dtype"]) if size == 1 else List(Value(feature["dtype"]), length=size)
    schema: pa.Schema = Features(columns).arrow_schema
    return schema


def _frames(batch: Batch, fps: int, first_episode: int, first_frame: int, texts: dict[str, int]) -> pa.Table:
    """One row per step; new tasks and missions are added to ``texts``."""
    task, lengths = batch.task, batch.steps.lengths
    starts = np.cumsum(lengths) - lengths
    num_frames = int(lengths.sum())
    frame = np.arange(num_frames) - np.repeat(starts, lengths)
    done = np.zeros(num_frames, bool)
    done[starts + lengths - 1] = True
    if batch.steps.texts is None:
        task_index = np.full(num_frames, texts.setdefault(task.name, len(texts)))
    else:
        task_index = np.array([texts.setdefault(text, len(texts)) for text in batch.steps.texts.to_pylist()])
    columns = {
        FRAMES if task.observation == IMAGE else STATE: _observations(batch),
        ACTION: batch.table[action_column(task)],
    }
    flat = {name: column.combine_chunks().flatten() for name, column in columns.items()}
    schema = _frame_schema(task)
    for name, values in flat.items():
        kind = schema.field(name).type
        if pa.types.is_primitive(kind) and not pa.types.is_primitive(values.type):
            flat[name] = values.flatten()  # vectors of one number
    arrays = flat | {
        REWARD: pa.array(batch.steps.rewards),
        DONE: pa.array(done),
        "timestamp": pa.array((frame / fps).astype(np.float32)),
        "frame_index": pa.array(frame),
        "episode_index": pa.array(first_episode + np.repeat(np.arange(len(lengths)), lengths)),
        "index": pa.array(first_frame + np.arange(num_frames)),
        "task_index": pa.array(task_index.astype(np.int64)),
    }
    return pa.Table.from_arrays([arrays[field.name].cast(field.type) for field in schema], schema=schema)


def _observations(batch: Batch) -> pa.ChunkedArray:
    """The observations as one column; parts that have columns of their own as one vector."""
    if not batch.task.parts:
        return batch.table[observation_column(batch.task)]
    vectors = batch.steps.observations
    steps = step_array(vectors, pa.list_(pa.float32(), vectors.shape[1]))
    offsets = pa.array(np.cumsum([0, *batch.steps.lengths]), pa.int32())
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, steps)])


Statistics = dict[str, dict[str, np.ndarray]]  # by feature and kind: arrays with one row per episode


def _statistics(batch: Batch, frames: pa.Table) -> Statistics:
    """Minimum, maximum, mean, deviation and count of every feature in every episode."""
    lengths = batch.steps.lengths
    cuts = np.cumsum(lengths)[:-1]
    found: Statistics = {}
    for name in frames.column_names:
        if name == FRAMES:
            channels = batch.steps.observations.shape[-1]
            parts = [part.reshape(-1, channels) / 255 for part in np.split(batch.steps.observations, cuts)]
            shape: tuple[int, ...] = (channels, 1, 1)  # as LeRobot has it for images, in [0, 1]
        else:
            values = frames[name].combine_chunks()
            flat = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
            rows = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(frames), -1)
            parts, shape = np.split(rows, cuts), (rows.shape[1],)
        kinds = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}
        found[name] = {k: np.stack([f(part, axis=0).reshape(shape) for part in parts]) for k, f in kinds.items()}  # type: ignore[operator]
        found[name]["count"] = lengths.reshape(-1, 1).astype(np.int64)
    return found


def _merge_statistics(totals: Statistics, stats: Statistics) -> Statistics:
    """Statistics of all episodes so far, as arrays of one row."""
    merged: Statistics = {}
    for name, new in stats.items():
        old = totals.get(name)
        parts = {kind: np.concatenate([old[kind], rows]) if old else rows for kind, rows in new.items()}
        weights = parts["count"].astype(np.float64).reshape(-1, *(1,) * (parts["mean"].ndim - 1))
        total = weights.sum()
        mean = (parts["mean"] * weights).sum(axis=0, keepdims=True) / total
        square = ((parts["std"] ** 2 + (parts["mean"] - mean) ** 2) * weights).sum(axis=0, keepdims=True) / total
        merged[name] = {
            "min": parts["min"].min(axis=0, keepdims=True),
            "max": parts["max"].max(axis=0, keepdims=True),
            "mean": mean,
            "std": np.sqrt(square),
            "count": parts["count"].sum(axis=0, keepdims=True),
        }
    return merged


def _listed(of_one: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {kind: rows[0].tolist() for kind, rows in of_one.items()}


def _episode_rows(
    batch: Batch,
    frames: pa.Table,
    first_episode: int,
    first_frame: int,
    texts: Sequence[str],
    place: tuple[int, int],
    stats: Statistics,
) -> list[dict[str, Any]]:
    """Rows of ``meta/episodes``."""
    ends = np.cumsum(batch.steps.lengths)
    indices = np.split(frames["task_index"].to_numpy(), ends[:-1])
    rows = []
    for number, side in enumerate(batch.rows):
        length = int(batch.steps.lengths[number])
        begin = first_frame + int(ends[number]) - length
        row: dict[str, Any] = {
            "episode_index": first_episode + number,
            "tasks": [texts[index] for index in dict.fromkeys(indices[number].tolist())],
            "length": length,
            "data/chunk_index": place[0],
            "data/file_index": place[1],
            "dataset_from_index": begin,
            "dataset_to_index": begin + length,
        }
        for name, of_one in stats.items():
            row |= {f"stats/{name}/{kind}": values[number].tolist() for kind, values in of_one.items()}
        ours: dict[str, Any] = {"task": batch.task.name, "split": batch.split, "environment": batch.task.env_id}
        ours |= {name: side.get(name) for name in SIDE_COLUMNS}
        rows.append(row | {PREFIX + name: value for name, value in ours.items()})
    return rows


def _write_tasks(target: Path, texts: Mapping[str, int]) -> None:
    """``meta/tasks.parquet``: a table indexed by the text of the task."""
    import pandas as pd

    pd.DataFrame({"task_index": list(texts.values())}, index=list(texts)).to_parquet(target / "meta" / "tasks.parquet")


class _RollingFiles:
    """Parquet files ``chunk-000/file-000`` and so on, each of about ``FILE_MB``.

    Args:
        target: folder of the dataset.
        path: template of the names.
        schema: of the rows; None: that of the first table.
    """

    def __init__(self, target: Path, path: str, schema: pa.Schema | None) -> None:
        self._target, self._path, self._schema = target, path, schema
        self._number, self._num_bytes = 0, 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _RollingFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    @property
    def place(self) -> tuple[int, int]:
        """Chunk and file that the next rows go to."""
        if self._num_bytes >= FILE_MB * 2**20:
            self._number, self._num_bytes = self._number + 1, 0
            if self._writer:
                self._writer.close()
            self._writer = None
        return divmod(self._number, FILES_PER_CHUNK)

    def write(self, table: pa.Table) -> tuple[int, int]:
        """Write rows to one file; returns its chunk and number."""
        place = self.place
        if self._writer is None:
            path = self._target / self._path.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, self._schema or table.schema, compression="zstd")
        self._writer.write_table(table)
        self._num_bytes += table.nbytes
        return place

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows of ``meta/episodes``, which say in which of its files they are."""
        chunk, file = self.place
        full = [row | {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file} for row in rows]
        if self._schema is None:
            guessed = pa.Table.from_pylist(full[:1]).schema
            known = {PREFIX + name: kind for name, kind in SIDE_COLUMNS.items()}
            self._schema = pa.schema([field.with_type(known.get(field.name, field.type)) for field in guessed])
        self.write(pa.Table.from_pylist(full, self._schema))
