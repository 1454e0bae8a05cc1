"""Read rows of other people's datasets as episodes, a few at a time, locally or from the Hub, and check each one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.envs.episode import Episode, rejected_episode
from pipeline.envs.frames import read_stacks
from pipeline.envs.task import CONTINUOUS, IMAGE, Part, Task
from pipeline.errors import UserError, first_line
from pipeline.images import BadImageError
from pipeline.runtime.heartbeat import WORKER_PROGRESS
from pipeline.storage.observations import join_parts, observation_column, parts_by_column
from pipeline.storage.parquet_limits import check_step_texts, check_steps, open_parquet
from pipeline.storage.schema import REWARDS, TEXTS, action_column, features

BATCH_BYTES = 16 * 2**20  # of rows in memory at a time, by the footer's sizes; at least one row
BUFFER_BYTES = 2**20  # read-ahead per column
NUM_FOOTERS = 8  # read concurrently, as each needs a request to the Hub
EMPTY = "empty episode"
OTHER_SIZE = "numbers in a step of"

Ended = Literal["terminated", "truncated", "unknown"]


class Rows(Protocol):
    """The episodes of one split of a source, by number."""

    @property
    def num_rows(self) -> int: ...

    def read(self, task: Task, first: int, count: int) -> Iterator[Episode]:
        """Episodes ``first .. first + count - 1``, including rejected ones; their ``seed`` is this number."""


class UnfitError(ValueError):
    """A row that cannot be an episode of the task; the message is the reason."""


@dataclass(frozen=True)
class RawSteps:
    """Steps of a source with correct sizes: the fields of ``Episode``, lengths and values not checked yet."""

    observations: np.ndarray
    texts: tuple[str, ...] | None
    actions: np.ndarray
    rewards: np.ndarray
    final_observation: np.ndarray | None = None


def checked_episode(task: Task, number: int, steps: RawSteps, ended: Ended) -> Episode:
    """Build an episode from these steps.

    Args:
        task: the task.
        number: the row number.
        steps: the data of the row.
        ended: how the episode ended.

    Raises:
        UnfitError: no steps, columns of different lengths, a value that is not finite, or an invalid action.
    """
    lengths = {"rewards": len(steps.rewards), "observations": len(steps.observations), "actions": len(steps.actions)}
    if steps.texts is not None:
        lengths["texts"] = len(steps.texts)
    if not any(lengths.values()):
        raise UnfitError(EMPTY)
    if len(set(lengths.values())) > 1:
        raise UnfitError(_unequal(lengths))
    for name in ("reward", "action", "observation"):
        values = getattr(steps, f"{name}s")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnfitError(f"{name} not finite")
    return Episode(
        seed=number,
        observations=steps.observations,
        texts=steps.texts,
        actions=steps.actions,
        rewards=steps.rewards,
        ended=ended,
        success=bool(steps.rewards[-1] > 0) if task.success == "reward" else None,
        flagged=_flag(task, steps.actions),
        final_observation=_finite(steps.final_observation),
    )


def _finite(values: np.ndarray | None) -> np.ndarray | None:
    """The values, or None if they are unknown or one is not finite."""
    return values if values is not None and (values.dtype.kind != "f" or np.isfinite(values).all()) else None


def _unequal(lengths: dict[str, int]) -> str:
    """The reason why columns of these lengths are no episode; equal failures give equal strings."""
    num_steps = lengths["rewards"]
    differ = [name for name, length in lengths.items() if length != num_steps]
    if differ[0] == "observations" and all(lengths[name] == num_steps + 1 for name in differ) and num_steps:
        return f"one more of {' and '.join(differ)} than of rewards: leave out the observation after the last action"
    return f"not as many {' and '.join(differ)} as rewards"


def _flag(task: Task, actions: np.ndarray) -> str | None:
    """The flag for continuous actions out of range: the policy's output, which the environment clipped."""
    action = task.action
    if action.kind == "discrete":
        wrong = actions[(actions < 0) | (actions >= action.size)]
        if len(wrong):
            raise UnfitError(f"an action is none of the {action.size} there are")
        return None
    if ((actions >= action.low) & (actions <= action.high)).all():
        return None
    return f"actions outside [{action.low:g}, {action.high:g}], up to {float(np.abs(actions).max()):.4g}"


