from __future__ import annotations

import pickle

from pipeline.errors import UserError


def test_a_message_cannot_steer_a_terminal() -> None:
    error = UserError("kind '\x1b[2J\r' in j\u00fcrgen's file\x00")
    assert str(error) == r"kind '\x1b[2J\r' in j" + "\u00fc" + r"rgen's file\x00"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
