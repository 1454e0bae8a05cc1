from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import JobsFailedError, UserError
from pipeline.files import location, read_json, write_json
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import current_stage, reported
from pipeline.runtime.status import SILENT, StageStatus, TaskCount, read_statuses

# A stage that counts two of three and then does nothing for long.
COMMAND = """
import pipeline.runtime.stage as stage, sys, time
from pathlib import Path
from pipeline.runtime.progress import Progress
stage.WRITE_S = 0.2
with stage.reported("dataset", Path(sys.argv[1]), "toy-*"):
    progress = Progress("shards checked", 3)
    progress.advance(2)
    print("counted", flush=True)
    time.sleep(60)
"""


def only(out: Path) -> StageStatus:
    (status,) = read_statuses(out)
    return status


def start(out: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(out)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"counted\n"
    return process


def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_tells_what_it_has_done_and_that_it_is_done(tmp_path: Path) -> None:
    before = time.time()
    with reported("dataset", tmp_path, "toy-*") as live:
        assert current_stage() is live
        progress = Progress("shards checked", 40)
        progress.advance(10)
        live.write()
        told = only(tmp_path)
        assert (told.stage, told.task, told.out, told.state) == ("dataset", "toy-*", str(tmp_path), "running")
        assert (told.unit, told.planned, told.done, told.process) == ("shards checked", 40, 10, os.getpid())
        assert told.is_running and before <= told.started <= told.progressed <= told.updated <= time.time()
        assert told.rate == pytest.approx(10 / (told.updated - told.counting_since))
        assert told.driver_bytes > 10**7 and told.disk_free_bytes and told.disk_free_bytes > 0
        progress.advance(30)
    ended = only(tmp_path)
    assert (ended.state, ended.done, ended.error, ended.condition) == ("done", 40, "", "done")
    assert ended.describe().startswith("40 of 40 shards checked, ")
    assert [path.name for path in (tmp_path / "status" / "dataset").iterdir()] == [ended.file_name]
    assert current_stage() is not live


@pytest.mark.parametrize(
    ("error", "state", "line"),
    [
        (UserError("no such task\nhere"), "failed", "no such task"),
        (JobsFailedError("2 of 3 jobs failed"), "failed", "2 of 3 jobs failed"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (SystemExit(3), "failed", "SystemExit(3)"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(signal.SIGTERM), "stopped", ""),
    ],
)
def test_how_a_run_ended_is_told_in_one_line(error: BaseException, state: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        with reported("dataset", tmp_path):
            raise error
    assert (only(tmp_path).state, only(tmp_path).error) == (state, line)


def test_no_secret_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretword")
    with pytest.raises(UserError):
        with reported("publish", tmp_path):
            raise UserError("401 for hf_verysecretword at https://hub/x?sig=1")
    assert only(tmp_path).error == "401 for [hidden] at https://hub/x?[hidden]"


def test_a_run_that_is_asked_to_end_is_stopped_and_one_that_is_killed_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path)
    until(lambda: only(tmp_path).done == 2)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert (only(tmp_path).state, only(tmp_path).done) == ("stopped", 2)
    process = start(tmp_path)
    until(lambda: only(tmp_path).done == 2 and only(tmp_path).is_running)
    first = only(tmp_path)
    # It tells of itself although it does nothing, and so it is not the same as a dead one.
    until(lambda: only(tmp_path).updated > first.updated)
    assert only(tmp_path).progressed == first.progressed
    process.kill()
    process.wait()
    assert (only(tmp_path).state, only(tmp_path).condition) == ("running", SILENT)
    # From another machine it is known by its silence.
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert only(tmp_path).condition == "running"
    monkeypatch.setattr("pipeline.runtime.status.SILENT_S", 0.5)
    until(lambda: only(tmp_path).condition == SILENT)


def test_a_run_takes_the_place_of_ended_ones_on_the_same_tasks_and_carries_their_times_on(tmp_path: Path) -> None:
    folder = tmp_path / "status" / "collect"
    silent = StageStatus("collect", "toy-*", "", "gone", 1, tasks={"toy-a": TaskCount(4, timed=4, busy_s=2.0)})
    ended = StageStatus("collect", "toy-*", "", "there", 2, "failed", tasks={"toy-a": TaskCount(timed=1, busy_s=1.0)})
    other = StageStatus("collect", "toy-b", "", "there", 3, "done")
    running = StageStatus("collect", "toy-*", "", "there", 4, updated=time.time())
    for status in (silent, ended, other, running):
        write_json(folder / status.file_name, status)
    with reported("collect", tmp_path, "toy-*") as live:
        assert {path.name for path in folder.iterdir()} == {"there-3.json", "there-4.json", live.status.file_name}
    mine = next(status for status in read_statuses(tmp_path) if status.process == os.getpid())
    assert mine.tasks == {"toy-a": TaskCount(timed=5, busy_s=3.0)}


def test_a_run_that_is_refused_leaves_no_folder_where_there_was_none(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        with reported("report", tmp_path / "typo"):
            raise UserError("nothing is evaluated in this run")
    assert not (tmp_path / "typo").exists()


def test_in_an_object_store_it_is_the_same(tmp_path: Path) -> None:
    import fsspec

    out = location("memory://bucket/run")
    assert read_statuses(out) == []
    try:
        with reported("collect", out, "toy-*") as live:
            Progress("episodes", 2).advance(1)
            live.write()
            told = only(out)
            assert (told.out, told.done, told.disk_free_bytes) == ("memory://bucket/run", 1, None)
        assert only(out).state == "done"
    finally:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_place_that_takes_nothing_costs_a_line_of_the_log_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "status").write_text("in the way")
    with caplog.at_level(logging.WARNING, "pipeline"):
        with reported("dataset", tmp_path) as live:
            live.write()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot be written" in line and str(tmp_path) in line


def test_work_does_not_wait_for_a_store_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_writing, may_go_on = threading.Event(), threading.Event()

    def slow(path: Path, value: Any) -> None:
        is_writing.set()
        assert may_go_on.wait(20)
        write_json(path, value)

    with reported("dataset", tmp_path) as live:
        progress = Progress("shards", 9)
        monkeypatch.setattr("pipeline.runtime.stage.write_json", slow)
        thread = threading.Thread(target=live.write)
        thread.start()
        assert is_writing.wait(20)
        progress.advance(5)
        may_go_on.set()
        thread.join()
        assert only(tmp_path).done == 0
    assert only(tmp_path).done == 5


def test_what_other_processes_count_is_asked_for_when_it_is_written(tmp_path: Path) -> None:
    with reported("train", tmp_path) as live:
        live.begin("training steps", 30)
        live.ask = lambda: 12
        live.write()
        assert only(tmp_path).done == 12
        live.ask = lambda: 30
    assert only(tmp_path).describe().startswith("30 of 30 training steps, ")


def test_a_file_of_another_version_can_be_read(tmp_path: Path) -> None:
    with reported("train", tmp_path):
        pass
    path = tmp_path / "status" / "train" / only(tmp_path).file_name
    raw = read_json(path)
    del raw["worker_bytes"]
    path.write_text(json.dumps({**raw, "colour": "red"}))
    assert only(tmp_path).worker_bytes == 0


def test_what_starts_first_is_told_and_its_time_is_in_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    with reported("collect", tmp_path) as live:
        progress = Progress("episodes", 40)
        assert live.status.describe() == "0 of 40 episodes"
        with live.doing("starting Ray"):
            assert live.status.describe() == "starting Ray, 0 of 40 episodes"
            now += 60.0
        assert live.status.describe() == "0 of 40 episodes"
        now += 2.0
        progress.advance(1)
        # 39 at 0.5/s; with the minute of the start it would be 40 minutes.
        assert live.status.describe() == "1 of 40 episodes, 0.5/s, about 78 s left"


def test_the_rate_is_that_of_the_last_minute_and_after_the_end_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    with reported("evaluate", tmp_path) as live:
        progress = Progress("episodes", 2000)
        for amount in [1] * 10 + [100] * 10:  # slow for 100 s, then fast for 100 s
            now += 10.0
            progress.advance(amount)
        assert live.status.rate == pytest.approx(10.0)
        assert live.status.left_s == pytest.approx(99.0)
        progress.advance(990)
    assert only(tmp_path).rate == pytest.approx(2000 / 200)
    assert only(tmp_path).left_s is None


def test_a_clock_that_is_set_back_changes_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10_000.0
    monkeypatch.setattr("time.time", lambda: now)
    with reported("evaluate", tmp_path) as live:
        progress = Progress("episodes", 2000)
        for step in range(10):
            now += 10.0 - (3600 if step == 5 else 0)
            progress.advance(100)
            if step != 5:
                assert live.status.rate == pytest.approx(10.0, rel=0.25)
        assert live.status.left_s == pytest.approx(100.0, rel=0.25)
        now += 10.0
        progress.advance(1000)
    assert only(tmp_path).rate == pytest.approx(2000 / 110, rel=0.25)


def test_a_damaged_status_file_is_left_out_and_the_stage_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with reported("train", tmp_path):
        pass
    whole = tmp_path / "status" / "train" / only(tmp_path).file_name
    for name, text in (
        ("cut", '{"stage": "tr'),
        ("list", "[1]"),
        ("types", whole.read_text().replace('"done": 0', '"done": "many"')),
        ("tasks", whole.read_text().replace('"tasks": {}', '"tasks": {"a": {"planned": "x"}}')),
    ):
        (whole.parent / f"{name}.json").write_text(text)
    assert len(read_statuses(tmp_path)) == 1
    assert {Path(record.args[0]).stem for record in caplog.records if record.args} == {"cut", "list", "types", "tasks"}  # type: ignore[index]
    with reported("train", tmp_path):
        pass
    assert [status.state for status in read_statuses(tmp_path)] == ["done"]


def test_metrics_that_cannot_be_told_and_a_status_that_cannot_be_asked_for_fail_no_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError("the library has a fault")

    monkeypatch.setattr("pipeline.runtime.stage.publish", fail)
    with reported("train", tmp_path) as live:
        live.ask = fail  # type: ignore[assignment]
        live.write()
        live.ask = None
        live.write()
    assert only(tmp_path).state == "done"
    said = [record.getMessage() for record in caplog.records]
    assert said.count("the metrics of train cannot be told: the library has a fault") == 1
    assert said.count("the progress of train cannot be asked for: the library has a fault") == 1