def unfit_episode(task: Task, number: int, reason: str) -> Episode:
    """A rejected episode; its success is unknown."""
    return replace(rejected_episode(task, number, reason), success=None)


@dataclass(frozen=True)
class ParquetRows:
    """Rows of Parquet files in JAT's columns.

    Attributes:
        files: paths or addresses that fsspec opens, in order.
        file_rows: number of rows of each file.
        begin: first row of this split, counted over all files.
        num_rows: number of rows of this split.
    """

    files: tuple[str, ...]
    file_rows: tuple[int, ...]
    begin: int
    num_rows: int

    def read(self, task: Task, first: int, count: int) -> Iterator[Episode]:
        """See ``Rows``. Row groups before the first row and unneeded columns are not read.

        Raises:
            UserError: a file cannot be read.
        """
        number, start, left = first, self.begin + first, count
        for file, num_rows in zip(self.files, self.file_rows, strict=True):
            if start >= num_rows:
                start -= num_rows
                continue
            for row in _rows_of_file(task, file, start, min(left, num_rows - start)):
                WORKER_PROGRESS.beats += 1
                yield episode_of_row(task, number, row)
                number, left = number + 1, left - 1
            if not left:
                return
            start = 0


def count_rows(files: Sequence[str], wanted: int | None) -> tuple[int, ...]:
    """Number of rows of each file, from its footer; if ``wanted`` is given, stop after that many rows.

    Raises:
        UserError: a file cannot be read.
    """
    if wanted is None:
        with ThreadPoolExecutor(NUM_FOOTERS) as threads:
            return tuple(threads.map(_count_rows_of_file, files))
    counts: list[int] = []
    for file in files:
        if sum(counts) >= wanted:
            break
        counts.append(_count_rows_of_file(file))
    return tuple(counts)


def _count_rows_of_file(file: str) -> int:
    with opened(file) as (parquet, _):
        return int(parquet.metadata.num_rows)


def schema_of(file: str) -> pa.Schema:
    """Columns of a Parquet file.

    Raises:
        UserError: it cannot be read.
    """
    with opened(file) as (parquet, _):
        return parquet.schema_arrow


