"""The columns of a task's main observation: one, or one for each named part of a vector (``observations.<part>``).

Policies, networks and everything else that reads a file see the whole vector in both cases: a part's real numbers as
they are, its integers as one-hot. Only the files tell the parts apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.envs.episode import Episode
from pipeline.envs.frames import decode_stacks, encode_stacks
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Part, Task

PREFIX = "observations."


def observation_column(task: Task) -> str:
    """Name of the main observation; of the column, unless the task has parts."""
    return task.observation + "s"


def parts_by_column(task: Task) -> dict[str, Part]:
    """The columns of the parts of a vector, in their order; none if the vector is one column."""
    return {PREFIX + part.name: part for part in task.parts}


def observation_features(task: Task) -> dict[str, Any]:
    """The columns as ``datasets.Features``, with fixed lengths where possible."""
    from datasets import Image, List, Value

    if task.parts:
        return {
            name: List(List(Value("int64" if part.values else "float32"), length=part.width))
            for name, part in parts_by_column(task).items()
        }
    step: Any = {
        CONTINUOUS: lambda: List(Value("float32"), length=task.observation_shape[0]),
        DISCRETE: lambda: List(Value("int64"), length=task.observation_shape[0]),
        IMAGE: Image,
    }[task.observation]()
    return {observation_column(task): List(step)}


def observation_arrays(task: Task, episodes: Sequence[Episode], schema: pa.Schema) -> dict[str, pa.Array]:
    """The steps of all episodes, by column."""
    column = observation_column(task)
    if task.observation == IMAGE:
        files = [file for e in episodes for file in encode_stacks(e.observations)]
        data, path = pa.array(files, pa.binary()), pa.nulls(len(files), pa.string())
        return {column: pa.StructArray.from_arrays([data, path], fields=list(schema.field(column).type.value_type))}
    shape = (0, *task.observation_shape)
    observations = np.concatenate([e.observations for e in episodes]) if episodes else np.empty(shape)
    found = split_parts(task, observations) if task.parts else {column: observations}
    return {name: step_array(values, schema.field(name).type.value_type) for name, values in found.items()}


def observation_values(task: Task, columns: Mapping[str, pa.Array]) -> np.ndarray:
    """The observations ``(S, *task.observation_shape)`` of the rows of a file."""
    if task.parts:
        return join_parts(task, {name: step_matrix(columns[name].flatten()) for name in parts_by_column(task)})
    observations = columns[observation_column(task)].flatten()
    if task.observation == IMAGE:
        values = decode_stacks(observations.field("bytes").to_pylist(), task.observation_shape)
    else:
        values = step_matrix(observations)
    return values.reshape(-1, *task.observation_shape)


def split_parts(task: Task, vectors: np.ndarray) -> dict[str, np.ndarray]:
    """Vectors ``(S, size)`` as ``(S, width)`` real numbers or integers, by column."""
    found, begin = {}, 0
    for name, part in parts_by_column(task).items():
        found[name] = part.decode(vectors[:, begin : begin + part.size])
        begin += part.size
    return found


def join_parts(task: Task, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of ``split_parts``; an empty file's columns may have any width."""
    pieces = [
        part.encode(columns[name].reshape(-1, part.width)).astype(np.float32)
        for name, part in parts_by_column(task).items()
    ]
    return np.concatenate(pieces, axis=1)


def step_array(values: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    """Convert ``(T,)`` or ``(T, size)`` numbers to an Arrow array of T elements."""
    leaf = arrow_type.value_type if pa.types.is_fixed_size_list(arrow_type) else arrow_type
    flat = pa.array(np.ascontiguousarray(values, leaf.to_pandas_dtype()).ravel(), leaf)
    return flat if leaf is arrow_type else pa.FixedSizeListArray.from_arrays(flat, type=arrow_type)


def step_matrix(steps: pa.Array) -> np.ndarray:
    """View Arrow steps as ``(S,)`` or ``(S, size)`` without copying.

    Lists of variable length, as in JAT's own files, are supported if all have the same length.
    """
    if pa.types.is_primitive(steps.type):
        return steps.to_numpy()
    flat = steps.flatten().to_numpy()
    return flat.reshape(len(steps), -1) if len(steps) else flat.reshape(0, 0)
