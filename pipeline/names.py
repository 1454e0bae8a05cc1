"""Checks names and texts out of files that may come from somebody else.

A name becomes a path, a column or a heading, so it must not be able to lead out of a folder or to break a table.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.records import RecordError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_NAME, MAX_TEXT = 200, 2000  # characters


def check_name(what: str, name: str) -> None:
    """Check that a name consists of letters, digits and ``._+-`` only.

    Raises:
        RecordError: it does not; the message contains the name.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise RecordError(f"{what} {name[:MAX_NAME]!r} is no name of letters, digits and ._+-")


def check_relative(what: str, name: str) -> None:
    """Check that a name is a path within a folder: not absolute, no ``..``, no special characters.

    Raises:
        RecordError: it is not; the message contains the name.
    """
    if not is_relative(name):
        raise RecordError(f"{what} {name[:MAX_NAME]!r} is no path within its folder")


def is_relative(name: str) -> bool:
    """Whether a name is a path within a folder on every operating system."""
    path = PurePosixPath(name)
    is_within = not path.is_absolute() and ".." not in path.parts and str(path) == name
    return is_within and "\\" not in name and name.isprintable() and len(name) <= MAX_TEXT


def is_one_line(text: str) -> bool:
    """Whether a text is one line without control characters, of at most ``MAX_TEXT`` characters."""
    is_control = (unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text)
    return len(text) <= MAX_TEXT and not any(is_control)


def check_texts(*groups: Iterable[str | None]) -> None:
    """Check that all texts are single lines."""
    for text in itertools.chain.from_iterable(groups):
        if text is not None and not is_one_line(text):
            raise RecordError(f"{text[:MAX_NAME]!r} is not one line of text")
