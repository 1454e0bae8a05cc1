"""Reads JSON files into dataclasses, with a check of all types before an object is created.

    read_record(path, ShardManifest, "the manifest of a shard", "delete it and run `jat collect` again")

A file may be damaged, of another version or from an untrusted source. Any mismatch raises one ``UserError`` that names
the file and the field: wrong types, missing or unknown fields, or too deep nesting.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import UserError
from pipeline.files import read_json

RecordT = TypeVar("RecordT")
MAX_SHOWN = 40  # characters of a value in an error


class RecordError(ValueError):
    """A value does not have the type of its field; the message names the field."""


def read_record(path: Path, kind: type[RecordT], what: str, fix: str) -> RecordT:
    """Read a JSON file into a dataclass.

    Args:
        path: the file to read.
        kind: the dataclass.
        what: description of the file for errors, such as ``the manifest of a shard``.
        fix: what the user can do if the file does not match.

    Raises:
        UserError: the file is not valid JSON, or does not match the dataclass.
        FileNotFoundError: the file does not exist.
    """
    try:
        return record_of(read_json(path), kind)
    except RecordError as error:
        raise UserError(f"{path} is not {what} ({error}); {fix}") from error


def read_values(path: Path, kind: Any, what: str, fix: str) -> Any:
    """Read a JSON file like ``read_record``, but into a dict or a list, such as ``dict[str, int]``."""
    try:
        return value_of(read_json(path), kind, "")
    except RecordError as error:
        raise UserError(f"{path} is not {what} ({error}); {fix}") from error


def record_of(raw: Any, kind: type[RecordT], where: str = "") -> RecordT:
    """Convert a JSON object to a dataclass.

    Args:
        raw: a value as returned by ``json.loads``.
        kind: the dataclass; the types of its fields are checked, and fields with a default may be missing.
        where: path of this record inside a larger one, for errors.

    Raises:
        RecordError: a field is missing, unknown or of another type, or the dataclass rejects the values.
    """
    if not isinstance(raw, Mapping):
        raise RecordError(f"{where or 'it'} is {_shown(raw)}, expected an object")
    known = _fields_of(kind)
    unknown = [name for name in raw if name not in known]
    if unknown:
        raise RecordError(f"unknown field {_shown(f'{where}.{unknown[0]}'.strip('.'))}")
    missing = [name for name, (_, is_needed) in known.items() if is_needed and name not in raw]
    if missing:
        raise RecordError(f"{f'{where}.{missing[0]}'.strip('.')} is missing")
    values = {name: value_of(value, known[name][0], f"{where}.{name}".strip(".")) for name, value in raw.items()}
    return kind(**values)


def value_of(raw: Any, kind: Any, where: str) -> Any:
    """Convert a JSON value to a type: a dataclass, ``dict``, ``list``, ``tuple``, literal, union or scalar type.

    Raises:
        RecordError: as ``record_of``.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if origin in (Union, types.UnionType):
        return _one_of(raw, args, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return record_of(raw, kind, where)
    if origin is Literal and raw in args and type(raw) in {type(arg) for arg in args}:
        return raw
    if origin in (dict, Mapping) and isinstance(raw, Mapping):
        return {value_of(k, args[0], where): value_of(v, args[1], f"{where}.{k}".strip(".")) for k, v in raw.items()}
    if origin in (list, tuple) and isinstance(raw, list | tuple):
        return _sequence(raw, origin, args, where)
    if kind is float and type(raw) in (int, float):
        try:
            return float(raw)
        except OverflowError:
            raise RecordError(f"{where or 'it'} is {_shown(raw)}, too large a number") from None
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    if kind in (int, str, bool, types.NoneType) and type(raw) is kind:
        return raw
    raise RecordError(f"{where or 'it'} is {_shown(raw)}, expected {_named(kind)}")


def _one_of(raw: Any, kinds: tuple[Any, ...], where: str) -> Any:
    """Convert to the first matching type of a union; if none matches, raise the error of the last non-None type."""
    if raw is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    for kind in others[:-1]:
        try:
            return value_of(raw, kind, where)
        except RecordError:
            continue
    return value_of(raw, others[-1], where)


def _sequence(raw: Sequence[Any], origin: type, args: tuple[Any, ...], where: str) -> Any:
    if origin is list or args[1:] == (...,):
        return origin(value_of(value, args[0], f"{where}[{index}]") for index, value in enumerate(raw))
    if len(raw) != len(args):
        raise RecordError(f"{where or 'it'} has {len(raw)} values, expected {len(args)}")
    return tuple(value_of(value, arg, f"{where}[{i}]") for i, (value, arg) in enumerate(zip(raw, args, strict=True)))


_FIELDS: dict[Any, dict[str, tuple[Any, bool]]] = {}  # cache: reading annotations takes longer than checking a record


def _fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a dataclass, and whether the field is required (has no default)."""
    if kind not in _FIELDS:
        _FIELDS[kind] = _read_fields(kind)
    return _FIELDS[kind]


def _read_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    hints = get_type_hints(kind)
    nothing = dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is nothing and field.default_factory is nothing)
        for field in dataclasses.fields(kind)
        if field.init
    }


def _shown(raw: Any) -> str:
    """Format a value for an error: the first characters of its ``repr``, or only the kind of a container."""
    if isinstance(raw, Mapping):
        return "an object"
    if isinstance(raw, list):
        return "a list"
    if isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) >= 10**MAX_SHOWN:
        return "a huge number"
    text = "null" if raw is None else repr(raw)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _named(kind: Any) -> str:
    """Format a type for an error, in JSON's terms."""
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", types.NoneType: "null"}
    if kind in names:
        return names[kind]
    origin = get_origin(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return "an object" if origin in (dict, Mapping) else "a list" if origin in (list, tuple) else str(kind)
