from __future__ import annotations

import logging

import pytest

from pipeline.runtime.progress import Progress


def test_a_line_comes_at_most_every_interval_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr("time.time", lambda: now)
    with caplog.at_level(logging.INFO, "progress"):
        progress = Progress("episodes", 40, interval_s=5.0)
        for moment, amount, note in ((102.0, 5, ""), (106.0, 5, "2 rejected"), (108.0, 10, ""), (109.0, 20, "")):
            now = moment
            progress.advance(amount, note)
    assert [record.getMessage() for record in caplog.records if record.name == "progress"] == [
        "10 of 40 episodes, 1.67/s, about 18 s left, 2 rejected",
        "40 of 40 episodes, 4.44/s",
    ]
