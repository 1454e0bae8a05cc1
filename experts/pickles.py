"""Pickles from elsewhere, read as data: numbers, texts, lists, dicts and NumPy arrays, and nothing is run.

A pickle is a program: it names functions and the arguments to call them with. Here every name, NumPy's included, gives
an inert object that only keeps what it was called with, so nothing is imported and nothing runs; the few records that
describe arrays of floats are then read from these objects. Before it is read at all, its opcodes are looked through:
some ask for memory that no content of theirs fills.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import UserError
from pipeline.foreign import MIB, check_file

MOST_BYTES = 32 * MIB
MOST_OPCODES = 200_000

# What broken pickles, and records that are not as expected, raise.
DAMAGED = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, MemoryError, OverflowError,
    RecursionError,
)  # fmt: skip


def read_pickle(path: Path, expected: str) -> Any:
    """What a pickle holds; of everything but plain Python values an ``Inert``.

    Args:
        path: the file.
        expected: what it should be, for messages.

    Raises:
        UserError: it is missing, too large, or not a whole pickle.
    """
    check_file(path, MOST_BYTES)
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {expected}") from error
    except DAMAGED as error:
        raise UserError(f"{path} is not a whole pickle ({error}); expected {expected}, copy it again") from error


def loads(raw: bytes) -> Any:
    """As ``read_pickle``, of bytes.

    Raises:
        ValueError: it asks for more memory than it has content for; or any other of ``DAMAGED``.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} instructions")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(raw):
            raise ValueError(f"it asks for room for {argument:,} values, and has {len(raw):,} bytes")
    return _InertUnpickler(io.BytesIO(raw), encoding="latin1").load()


class Inert:
    """Stands for anything a pickle names, calls or fills; keeps the arguments and the state, does nothing."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> Inert:
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[Inert]:
        return type("_Inert", (Inert,), {"name": f"{module}.{name}"})


def array_of(value: Any) -> np.ndarray:
    """The float array that a call to NumPy's reconstruction would have made, as float64.

    Raises:
        ValueError: it is something else; or any other of ``DAMAGED``.
    """
    if _is_call(value, "numpy.core.multiarray._reconstruct"):
        order: Any
        _, shape, dtype, is_fortran, raw = value.state
        order = "F" if is_fortran else "C"
    elif _is_call(value, "numpy.core.numeric._frombuffer"):
        raw, dtype, shape, order = value.args
    else:
        raise ValueError(f"expected an array, found {_describe(value)}")
    return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order=order).astype(np.float64)


def objects_of(value: Any) -> list[Any]:
    """What a one-dimensional array of Python objects holds.

    Raises:
        ValueError: it is something else; or any other of ``DAMAGED``.
    """
    if not _is_call(value, "numpy.core.multiarray._reconstruct") or value.state[2].args[0] != "O8":
        raise ValueError(f"expected an array of objects, found {_describe(value)}")
    return list(value.state[4])


def number_of(value: Any) -> float:
    """A Python number or a NumPy scalar.

    Raises:
        ValueError: it is something else; or any other of ``DAMAGED``.
    """
    if _is_call(value, "numpy.core.multiarray.scalar"):
        dtype, raw = value.args
        return float(np.frombuffer(_bytes(raw), _dtype(dtype))[0])
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"expected a number, found {_describe(value)}")


def _is_call(value: Any, *names: str) -> bool:
    """Whether a pickle asked for one of NumPy's functions, by the names of NumPy 1 or 2."""
    return isinstance(value, Inert) and value.name.replace("numpy._core.", "numpy.core.") in names


def _dtype(value: Any) -> np.dtype:
    if not _is_call(value, "numpy.dtype") or value.args[0] not in ("f4", "f8") or value.state[1] not in ("<", ">"):
        raise ValueError(f"expected floats, found {_describe(value)}")
    return np.dtype(value.state[1] + value.args[0])


def _bytes(value: Any) -> bytes:
    # Pickles of protocol 2 hold bytes as text and a call that encodes it; those of Python 2 as text alone.
    if isinstance(value, Inert) and value.name == "_codecs.encode" and isinstance(value.args[0], str):
        return value.args[0].encode("latin1")
    if isinstance(value, str):
        return value.encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError(f"expected bytes, found {_describe(value)}")


def _describe(value: Any) -> str:
    return value.name[:100] if isinstance(value, Inert) else type(value).__name__
