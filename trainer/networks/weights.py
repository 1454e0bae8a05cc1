"""Reads the parameters of a network from a file; all mismatches are reported before any parameter is read.

And why a file of parameters could not be written.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.errors import UserError

FILE_NAME = "model.safetensors"
_MOST_NAMED = 5


def read_weights(
    folder: Path,
    model: nn.Module,
    origin: str,
    choose: Callable[[Collection[str]], dict[str, str]] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the state of ``model``, in its own dtypes, from the file in ``folder``.

    Args:
        folder: a checkpoint.
        model: the network to load; only names, shapes and dtypes are used.
        origin: name of the folder in messages.
        choose: maps the names in the file to a dict from the model's names to names in the file; None if they are
            equal.

    Raises:
        UserError: the file is missing, damaged, or of another network; the message lists the differences.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{origin} has no {FILE_NAME} (a pytorch_model.bin is not read: it could run code)")
    expected = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            stored = list(file.keys())
            names = choose(stored) if choose else {name: name for name in stored}
            found = {ours: list(file.get_slice(theirs).get_shape()) for ours, theirs in names.items()}
            _compare(found, {name: list(value.shape) for name, value in expected.items()}, origin)
            return {ours: file.get_tensor(theirs).to(expected[ours].dtype) for ours, theirs in names.items()}
    except SafetensorError as error:
        raise UserError(f"{origin}: {FILE_NAME} is damaged ({error}); get it again") from error


def _compare(found: dict[str, list[int]], expected: dict[str, list[int]], origin: str) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} is {shape}, not {expected[name]}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    if problems:
        more = f" and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise UserError(
            f"{origin}: {FILE_NAME} does not fit the network that its config.json describes: "
            f"{'; '.join(problems[:_MOST_NAMED])}{more}"
        )


@contextlib.contextmanager
def os_errors(directory: Path) -> Iterator[None]:
    """Raise the system's OSError when safetensors cannot write; safetensors wraps it in an error text of its own.

    Raises:
        OSError: for example for a full disk.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(directory)) from error
