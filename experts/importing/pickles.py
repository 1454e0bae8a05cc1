"""Read untrusted pickles as data (numbers, texts, lists, dicts and NumPy arrays) without executing code.

A pickle is a program: it names functions and the arguments to call them with. Here every name, including NumPy's,
resolves to an inert object that only stores its arguments, so nothing is imported or executed. Float arrays are then
decoded from these objects. The opcodes are scanned before loading, because some allocate more memory than the file has
content for.
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

# Exceptions raised by damaged pickles and by unexpected structures.
DAMAGED = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, MemoryError, OverflowError,
    RecursionError,
)  # fmt: skip


def read_pickle(path: Path, expected: str) -> Any:
    """Read a pickle; everything except plain Python values becomes an ``Inert``.

    Args:
        path: the file.
        expected: description of the expected content, for messages.

    Raises:
        UserError: the file is missing, too large, or not a complete pickle.
    """
    check_file(path, MOST_BYTES)
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give {expected}") from error
    except DAMAGED as error:
        raise UserError(f"{path} is not a whole pickle ({error}); expected {expected}, copy it again") from error


def loads(raw: bytes) -> Any:
    """Like ``read_pickle``, for bytes.

    Raises:
        ValueError: the pickle allocates more memory than it has content for; or any other of ``DAMAGED``.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES:,} instructions")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > len(raw):
            raise ValueError(f"it asks for room for {argument:,} values, and has {len(raw):,} bytes")
    return _InertUnpickler(io.BytesIO(raw), encoding="latin1").load()


class Inert:
    """Placeholder for every object that a pickle names, calls or fills; stores arguments and state, does nothing."""

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
    """Decode the float array that NumPy's reconstruction function would have returned, as float64.

    Raises:
        ValueError: ``value`` is not a float array; or any other of ``DAMAGED``.
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
    """Return the items of a one-dimensional array of Python objects.

    Raises:
        ValueError: ``value`` is not an object array; or any other of ``DAMAGED``.
    """
    if not _is_call(value, "numpy.core.multiarray._reconstruct") or value.state[2].args[0] != "O8":
        raise ValueError(f"expected an array of objects, found {_describe(value)}")
    return list(value.state[4])


def number_of(value: Any) -> float:
    """Return a Python number or a NumPy scalar as a float.

    Raises:
        ValueError: ``value`` is not a number; or any other of ``DAMAGED``.
    """
    if _is_call(value, "numpy.core.multiarray.scalar"):
        dtype, raw = value.args
        return float(np.frombuffer(_bytes(raw), _dtype(dtype))[0])
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"expected a number, found {_describe(value)}")


def _is_call(value: Any, *names: str) -> bool:
    """Whether ``value`` is a call of one of these NumPy functions, by its name in NumPy 1 or 2."""
    return isinstance(value, Inert) and value.name.replace("numpy._core.", "numpy.core.") in names


def _dtype(value: Any) -> np.dtype:
    if not _is_call(value, "numpy.dtype") or value.args[0] not in ("f4", "f8") or value.state[1] not in ("<", ">"):
        raise ValueError(f"expected floats, found {_describe(value)}")
    return np.dtype(value.state[1] + value.args[0])


def _bytes(value: Any) -> bytes:
    # Pickle protocol 2 stores bytes as text and a call that encodes it; Python 2 stores them as text only.
    if isinstance(value, Inert) and value.name == "_codecs.encode" and isinstance(value.args[0], str):
        return value.args[0].encode("latin1")
    if isinstance(value, str):
        return value.encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError(f"expected bytes, found {_describe(value)}")


def _describe(value: Any) -> str:
    return value.name[:100] if isinstance(value, Inert) else type(value).__name__
