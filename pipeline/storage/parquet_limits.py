"""Open untrusted Parquet files: the memory that a file would need is limited before it is read.

A few kilobytes can encode a billion numbers (run-length encoding) or one long text a million times (a dictionary).
Therefore the counts in the footer are checked first, and dictionaries are checked before their texts are expanded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MAX_ROWS = 10**8  # per file
MAX_STEPS = 2**20  # per episode, averaged over a row group: JAT's longest episodes have a tenth
MAX_GROUP_BYTES = 4 * 2**30  # per row group in memory; JAT's humanoid needs a third
MAX_TEXT_BYTES = 2**16  # per text of a step or a side table
MAX_SMALL_BYTES = 2**30  # per side table in memory, which is read as a whole
NOT_READ = pa.ArrowNotImplementedError
WIDTHS = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BOOLEAN": 1, "BYTE_ARRAY": 8}


@contextlib.contextmanager
def open_parquet(source: Any, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file after checking its footer against the limits.

    Args:
        source: a path or an open file.
        options: options of ``pyarrow.parquet.ParquetFile``.

    Raises:
        pyarrow.ArrowException: it is not a Parquet file, or exceeds a limit.
    """
    with pq.ParquetFile(source, **options) as file:
        check_limits(file.metadata)
        yield file


def check_step_texts(source: Any, metadata: pq.FileMetaData, group: int) -> None:
    """Check a row group for long texts in its steps, which would be copied for each step.

    Arrow cannot read every list of texts as dictionaries; lists that it cannot read so are skipped.

    Args:
        source: a path or an open file.
        metadata: footer of the file.
        group: index of the row group.

    Raises:
        pyarrow.ArrowException: the row group cannot be read, or a text is too long.
    """
    texts = [name for name in _leaves(metadata) if _is_text(metadata, name) and "." in name]
    if not texts:
        return
    with pq.ParquetFile(source, metadata=metadata, read_dictionary=texts) as file, contextlib.suppress(NOT_READ):
        for batch in file.iter_batches(row_groups=[group], columns=[name.split(".")[0] for name in texts]):
            for column in batch.columns:
                check_texts(_innermost(column))


def _innermost(column: pa.Array) -> pa.Array:
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.values
    return column


def check_limits(metadata: pq.FileMetaData, max_group_bytes: int | None = None) -> None:
    """Check the footer of a file against the limits.

    Args:
        metadata: footer of the file.
        max_group_bytes: limit for a row group in memory; None: ``MAX_GROUP_BYTES``.

    Raises:
        pyarrow.ArrowInvalid: a limit is exceeded; the message names it.
    """
    limit = MAX_GROUP_BYTES if max_group_bytes is None else max_group_bytes
    if metadata.num_rows > MAX_ROWS:
        raise pa.ArrowInvalid(f"it says {metadata.num_rows:,} rows, more than {MAX_ROWS:,}")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(index) for index in range(group.num_columns)]
        num_bytes = sum(max(_num_bytes(column), column.total_uncompressed_size) for column in columns)
        if num_bytes > limit:
            raise pa.ArrowInvalid(
                f"row group {number} takes {num_bytes / 2**30:,.1f} GiB in memory, more than "
                f"{limit / 2**30:g}; write the file with smaller row groups"
            )


def check_steps(metadata: pq.FileMetaData, column: str) -> None:
    """Check a file of episodes for implausibly long episodes.

    Raises:
        pyarrow.ArrowInvalid: the rows of a group have more than ``MAX_STEPS`` values of a column on average.
    """
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in range(group.num_columns):
            found = group.column(index)
            if found.path_in_schema.split(".")[0] == column and found.num_values > MAX_STEPS * group.num_rows:
                raise pa.ArrowInvalid(
                    f"row group {number} has {found.num_values:,} steps in {group.num_rows:,} episodes; at most "
                    f"{MAX_STEPS:,} per episode are read"
                )


def read_small(source: Any, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all columns of a side table, or some of them.

    Raises:
        pyarrow.ArrowException: it is not a Parquet file, or exceeds a limit.
    """
    metadata = pq.read_metadata(source)
    check_limits(metadata, MAX_SMALL_BYTES)
    texts = [name for name in _leaves(metadata) if _is_text(metadata, name)]
    table = pq.read_table(source, columns=None if columns is None else list(columns), read_dictionary=texts)
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            for chunk in table[field.name].chunks:
                check_texts(chunk)
            plain = table[field.name].cast(field.type.value_type)
            table = table.set_column(place, pa.field(field.name, plain.type, field.nullable), plain)
    return table


def check_texts(texts: pa.Array) -> None:
    """Check a dictionary of texts for long texts.

    Raises:
        pyarrow.ArrowInvalid: a text has more than ``MAX_TEXT_BYTES``.
    """
    if not pa.types.is_dictionary(texts.type) or not len(texts.dictionary):
        return
    longest = pc.max(pc.binary_length(texts.dictionary)).as_py() or 0
    if longest > MAX_TEXT_BYTES:
        raise pa.ArrowInvalid(f"a text has {longest:,} bytes, more than {MAX_TEXT_BYTES:,}")


def _leaves(metadata: pq.FileMetaData) -> list[str]:
    return [metadata.schema.column(index).path for index in range(metadata.num_columns)]


def _is_text(metadata: pq.FileMetaData, path: str) -> bool:
    (index,) = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path == path]
    return metadata.schema.column(index).logical_type.type == "STRING"


def _num_bytes(column: pq.ColumnChunkMetaData) -> int:
    """Bytes of the values of a column in memory; for texts and images only their offsets."""
    return int(column.num_values) * WIDTHS.get(column.physical_type, 1)
