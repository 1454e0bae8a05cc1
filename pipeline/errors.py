"""The exceptions that commands turn into one readable line and an exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class UserError(ValueError):
    """Bad input, found before work starts.

    The message names the value, what was allowed and the fix. Commands print it in one line, without a
    traceback, and exit with code 2. What it repeats of a stranger's file cannot steer a terminal: characters that are
    not printed are shown as Python writes them.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """Of an error's message, such as Arrow's, which goes on with what it did; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def how_to_install(extra: str, target: str) -> str:
    """What to run for the packages of an extra, from the index and in a clone."""
    return f"`pip install 'jat-pipeline[{extra}]'`, or `make {target}` in a clone"


def reason_of(error: BaseException) -> str:
    """Type and first line of an error as the reason of a rejection: the same whenever the same goes wrong.

    Addresses of objects are left out: they differ from process to process, and one fault would count as many.
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{6,}\b", "", first_line(error))
    return f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class JobFailure:
    """Why a job was given up: it raised, or the workers that ran it died or hung.

    Attributes:
        is_bad_input: it raised a ``UserError``, which trying again does not make better.
    """

    job: Any
    reason: str
    is_worker_lost: bool
    is_bad_input: bool = False

    def __str__(self) -> str:
        return f"{self.job}: {self.reason}"


class JobsFailedError(RuntimeError):
    """Some jobs failed (exit code 1); the others are done and their results kept."""

    def __init__(self, message: str, failures: Sequence[JobFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
