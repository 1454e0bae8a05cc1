from __future__ import annotations

import io
import pickle

import pytest

from pipeline.errors import UserError, reason_of


def test_a_message_cannot_steer_a_terminal() -> None:
    error = UserError("kind '\x1b[2J\r' in j\u00fcrgen's file\x00")
    assert str(error) == r"kind '\x1b[2J\r' in j" + "\u00fc" + r"rgen's file\x00"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(f"no image: {io.BytesIO()!r}"), "OSError: no image: <_io.BytesIO object>"),
        (RuntimeError("broken at 0x7f3a2b1c in <Foo at 0xDEADBEEF12>"), "RuntimeError: broken in <Foo>"),
        (RuntimeError("address 0x00007f3a2b1c is not mapped"), "RuntimeError: address  is not mapped"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyError(), "KeyError: KeyError"),
        (ValueError("colour 0xff"), "ValueError: colour 0xff"),
    ],
)
def test_a_reason_is_one_line_without_addresses(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
