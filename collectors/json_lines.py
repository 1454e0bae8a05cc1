"""Read untrusted JSON lines, also compressed, one row at a time and with bounded memory per row.

A few compressed kilobytes can expand to gigabytes in one line, so sizes are checked while reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from pipeline.errors import UserError, first_line

MAX_LINE_BYTES = 32 * 2**20
MAX_LIST_BYTES = 256 * 2**20  # limit for a file that is one JSON list instead of lines
CHUNK_BYTES = 2**18
NUM_LOOKED_AT = 256  # rows read to find the column names


def read_lines(file: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a file with these columns; missing values are None.

    Args:
        file: path or address that fsspec opens; its suffix gives the compression.
        columns: names of the columns.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object or too long.
    """
    return ({name: row.get(name) for name in columns} for row in _rows(file))


def columns_of_lines(file: str) -> list[str]:
    """Names of the columns in the first rows.

    Raises:
        UserError: as ``read_lines``.
    """
    return list(dict.fromkeys(name for row in islice(_rows(file), NUM_LOOKED_AT) for name in row))


def _rows(file: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(file), 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number}: no JSON ({first_line(error)})") from error
        for row in found if isinstance(found, list) and number == 1 else [found]:
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: {type(row).__name__} where an object with columns is expected")
            yield row


def _lines(file: str) -> Iterator[bytes]:
    """Lines that are not blank; a file that begins with a list is yielded as a whole."""
    rest, is_list, is_first = b"", False, True
    for chunk in _chunks(file):
        rest += chunk
        if is_first and rest.strip():
            is_list, is_first = rest.lstrip().startswith(b"["), False
        if not is_list:
            *lines, rest = rest.split(b"\n")
            yield from filter(bytes.strip, lines)
        limit = MAX_LIST_BYTES if is_list else MAX_LINE_BYTES
        if len(rest) > limit:
            raise UserError(f"{file}: a line has more than {limit // 2**20} MiB; one row is one line")
    if rest.strip():
        yield rest


def _chunks(file: str) -> Iterator[bytes]:
    import fsspec
    from huggingface_hub.errors import HTTPError

    is_zstd = file.endswith(".zst")
    try:
        with fsspec.open(file, "rb", compression=None if is_zstd else "infer") as handle:
            source = _all_frames(handle) if is_zstd else handle
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except (OSError, EOFError, ValueError, HTTPError, *_decompression_errors()) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)})") from error


def _all_frames(handle: Any) -> Any:
    """A reader of a zstandard file, which may consist of several concatenated frames."""
    try:
        import zstandard
    except ImportError as error:
        raise OSError(f"reading .zst needs the package zstandard: {error}") from error
    return zstandard.ZstdDecompressor().stream_reader(handle, read_across_frames=True)


def _decompression_errors() -> tuple[type[Exception], ...]:
    """Exceptions for corrupt files that are not subclasses of OSError."""
    import lzma
    import zlib

    found: tuple[type[Exception], ...] = (lzma.LZMAError, zlib.error)
    try:
        import zstandard
    except ImportError:
        return found
    return (*found, zstandard.ZstdError)
