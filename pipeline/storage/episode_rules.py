"""Validate the episodes of one data file, written by this project, by JAT or by a third party.

A file is read a few episodes at a time. Every problem is passed to ``report``, and the check continues with the rest.
No content of a file raises an exception of its own, not even a file that is not Parquet: only ``report`` may raise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.envs.episode import NO_LABEL
from pipeline.envs.frames import decode_stacks
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import first_line
from pipeline.images import BadImageError
from pipeline.storage.observations import observation_column, parts_by_column
from pipeline.storage.parquet_limits import check_step_texts, check_steps, open_parquet
from pipeline.storage.schema import REWARDS, TEXTS, action_column, features, label_column

BATCH_BYTES = 32 * 2**20  # bytes of numbers or pixels in memory at a time; at least one episode
IMAGES_AT_A_TIME = 256
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Problem:
    """A violation of a rule.

    Attributes:
        kind: category of the problem in a few words, the same for every file.
        file: path of the file.
        reason: the value that was found and the value that was expected.
        row: index in the file of the first affected episode, or None if the whole file is affected.
        count: number of affected episodes, or files.
    """

    kind: str
    file: Path
    reason: str
    row: int | None = None
    count: int = 1

    def __str__(self) -> str:
        return f"{self.file}{'' if self.row is None else f', row {self.row}'}: {self.reason}"


Report = Callable[[Problem], None]
Take = Callable[[str, np.ndarray], None]

UNREADABLE = "unreadable file"
NO_COLUMN = "column missing"
COLUMN_TYPE = "column of another type"
EXTRA_COLUMN = "column too many"
VARIABLE = "lists of variable length where it is fixed"
MISSING_VALUE = "value missing"
LENGTHS = "columns of different lengths"
EMPTY = "empty episode"
SIZE = "vector of another size"
NOT_FINITE = "value not finite"
OUTSIDE = "action outside its range"
INTEGERS = "integer of an observation outside its range"
IMAGE_BROKEN = "image broken or of another shape"
PNG_STACKS = "stacked frames as PNG, every frame stored up to four times"


def ignore(column: str, values: np.ndarray) -> None:
    """Discard the values."""


def scan_episodes(
    task: Task,
    path: Path,
    report: Report,
    flagged: np.ndarray | None = None,
    take: Take = ignore,
    digests: list[bytes] | None = None,
) -> np.ndarray:
    """Check a data file, and return the number of steps of each readable episode, ``(E,)`` int64.

    Args:
        task: expected task of the file.
        path: path of the file.
        report: called with each problem.
        flagged: ``(E,)`` bool: the side table flags the episode because its actions are out of range. Out-of-range
            actions of a flagged episode are accepted if they are finite. None: no episode is flagged.
        take: called with the valid values of each column except texts, some steps at a time: the column's name and
            ``(S,)`` or ``(S, size)`` numbers, or the pixels of S images.
        digests: list to which the content digest of each counted episode is appended, empty bytes for an empty
            episode; None: compute no digests.
    """
    flagged = np.zeros(0, bool) if flagged is None else flagged
    lengths: list[np.ndarray] = []
    row = 0
    try:
        with open_parquet(path) as file:
            check_steps(file.metadata, REWARDS)
            columns = _usable_columns(task, path, file.schema_arrow, report)
            for batch in _batches(task, path, file, columns):
                lengths.append(_scan_batch(task, path, row, batch, report, flagged, take))
                if digests is not None:
                    digests += [_digest_of_row(task, batch, index) for index in range(len(batch))]
                row += len(batch)
    except (pa.ArrowException, OSError) as error:
        report(Problem(UNREADABLE, path, f"cannot be read after {row} episodes ({first_line(error)})"))
    return np.concatenate(lengths) if lengths else np.empty(0, np.int64)


def _batches(task: Task, path: Path, file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches of few episodes, so that memory stays bounded even if row groups are gigabytes."""
    if not columns:
        return
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    values = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    value_bytes = float(np.prod(task.observation_shape)) if task.observation == IMAGE else 8.0
    row_bytes = max(1.0, values * value_bytes / max(1, file.metadata.num_rows))
    for number in range(len(groups)):
        check_step_texts(path, file.metadata, number)
        yield from file.iter_batches(max(1, int(BATCH_BYTES / row_bytes)), row_groups=[number], columns=list(columns))


