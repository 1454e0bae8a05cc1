"""Tensors from files that strangers saved with torch: data only, and no more of it than the file holds."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError, first_line
from pipeline.foreign import MIB, check_file, check_zip

# Policies with their optimiser's state are a hundredth of this.
MOST_BYTES = 1024 * MIB

# What cut off or foreign zips, pickles and state dicts raise.
DAMAGED = (
    OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, NotImplementedError,
    RuntimeError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


class NotTensorsError(ValueError):
    """A file holds something else than tensors, numbers and texts, or is not whole."""


def load_tensors(source: Path | bytes, origin: str, allowed: Sequence[Any] = ()) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Args:
        source: a file, or its content.
        origin: what to call it in messages.
        allowed: functions that its pickle may call besides those that make tensors.

    Raises:
        NotTensorsError: it is damaged, or holds more than tensors, numbers and texts.
        UserError: it is too large, or unpacks to too much.
    """
    if isinstance(source, Path):
        check_file(source, MOST_BYTES)
    check_zip(source if isinstance(source, Path) else io.BytesIO(source), origin, MOST_BYTES)
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of other pickles before it refuses them
            return torch.load(
                source if isinstance(source, Path) else io.BytesIO(source), map_location="cpu", weights_only=True
            )
    except DAMAGED as error:
        raise NotTensorsError(first_line(error)) from error


def check_arrays(arrays: Mapping[Any, Any], origin: str) -> None:
    """Refuse what is no state dict: names with plain arrays of floats that are as large as they say.

    A tensor can repeat one number over a shape of terabytes, which the first copy would fill.

    Raises:
        UserError: names the array.
    """
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, Tensor):
            raise UserError(f"{origin} is not a state dict of named tensors; it has {str(name)[:100]!r}")
        is_plain = array.layout == torch.strided and array.device.type == "cpu"
        is_plain = is_plain and not array.is_quantized and not array.is_complex()
        if not is_plain or array.numel() * array.element_size() > array.untyped_storage().nbytes():
            raise UserError(f"{origin}: {name[:100]!r} is not a plain array, or larger than its numbers; it is damaged")
