"""Arrow schemas of tasks and corpora: the only place that defines the names of the published columns.

A task has two tables: the episodes in JAT's columns, and a side table with one row per seed played, rejected episodes
included, with the provenance and the outcome of the episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.corpora import Corpus, Document
from pipeline.storage.observations import (
    observation_arrays,
    observation_features,
    observation_values,
    step_array,
    step_matrix,
)

if TYPE_CHECKING:
    from datasets import Features

REWARDS = "rewards"
TEXTS = "text_observations"
# Later additions to the side table, missing in older shards.
EPISODE_COLUMNS_ADDED = ("noise", "flagged", "task", "final_observation")
LABEL_PREFIX = "expert_"  # of the column with the labels; the rest is the name of the column of actions
# Of the side tables of labelled episodes alone: revision of the expert that gave the labels, and how many it gave.
LABEL_COLUMNS = ("label_expert", "num_labelled")
EPISODES_SUFFIX = "-episodes"  # config name of a task's side table = task name + this suffix
ALL_EPISODES = "episodes"  # config name of the side tables of all tasks together


def action_column(task: Task) -> str:
    return f"{task.action.kind}_actions"


def label_column(task: Task) -> str:
    """Column of what an expert would have done at each step, in files of labelled episodes only.

    Its type is that of the actions; ``pipeline.envs.episode.NO_LABEL`` or NaN where the expert could not say.
    """
    return LABEL_PREFIX + action_column(task)


def features(task: Task, labels: bool = False) -> Features:
    """Columns of a task's data as ``datasets.Features``: JAT's names and dtypes, with fixed lengths where possible.

    Args:
        task: the task.
        labels: whether the episodes are labelled.
    """
    from datasets import Features, List, Value

    columns: dict[str, Any] = {}
    if task.has_text:
        columns[TEXTS] = List(Value("string"))
    columns |= observation_features(task)
    discrete = task.action.kind == "discrete"
    columns[action_column(task)] = List(Value("int64") if discrete else List(Value("float32"), length=task.action.size))
    columns[REWARDS] = List(Value("float32"))
    if labels:
        columns[label_column(task)] = columns[action_column(task)]
    return Features(columns)


def episode_features(labels: bool = False) -> Features:
    """Columns of the side table, which has one row per seed played.

    Args:
        labels: whether the episodes are labelled.
    """
    from datasets import Features, List, Value

    of_labels = dict(zip(LABEL_COLUMNS, (Value("string"), Value("int32")), strict=True)) if labels else {}
    return Features(
        {
            "seed": Value("int64"),  # null if imported
            "row": Value("int32"),  # row of the data file of the same number; null if rejected
            "expert": Value("string"),
            "expert_revision": Value("string"),
            "return": Value("float64"),
            "length": Value("int32"),
            "success": Value("bool"),  # null if the task does not define success, or the source does not report it
            "ended": Value("string"),  # terminated, truncated, rejected or unknown
            "rejected": Value("string"),  # the reason, or null
            "noise": Value("string"),  # added to the expert's actions in this episode, such as epsilon=0.05, or null
            "versions": Value("string"),  # null if imported
            "flagged": Value("string"),  # what is unusual about an accepted episode, or null
            "task": Value("string"),
            # The observation after the last action, flat, its numbers and pixels exact as float32; null if unknown.
            "final_observation": List(Value("float32")),
            **of_labels,
        }
    )


def data_table(task: Task, episodes: Sequence[Episode], labels: bool = False) -> pa.Table:
    """Convert accepted episodes to rows. Python loops over steps only to encode images and texts.

    Args:
        task: their task.
        episodes: the episodes.
        labels: whether to write their labels, which all of them must have.
    """
    offsets = pa.array(np.cumsum([0, *map(len, episodes)]), pa.int32())
    schema = features(task, labels).arrow_schema
    action_shape = (0,) if task.action.kind == "discrete" else (0, task.action.size)
    actions = np.concatenate([e.actions for e in episodes]) if episodes else np.empty(action_shape)
    rewards = np.concatenate([e.rewards for e in episodes]) if episodes else np.empty(0)
    steps: dict[str, pa.Array] = {
        action_column(task): step_array(actions, schema.field(action_column(task)).type.value_type),
        REWARDS: step_array(rewards, pa.float32()),
    }
    if labels:
        given = [e.labels for e in episodes if e.labels is not None]
        kind = schema.field(label_column(task)).type.value_type
        steps[label_column(task)] = step_array(np.concatenate(given) if given else np.empty(action_shape), kind)
    steps |= observation_arrays(task, episodes, schema)
    if task.has_text:
        steps[TEXTS] = pa.array([text for e in episodes for text in e.texts or ()], pa.string())
    arrays = [pa.ListArray.from_arrays(offsets, steps[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


@dataclass(frozen=True)
class EpisodeBlock:
    """Consecutive episodes, concatenated: S steps of E episodes.

    Attributes:
        lengths: ``(E,)`` int64, summing to S.
        observations: ``(S, *task.observation_shape)`` float32, int64 or uint8.
        texts: S mission texts as an Arrow array, or None.
        actions: ``(S,)`` int64 or ``(S, size)`` float32.
        rewards: ``(S,)`` float32.
        labels: as ``Episode.labels``, of S steps; None if the file has none.
    """

    lengths: np.ndarray
    observations: np.ndarray
    texts: pa.Array | None
    actions: np.ndarray
    rewards: np.ndarray
    labels: np.ndarray | None = None


def read_lengths(path: Path) -> np.ndarray:
    """Length in steps of every episode of a data file, ``(E,)`` int64, without reading observations or actions."""
    return lengths_of(pq.read_table(path, columns=[REWARDS]))


def lengths_of(table: pa.Table) -> np.ndarray:
    """Length in steps of every episode of a table, ``(E,)`` int64."""
    lengths: np.ndarray = pa.compute.list_value_length(table[REWARDS]).to_numpy().astype(np.int64)
    return lengths


def read_blocks(task: Task, path: Path) -> Iterator[EpisodeBlock]:
    """Read a data file, one row group at a time.

    Raises:
        UserError: the columns of a row have different lengths.
    """
    row = 0
    with pq.ParquetFile(path) as file:
        if not file.num_row_groups:
            yield block_of(task, file.schema_arrow.empty_table())
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            _check_lengths(path, row, table)
            yield block_of(task, table)
            row += table.num_rows


def read_episode(task: Task, path: Path, row: int) -> EpisodeBlock:
    """Read one episode of a data file; only its row group is read.

    Raises:
        UserError: there is no such row, or its columns have different lengths.
    """
    with pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if first <= row < first + num_rows:
                table = file.read_row_group(group).slice(row - first, 1)
                _check_lengths(path, row, table)
                return block_of(task, table)
            first += num_rows
    raise UserError(f"{path} has {first} rows, so there is no row {row}; its side table belongs to another file")


def _check_lengths(path: Path, first_row: int, table: pa.Table) -> None:
    lengths = {name: pa.compute.list_value_length(table[name]).to_numpy() for name in table.column_names}
    for name, found in lengths.items():
        wrong = np.flatnonzero(found != lengths[REWARDS])
        if len(wrong):
            row = int(wrong[0])
            raise UserError(
                f"{path}, row {first_row + row}: {found[row]} values in {name} for {lengths[REWARDS][row]} rewards"
            )


def block_of(task: Task, table: pa.Table) -> EpisodeBlock:
    """Convert rows of a data file, whose columns have equal lengths."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    rewards = columns[REWARDS]
    if isinstance(rewards, pa.ChunkedArray):  # a table without rows
        rewards = pa.array([], rewards.type)
        columns = {name: pa.array([], column.type) for name, column in columns.items()}
    lengths = rewards.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return EpisodeBlock(
        lengths=lengths,
        observations=observation_values(task, columns),
        texts=columns[TEXTS].flatten() if task.has_text else None,
        actions=step_matrix(columns[action_column(task)].flatten()),
        rewards=rewards.flatten().to_numpy(),
        labels=step_matrix(columns[label_column(task)].flatten()) if label_column(task) in columns else None,
    )


