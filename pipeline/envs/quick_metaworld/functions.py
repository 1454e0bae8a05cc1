"""Copies of functions that metaworld's own functions call, with the same results and less overhead.

``with_quick_globals`` gives a subclass of one of metaworld's classes the functions of that class, with the same code
and other globals: ``np``, ``reward_utils``, ``Rotation`` and so on stand for what is defined here, without numpy's and
scipy's checks for other kinds of input. metaworld's own modules are not changed.
"""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
from metaworld.policies import action as policy_action
from metaworld.policies import policy
from metaworld.utils import reward_utils
from numpy._core import umath
from scipy.spatial.transform import Rotation  # type: ignore[import-untyped]

clip: Any = umath.clip  # type: ignore[attr-defined]  # np.clip without its checks; numpy has no public name for it
FLOAT64 = np.dtype(np.float64)
CONTIGUOUS = (8,)  # strides of a contiguous vector of float64
# scipy orthogonalises a matrix whose rows' products exceed 1e-12; half of it leaves room for another order of summing.
MAX_ROW_PRODUCT = 5e-13
# Of the functions that fall to 0.1 at the margin, as ``reward_utils`` computes them.
SCALES = {"long_tail": np.sqrt(1 / 0.1 - 1), "gaussian": np.sqrt(-2 * np.log(0.1))}


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    """Compute ``np.linalg.norm``, the Euclidean norm of a vector with less overhead."""
    if (
        type(x) is np.ndarray
        and x.strides == CONTIGUOUS
        and x.dtype is FLOAT64
        and (ord is None or ord == 2)
        and axis is None
        and not keepdims
    ):
        return np.float64(math.sqrt(x.dot(x)))
    return np.linalg.norm(x, ord, axis, keepdims)


def hstack(arrays: Any) -> Any:
    """Compute ``np.hstack``, of vectors with less overhead."""
    return (np.concatenate if getattr(arrays[0], "ndim", 0) == 1 else np.hstack)(arrays)


def tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: Any = 0.0,
    sigmoid: Any = "gaussian",
    value_at_margin: float = 0.1,
) -> Any:
    """Compute ``reward_utils.tolerance``, of a number with the usual functions with less overhead."""
    scale = SCALES.get(sigmoid)
    if scale is None or value_at_margin != 0.1 or not (type(x) is np.float64 or type(x) is float):
        return reward_utils.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    lower, upper = bounds
    if lower > upper:
        raise ValueError("Lower bound must be <= upper bound.")
    if margin < 0:
        raise ValueError(f"`margin` must be non-negative. Current value: {margin}")
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    squared = ((lower - x if x < lower else x - upper) / margin * scale) ** 2
    return (1 / (squared + 1) if sigmoid == "long_tail" else np.exp(-0.5 * squared)).item()


def length(*values: float) -> float:
    """Compute the Euclidean length, summed as ``np.linalg.norm`` does."""
    vector = np.array(values)
    return math.sqrt(vector.dot(vector))


class OneRotation:
    """The part of scipy's ``Rotation`` that metaworld uses: the quaternion of one rotation matrix."""

    def __init__(self, matrix: np.ndarray) -> None:
        self._matrix = matrix

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> OneRotation:
        return cls(matrix)

    def as_quat(self) -> np.ndarray:
        """Compute the quaternion ``(4,)``, scalar last."""
        (a, b, c), (d, e, f), (g, h, i) = self._matrix.tolist()
        is_orthogonal = (
            abs(a * d + b * e + c * f) < MAX_ROW_PRODUCT
            and abs(a * g + b * h + c * i) < MAX_ROW_PRODUCT
            and abs(d * g + e * h + f * i) < MAX_ROW_PRODUCT
            and abs(a * a + b * b + c * c - 1) < MAX_ROW_PRODUCT
            and abs(d * d + e * e + f * f - 1) < MAX_ROW_PRODUCT
            and abs(g * g + h * h + i * i - 1) < MAX_ROW_PRODUCT
        )
        if not is_orthogonal or a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g) < 0.5:
            quaternion: np.ndarray = Rotation.from_matrix(self._matrix).as_quat()
            return quaternion
        trace = a + e + i
        largest = max(a, e, i, trace)
        if a == largest:
            x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
        elif e == largest:
            x, y, z, w = d + b, 1 - trace + 2 * e, h + f, c - g
        elif i == largest:
            x, y, z, w = g + c, h + f, 1 - trace + 2 * i, d - b
        else:
            x, y, z, w = h - f, c - g, d - b, 1 + trace
        length = math.sqrt(x * x + y * y + z * z + w * w)
        return np.array([x / length, y / length, z / length, w / length])


def move(from_xyz: Any, to_xyz: Any, p: float) -> Any:
    """Compute a script's ``move``, without its warning that actions exceed [-1, 1], to which the rollout clips them."""
    return p * (to_xyz - from_xyz)


class QuickAction:
    """A script's ``Action``, without its checks."""

    def __init__(self, structure: dict[str, Any]) -> None:
        self._structure = structure
        self.array = np.zeros(4, np.float32)

    def __setitem__(self, key: str, value: Any) -> None:
        self.array[self._structure[key]] = value


_numpy = types.SimpleNamespace(**vars(np))
_numpy.linalg = types.SimpleNamespace(**{**vars(np.linalg), "norm": norm})
_numpy.clip, _numpy.hstack = clip, hstack
_rewards = types.SimpleNamespace(**{**vars(reward_utils), "tolerance": tolerance})
# What metaworld's functions get instead of these modules, classes and functions.
QUICK = (
    (np, _numpy),
    (reward_utils, _rewards),
    (reward_utils.tolerance, tolerance),
    (Rotation, OneRotation),
    (policy.move, move),
    (policy_action.Action, QuickAction),
)


def with_quick_globals(original: Any, quick: Any) -> None:
    """Give ``quick``, a subclass of ``original``, the functions of ``original`` with other globals."""
    names = {
        name: next((new for old, new in (*QUICK, (original, quick)) if value is old), value)
        for name, value in vars(sys.modules[original.__module__]).items()
    }
    for name, value in vars(original).items():
        if name == "__init__":
            continue
        if isinstance(value, types.FunctionType):
            setattr(quick, name, _copied(value, names, quick))
        elif isinstance(value, staticmethod):
            setattr(quick, name, staticmethod(_copied(value.__func__, names, quick)))
        elif isinstance(value, property) and value.fget is not None:
            setattr(quick, name, property(_copied(value.fget, names, quick)))


def _copied(function: Any, names: dict[str, Any], owner: Any) -> Any:
    """Return a function with the same code and other globals, whose ``super()`` looks behind ``owner``.

    metaworld decorates some of them with checks that a task is set, or that an observation is used up; those go.
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if function.__name__ == "inner" and "func" in cells:
        return _copied(cells["func"].cell_contents, names, owner)
    closure = tuple(types.CellType(owner) if name == "__class__" else cell for name, cell in cells.items())
    copied = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
