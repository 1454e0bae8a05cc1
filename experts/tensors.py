"""Load tensors from untrusted files saved with torch, without executing code or allocating more than the file holds."""

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

# Policies with their optimiser state have a hundredth of this size.
MOST_BYTES = 1024 * MIB

# Exceptions raised by truncated or unexpected zips, pickles and state dicts.
DAMAGED = (
    OSError, pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, NotImplementedError,
    RuntimeError, RecursionError, MemoryError, OverflowError,
)  # fmt: skip


class NotTensorsError(ValueError):
    """A file is incomplete, or contains other objects than tensors, numbers and texts."""


def load_tensors(source: Path | bytes, origin: str, allowed: Sequence[Any] = ()) -> Any:
    """Load a file written by ``torch.save`` to the CPU.

    Args:
        source: a file, or its content.
        origin: name of the source in messages.
        allowed: globals that its pickle may use besides those that construct tensors.

    Raises:
        NotTensorsError: the file is damaged, or contains more than tensors, numbers and texts.
        UserError: the file or its unpacked size is too large.
    """
    if isinstance(source, Path):
        check_file(source, MOST_BYTES)
    check_zip(source if isinstance(source, Path) else io.BytesIO(source), origin, MOST_BYTES)
    try:
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about other pickles before it rejects them
            return torch.load(
                source if isinstance(source, Path) else io.BytesIO(source), map_location="cpu", weights_only=True
            )
    except DAMAGED as error:
        raise NotTensorsError(first_line(error)) from error


def check_arrays(arrays: Mapping[Any, Any], origin: str) -> None:
    """Check that ``arrays`` is a state dict: names with plain CPU tensors whose storage is as large as their shape.

    An expanded tensor can repeat one number over a shape of terabytes, which the first copy would allocate.

    Raises:
        UserError: an array is invalid; the message names it.
    """
    for name, array in arrays.items():
        if not isinstance(name, str) or not isinstance(array, Tensor):
            raise UserError(f"{origin} is not a state dict of named tensors; it has {str(name)[:100]!r}")
        is_plain = array.layout == torch.strided and array.device.type == "cpu"
        is_plain = is_plain and not array.is_quantized and not array.is_complex()
        if not is_plain or array.numel() * array.element_size() > array.untyped_storage().nbytes():
            raise UserError(f"{origin}: {name[:100]!r} is not a plain array, or larger than its numbers; it is damaged")