# Corpora: one row is one document. ``Corpus.has_images`` decides whether there is an image column.

DOCUMENT_TEXT = "text"
DOCUMENT_IMAGE = "images"  # JAT's name for the one image of a document
DOCUMENTS_SUFFIX = "-documents"  # config name of a corpus's side table = corpus name + this suffix


def document_features(corpus: Corpus) -> Features:
    """Columns of a corpus as ``datasets.Features``, the same as JAT's."""
    from datasets import Features, Image, Value

    image = {DOCUMENT_IMAGE: Image()} if corpus.has_images else {}
    return Features({**image, DOCUMENT_TEXT: Value("string")})


def document_side_features() -> Features:
    """Columns of a corpus's side table, which has one row per row of the source that belongs to the split."""
    from datasets import Features, Value

    return Features(
        {
            "index": Value("int64"),  # index of the row in the source
            "row": Value("int32"),  # row of the data file of the same number; null if rejected
            "characters": Value("int32"),  # length of the text
            "image_bytes": Value("int32"),  # null without an image
            "origin": Value("string"),  # origin of the document, such as its URL; null if unknown
            "rejected": Value("string"),  # the reason, or null
        }
    )


def documents_table(corpus: Corpus, documents: Sequence[Document]) -> pa.Table:
    """Convert accepted documents to rows."""
    schema = document_features(corpus).arrow_schema
    arrays = []
    for field in schema:
        if field.name == DOCUMENT_IMAGE:
            values: list[Any] = [{"bytes": document.image, "path": None} for document in documents]
        else:
            values = [document.text for document in documents]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def document_side_table(documents: Sequence[Document], first_row: int = 0) -> pa.Table:
    """Side table of documents, rejected ones included; the first accepted one is row ``first_row`` of the data file."""
    rows, num_rows = [], first_row
    for document in documents:
        rows.append(
            {
                "index": document.index,
                "row": None if document.rejected else num_rows,
                "characters": len(document.text),
                "image_bytes": None if document.image is None else len(document.image),
                "origin": document.origin,
                "rejected": document.rejected,
            }
        )
        num_rows += document.rejected is None
    return pa.Table.from_pylist(rows, document_side_features().arrow_schema)


@dataclass(frozen=True)
class DocumentBlock:
    """Consecutive documents.

    Attributes:
        texts: D texts as an Arrow array.
        images: D JPEG or PNG files as an Arrow array, or None.
    """

    texts: pa.Array
    images: pa.Array | None


def read_documents(path: Path) -> Iterator[DocumentBlock]:
    """Read a data file of a corpus, one row group at a time."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            # A row group is one record batch unless its strings exceed 2 GiB, far above the writer's row group size.
            for batch in file.read_row_group(group).to_batches():
                images = batch.column(DOCUMENT_IMAGE).field("bytes") if DOCUMENT_IMAGE in batch.schema.names else None
                yield DocumentBlock(batch.column(DOCUMENT_TEXT), images)
