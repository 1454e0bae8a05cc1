"""Damaged copies of a JSON file, as a disk, another version or somebody else could leave it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

# In place of any value: other types, numbers that are none or too large, names that are paths or markup.
WRONG: tuple[Any, ...] = (
    None, True, -1, 0.5, 10**400, float("inf"), float("nan"), "", "../../x", "<b>\n\x1b[2J", [], [[1]], {}, {"a": 1},
)  # fmt: skip
# In place of the whole file; the last is nested deeper than any parser follows.
WHOLE = (b"", b"\xff\xfe\x00", b"null", b"1", b'"x"', b"[]", b"{}", b'{"unknown": 1}', b"[" * 100_000)


def damaged(text: str, most_items: int = 2) -> Iterator[bytes]:
    """Yield contents in which one thing is wrong, in a fixed order.

    Args:
        text: the intact file.
        most_items: number of items of each list and object that are damaged.
    """
    yield from WHOLE
    yield text[: len(text) // 2].encode()
    intact = json.loads(text)
    for place in _places(intact, most_items):
        for value in WRONG:
            yield json.dumps(_changed(intact, place, value)).encode()
        yield json.dumps(_changed(intact, place, json.loads("[" * 200 + "]" * 200))).encode()
        yield json.dumps(_changed(intact, place, None, is_removed=True)).encode()
        yield json.dumps(_changed(intact, (*place[:-1], "unknown"), 1)).encode() if place[-1] != 0 else b"{"


def _places(value: Any, most_items: int, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in items if isinstance(value, dict) and len(items) < 40 else items[:most_items]:
        yield from _places(item, most_items, (*place, key))


def _changed(intact: Any, place: tuple[Any, ...], value: Any, is_removed: bool = False) -> Any:
    copy = json.loads(json.dumps(intact))
    holder = copy
    for key in place[:-1]:
        holder = holder[key]
    if is_removed:
        del holder[place[-1]]
    elif isinstance(holder, list) and not isinstance(place[-1], int):
        holder.append(value)
    else:
        holder[place[-1]] = value
    return copy
