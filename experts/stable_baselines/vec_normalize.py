"""The observation statistics of Stable-Baselines3's ``VecNormalize``, read from its pickle as data.

A pickle is a program: it names functions and the arguments to call them with. Here every name, numpy's included, gives
an inert object that only keeps what it was called with, so nothing is imported and nothing runs; the few records that
describe arrays of floats are then read from these objects.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """What normalises observations: ``clip((x - mean) / sqrt(var + epsilon), +-clip)``.

    Attributes:
        mean, var: float64, of the observation's shape.
    """

    mean: np.ndarray
    var: np.ndarray
    epsilon: float
    clip: float


def read_statistics(path: Path) -> Statistics | None:
    """What ``VecNormalize.save`` wrote; None if it normalised only rewards.

    Raises:
        UserError: the file is missing, cut off, another pickle, or of an environment with a dict of observations.
    """
    try:
        with path.open("rb") as handle:
            root = _InertUnpickler(handle, encoding="latin1").load()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give the file that VecNormalize.save wrote"
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"{path} is not a whole pickle ({error}); expected what VecNormalize.save wrote, copy it again"
        ) from error
    state = root.state if isinstance(root, _Inert) else None
    if not isinstance(state, dict) or not {"norm_obs", "epsilon", "clip_obs"} <= state.keys():
        raise UserError(f"{path} is a pickle of something else; expected what VecNormalize.save wrote")
    if not state["norm_obs"]:
        return None
    if isinstance(state.get("obs_rms"), dict):
        raise UserError(f"{path} has statistics of a dict of observations; give those of a vector of observations")
    try:
        moments = state["obs_rms"].state
        mean, var = _array(moments["mean"]), _array(moments["var"])
        found = Statistics(mean, var, _number(state["epsilon"]), _number(state["clip_obs"]))
    except _DAMAGED as error:
        raise UserError(f"{path} has no readable mean and variance of observations ({error})") from error
    if mean.shape != var.shape or not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
        raise UserError(f"{path} is damaged: mean and variance differ in shape, are not finite, or below 0")
    return found


class _Inert:
    """Stands for anything a pickle names, calls or fills; keeps the arguments and the state, does nothing."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **_: Any) -> _Inert:
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
    def find_class(self, module: str, name: str) -> type[_Inert]:
        return type("_Inert", (_Inert,), {"name": f"{module}.{name}"})


# What broken pickles, and records that are not as expected, raise.
_DAMAGED = (
    pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, MemoryError, OverflowError,
    RecursionError,
)  # fmt: skip


def _is_call(value: Any, *names: str) -> bool:
    """Whether a pickle asked for one of numpy's functions, by the names of numpy 1 or 2."""
    return isinstance(value, _Inert) and value.name.replace("numpy._core.", "numpy.core.") in names


def _array(value: Any) -> np.ndarray:
    """The float array that a call to numpy's reconstruction would have made, as float64."""
    if _is_call(value, "numpy.core.multiarray._reconstruct"):
        order: Any
        _, shape, dtype, is_fortran, raw = value.state
        order = "F" if is_fortran else "C"
    elif _is_call(value, "numpy.core.numeric._frombuffer"):
        raw, dtype, shape, order = value.args
    else:
        raise ValueError(f"expected an array, found {_describe(value)}")
    return np.frombuffer(_bytes(raw), _dtype(dtype)).reshape(shape, order=order).astype(np.float64)


def _number(value: Any) -> float:
    """A Python number or a numpy scalar."""
    if _is_call(value, "numpy.core.multiarray.scalar"):
        dtype, raw = value.args
        return float(np.frombuffer(_bytes(raw), _dtype(dtype))[0])
    if isinstance(value, int | float):
        return float(value)
    raise ValueError(f"expected a number, found {_describe(value)}")


def _dtype(value: Any) -> np.dtype:
    if not _is_call(value, "numpy.dtype") or value.args[0] not in ("f4", "f8") or value.state[1] not in ("<", ">"):
        raise ValueError(f"expected floats, found {_describe(value)}")
    return np.dtype(value.state[1] + value.args[0])


def _bytes(value: Any) -> bytes:
    # Pickles of protocol 2 hold bytes as text and a call that encodes it.
    if isinstance(value, _Inert) and value.name == "_codecs.encode" and isinstance(value.args[0], str):
        return value.args[0].encode("latin1")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError(f"expected bytes, found {_describe(value)}")


def _describe(value: Any) -> str:
    return value.name if isinstance(value, _Inert) else type(value).__name__
