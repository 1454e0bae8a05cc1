"""Defines the exceptions that commands print as one line, with an exit code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class UserError(ValueError):
    """Invalid input, detected before work starts.

    The message names the value, what was allowed and the fix. Commands print it in one line, without a traceback, and
    exit with code 2. Non-printable characters are escaped, so that text from an untrusted file cannot control the
    terminal.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message (Arrow's have several lines), or its type if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def how_to_install(extra: str, target: str) -> str:
    """Return the commands that install the packages of an extra, from the package index and in a clone."""
    return f"`pip install 'jat-pipeline[{extra}]'`, or `make {target}` in a clone"


def reason_of(error: BaseException) -> str:
    """Return the type and first line of an error as a stable reason string, so that equal failures can be counted.

    Memory addresses of objects are removed, because they differ between processes.
    """
    text = re.sub(r" at 0x[0-9a-fA-F]+|\b0x[0-9a-fA-F]{6,}\b", "", first_line(error))
    return f"{type(error).__name__}: {text}"


@dataclass(frozen=True)
class JobFailure:
    """Why a job failed: it raised, or its workers died or hung.

    Attributes:
        is_worker_lost: whether the job's worker died or was killed.
        is_bad_input: whether the job raised a ``UserError``, which a retry would not fix.
    """

    job: Any
    reason: str
    is_worker_lost: bool
    is_bad_input: bool = False

    def __str__(self) -> str:
        return f"{self.job}: {self.reason}"


class JobsFailedError(RuntimeError):
    """Some jobs failed (exit code 1); the other jobs are done and their results are kept."""

    def __init__(self, message: str, failures: Sequence[JobFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