def _usable_columns(task: Task, path: Path, found: pa.Schema, report: Report) -> list[str]:
    """Names of the columns that exist and have a type that can be checked further."""
    expected = features(task, label_column(task) in found.names).arrow_schema
    usable = []
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            report(Problem(NO_COLUMN, path, f"there is no column {field.name}; there are {', '.join(found.names)}"))
            continue
        kind = found.field(index).type
        if kind.equals(field.type):
            usable.append(field.name)
            continue
        fixed = f"{field.name} is {kind}, expected {field.type}"
        alike = _shape_of(kind) == _shape_of(field.type)
        report(Problem(VARIABLE if alike else COLUMN_TYPE, path, fixed))
        if alike or _is_checkable(kind, field.type):
            usable.append(field.name)
    extra = [name for name in found.names if expected.get_field_index(name) < 0]
    if extra:
        report(Problem(EXTRA_COLUMN, path, f"unexpected columns: {', '.join(extra)}"))
    return usable


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _shape_of(kind: pa.DataType) -> tuple[int, str]:
    """Nesting depth and leaf type: the properties that variable-length and fixed-length lists share."""
    depth = 0
    while _is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth, str(kind)


def _is_checkable(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether both leaf types are numeric: lengths, ranges and NaNs can be checked at any width."""
    while _is_list(found) and _is_list(expected):
        found, expected = found.value_type, expected.value_type

    def is_number(kind: pa.DataType) -> bool:
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)

    return is_number(found) and is_number(expected)


def _scan_batch(
    task: Task, path: Path, first_row: int, batch: pa.RecordBatch, report: Report, flagged: np.ndarray, take: Take
) -> np.ndarray:
    """Check a batch of episodes; each check skips the episodes that failed an earlier one."""

    def tell(kind: str, rows: np.ndarray, reason: str) -> None:
        report(Problem(kind, path, reason, first_row + int(rows[0]), len(rows)))

    names = batch.schema.names
    reference = REWARDS if REWARDS in names else names[0]
    lengths = _list_lengths(batch.column(reference))
    good = np.ones(len(batch), bool)
    for name in names:
        found = _list_lengths(batch.column(name))
        missing = np.flatnonzero(good & (found < 0))
        if len(missing):
            tell(MISSING_VALUE, missing, f"{name} is null")
            good[missing] = False
        differ = np.flatnonzero(good & (found != lengths))
        if len(differ):
            row = differ[0]
            tell(LENGTHS, differ, f"{found[row]} values in {name} for {lengths[row]} {reference}")
            good[differ] = False
    empty = np.flatnonzero(good & (lengths == 0))
    if len(empty):
        tell(EMPTY, empty, "0 steps")
        good[empty] = False
    for name in names:
        rows = np.flatnonzero(good)
        steps = batch.column(name).take(pa.array(rows)).flatten()
        row_of_step = np.repeat(rows, lengths[rows])
        may_leave = np.repeat(np.isin(first_row + rows, np.flatnonzero(flagged)), lengths[rows])
        for kind, bad_steps, reason in _step_problems(task, name, steps, may_leave, take):
            tell(kind, np.unique(row_of_step[bad_steps]), reason)
    return np.maximum(lengths, 0)


def _digest_of_row(task: Task, batch: pa.RecordBatch, row: int) -> bytes:
    """Content digest of an episode: equal digests mean equal steps, whatever their stored dtypes and labels."""
    if not batch.num_columns or not len(batch.column(0)[row].values or ()):
        return b""  # empty episodes are reported as empty, not as duplicates
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(set(batch.schema.names) - {label_column(task)}):
        steps = batch.column(name)[row].values
        found.update(f"{name} {-1 if steps is None else len(steps)}".encode())
        if steps is not None:
            found.update(_bytes_of(steps))
    return found.digest()


def _bytes_of(steps: pa.Array) -> bytes:
    while _is_list(steps.type):
        steps = steps.flatten()
    if pa.types.is_struct(steps.type):
        steps = steps.field("bytes")
    if pa.types.is_integer(steps.type) or pa.types.is_floating(steps.type):
        numbers = steps.to_numpy(zero_copy_only=False)
        return bytes(numbers.astype(np.int64 if numbers.dtype.kind in "iu" else np.float32).tobytes())
    return repr(steps.to_pylist()).encode(errors="surrogatepass")


def _list_lengths(column: pa.Array) -> np.ndarray:
    """Number of steps of every row, ``(E,)`` int64; -1 for a null row."""
    lengths: np.ndarray = column.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _step_problems(
    task: Task, name: str, steps: pa.Array, may_leave: np.ndarray, take: Take
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield the problems of S steps of one column: the kind, the affected steps and the reason.

    Continuous actions may be out of range in the steps where ``may_leave``, ``(S,)`` bool, is true. ``take`` is called
    with the values if there is no problem.
    """
    is_null = steps.is_null().to_numpy(zero_copy_only=False)
    place = np.arange(len(steps))  # index of the step; after flattening, one per number
    if is_null.any():
        yield MISSING_VALUE, place[is_null], f"a step of {name} is null"
        steps, place = steps.drop_null(), place[~is_null]
    if name == observation_column(task) and task.observation == IMAGE:
        yield from _image_problems(task, steps, place, take)
    elif name != TEXTS:
        size = _vector_size(task, name)
        if size is not None:
            sizes = _list_lengths(steps)
            is_right = sizes == size
            if not is_right.all():
                reason = f"{sizes[~is_right][0]} numbers in a step of {name}, expected {size}"
                yield SIZE, place[~is_right], reason
                steps, place = steps.filter(pa.array(is_right)), place[is_right]
            steps, place = steps.flatten(), np.repeat(place, size)
        values = steps.to_numpy(zero_copy_only=False)  # nulls become NaN
        problems = list(_value_problems(task, name, values, place, may_leave))
        yield from problems
        if not problems:
            take(name, values if size is None else values.reshape(-1, size))


def _vector_size(task: Task, name: str) -> int | None:
    """Vector size of a step of a column, or None if a step is a scalar."""
    if name == observation_column(task):
        return task.observation_shape[0]
    if name in (parts := parts_by_column(task)):
        return parts[name].width
    if name in (action_column(task), label_column(task)) and task.action.kind != "discrete":
        return task.action.size
    return None


def _value_problems(
    task: Task, name: str, numbers: np.ndarray, place: np.ndarray, may_leave: np.ndarray
) -> Iterator[tuple[str, np.ndarray, str]]:
    part = parts_by_column(task).get(name)
    what = name if part else name.removesuffix("s").split("_")[-1]  # reward, action or observation
    if name == label_column(task):
        action = task.action
        if action.kind == "discrete":
            outside = ~((numbers == NO_LABEL) | (numbers >= 0) & (numbers < action.size))
        else:
            unknown = np.isnan(numbers)
            in_part = unknown.reshape(-1, action.size).any(axis=1) & ~unknown.reshape(-1, action.size).all(axis=1)
            outside = ~(unknown | (numbers >= action.low) & (numbers <= action.high)) | in_part.repeat(action.size)
        if outside.any():
            yield OUTSIDE, place[outside], f"{name}: neither an action nor the mark of a step without a label"
    elif name == action_column(task):
        action = task.action
        is_discrete = action.kind == "discrete"
        low, high = (0, action.size - 1) if is_discrete else (action.low, action.high)
        outside = ~((numbers >= low) & (numbers <= high))  # true for NaN
        if not is_discrete:
            outside &= ~(may_leave[place] & np.isfinite(numbers))
        if outside.any():
            yield OUTSIDE, place[outside], f"{what} outside [{low}, {high}]"
    elif part is not None and part.values:
        outside = ~((numbers >= 0) & (numbers < np.tile(part.values, len(numbers) // part.width)))
        if outside.any():
            yield INTEGERS, place[outside], f"an integer of {what} is not below {part.values}"
    elif numbers.dtype.kind == "f":
        wild = ~np.isfinite(numbers)
        if wild.any():
            yield NOT_FINITE, place[wild], f"{what} not finite"


def _image_problems(
    task: Task, steps: pa.Array, place: np.ndarray, take: Take
) -> Iterator[tuple[str, np.ndarray, str]]:
    broken: list[int] = []
    stacks: list[int] = []
    reason = ""
    for begin in range(0, len(steps), IMAGES_AT_A_TIME):
        files = steps.slice(begin, IMAGES_AT_A_TIME).field("bytes").to_pylist()
        stacks += [begin + index for index, file in enumerate(files) if file and file.startswith(PNG)]
        pixels = _decoded(task, files)
        if isinstance(pixels, np.ndarray):
            take(observation_column(task), pixels)
            continue
        for index, file in enumerate(files):
            fault = _decoded(task, [file])
            if isinstance(fault, str):
                reason = reason or fault
                broken.append(begin + index)
    if broken:
        yield IMAGE_BROKEN, place[broken], reason
    if stacks:
        yield PNG_STACKS, place[stacks], "an image is a PNG of stacked frames"


def _decoded(task: Task, files: Sequence[bytes | None]) -> np.ndarray | str:
    """Pixels ``(S, H, W, C)`` of the images, or the reason why they cannot be decoded."""
    if None in files:
        return "an image has no bytes"
    try:
        return decode_stacks([file for file in files if file is not None], task.observation_shape)
    except BadImageError as error:
        return f"an image cannot be used ({error})"