@contextlib.contextmanager
def opened(file: str) -> Iterator[tuple[pq.ParquetFile, Any]]:
    """Open a local or Hub Parquet file within the size limits, with its raw handle; errors name the file."""
    import fsspec
    from huggingface_hub.errors import HTTPError

    try:
        with (
            fsspec.open(file, "rb") as handle,
            open_parquet(handle, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            check_steps(parquet.metadata, REWARDS)
            yield parquet, handle
    except (OSError, pa.ArrowException, HTTPError) as error:
        raise UserError(
            f"{file} cannot be read ({first_line(error)}); what was imported stays: run the same command again to go on"
        ) from error


def check_columns(task: Task, file: str, found: pa.Schema) -> None:
    """Refuse a file that lacks a column of the task or has one of another type.

    Raises:
        UserError: names the existing and the expected columns.
    """
    for field in features(task).arrow_schema:
        index = found.get_field_index(field.name)
        if index < 0:
            raise UserError(
                f"{file} has no column {field.name}, which {task.name} needs; it has {', '.join(found.names)}. "
                f"JAT's columns of this task are {', '.join(features(task))}"
            )
        kind = found.field(index).type
        if _outline(kind) != _outline(field.type):
            raise UserError(f"{file}: {field.name} is {kind}; {task.name} needs {field.type}")


def _outline(kind: pa.DataType) -> tuple[int, str]:
    """The nesting depth of lists and the type of their elements: a number, a string or an image."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return depth, "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return depth, "string"
    return depth, "image" if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else str(kind)


def _rows_of_file(task: Task, file: str, first: int, count: int) -> Iterator[dict[str, pa.Array | None]]:
    """Rows ``first .. first + count - 1`` of a file: the steps by column, None for a null."""
    with opened(file) as (parquet, handle):
        check_columns(task, file, parquet.schema_arrow)
        names = list(features(task))
        for group in range(parquet.num_row_groups):
            metadata = parquet.metadata.row_group(group)
            if first >= metadata.num_rows:
                first -= metadata.num_rows
                continue
            size = max(1, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
            size = 1 if task.observation == IMAGE else size  # compressed game frames expand many times
            check_step_texts(handle, parquet.metadata, group)
            for batch in parquet.iter_batches(size, row_groups=[group], columns=names):
                for row in range(min(first, len(batch)), len(batch)):
                    yield {name: batch.column(name)[row].values for name in names}
                    count -= 1
                    if not count:
                        return
                first = max(0, first - len(batch))


def episode_of_row(task: Task, number: int, row: dict[str, pa.Array | None]) -> Episode:
    """The episode of a row: its steps by JAT's columns, None for a null; rejected if it cannot be one of the task."""
    try:
        return checked_episode(task, number, _steps_of_row(task, row), "unknown")
    except UnfitError as error:
        return unfit_episode(task, number, str(error))


def _steps_of_row(task: Task, row: dict[str, pa.Array | None]) -> RawSteps:
    for name, steps in row.items():
        if steps is None or steps.null_count:
            raise UnfitError(f"{name} is null" if steps is None else f"a step of {name} is null")
    column = observation_column(task)
    if task.parts and column not in row:  # a LeRobot dataset has the whole vector in one column
        observations = join_parts(
            task, {name: _part(name, part, row[name]) for name, part in parts_by_column(task).items()}
        )
    elif task.observation == IMAGE:
        observations = _images(task, row[column])
    else:
        dtype = np.float32 if task.observation == CONTINUOUS else np.int64
        observations = _matrix(column, row[column], task.observation_shape[0], dtype)
    column = action_column(task)
    if task.action.kind == "discrete":
        actions = _vector(row[column], np.int64)
    else:
        actions = _matrix(column, row[column], task.action.size, np.float32)
    texts = tuple(row[TEXTS].to_pylist()) if task.has_text else None  # type: ignore[union-attr]
    return RawSteps(observations, texts, actions, _vector(row[REWARDS], np.float32))


def _part(name: str, part: Part, steps: Any) -> np.ndarray:
    values = _matrix(name, steps, part.width, np.int64 if part.values else np.float32)
    if part.values and not ((values >= 0) & (values < np.array(part.values))).all():
        raise UnfitError(f"an integer of {name} is not below {part.values}")
    return values


def _vector(steps: Any, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite float32 values are found by later checks
        values: np.ndarray = steps.to_numpy(zero_copy_only=False).astype(dtype)
    return values


def _matrix(name: str, steps: Any, size: int, dtype: Any) -> np.ndarray:
    lengths = steps.value_lengths().to_numpy(zero_copy_only=False)
    wrong = lengths[lengths != size]
    if len(wrong):
        raise UnfitError(f"{wrong[0]} {OTHER_SIZE} {name}, expected {size}")
    flat = steps.flatten()
    if flat.null_count:
        raise UnfitError(f"a number in {name} is null")
    return _vector(flat, dtype).reshape(len(steps), size)


def _images(task: Task, steps: Any) -> np.ndarray:
    files = steps.field("bytes").to_pylist()
    if None in files:
        raise UnfitError("an image has no bytes")
    try:
        return read_stacks(files, task.observation_shape)
    except BadImageError as error:
        raise UnfitError(error.reason) from error
