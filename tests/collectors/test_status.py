from __future__ import annotations

import io
import logging
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from collectors.jobs import CollectJob, collect_shard
from collectors.pace import JobProgress
from collectors.progress import Monitor
from collectors.status import COLLECT, StatusConfig, show, stages_table, status_table, statuses
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import reported
from pipeline.runtime.status import StageStatus, TaskCount, read_statuses
from pipeline.storage.plan import ShardJob, TaskPlan, extend_plan, read_plan
from tests.fakes import FAKE_GRID, FAKE_NAN_REWARD, random_mix

PLAN = TaskPlan("random", "random-1", {"numpy": "2"}, 4, {"train": 8, "test": 2})


def printed(root: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(status_table(root))
    return console.file.getvalue()  # type: ignore[attr-defined]


def shard(root: Path, task: object = FAKE_NAN_REWARD, first: int = 0) -> CollectJob:
    return CollectJob(
        ShardJob(task, "train", first, 4, "random"),
        random_mix(root.parent, task),
        root,
        2,  # type: ignore[arg-type]
    )


def test_planned_done_running_and_rejected_are_told_while_it_runs_and_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shards"
    monkeypatch.setattr("collectors.pace.MIN_EVIDENCE_S", 600.0)  # however slow this machine is
    extend_plan(root, {"fake-nan-reward": PLAN, "toy-grid": PLAN})
    jobs = [shard(root, first=0), shard(root, first=4), shard(root, FAKE_GRID)]
    with reported(COLLECT, tmp_path, "*") as live:
        with Monitor("episodes", {(job.shard.task.name, job.shard.stem): 4 for job in jobs}) as monitor:
            monitor.update(
                [
                    JobProgress("fake-nan-reward", jobs[0].shard.stem, 1, 50 * 2**20),
                    JobProgress("toy-grid", jobs[2].shard.stem, 3, 0),
                ]
            )
            manifest = collect_shard(jobs[0])
            monitor.add(manifest.task, manifest.stem, manifest.num_seeds, manifest.num_rejected, 0.1)
            with caplog.at_level(logging.INFO, "progress"):
                monitor._last_line = 0.0
                monitor.update(
                    [
                        JobProgress("fake-nan-reward", jobs[1].shard.stem, 2, 0),
                        JobProgress("toy-grid", jobs[2].shard.stem, 9, 0),
                    ]
                )
            live.write()
            (run,) = read_statuses(tmp_path)
            assert run.is_running
            # 4 in a finished shard; 2 and 4, never more than the shard has, in those under way.
            assert (run.done, run.planned, run.rejected) == (10, 12, 1)
            assert run.worker_bytes == 50 * 2**20
            # The log says what the file says.
            assert caplog.messages[-1].startswith("10 of 12 episodes, 1 rejected, ")
            assert caplog.messages[-1].endswith("; largest worker 50 MB; fake-nan-reward, toy-grid")
            nan, grid = statuses(root)
            assert (nan.num_planned, nan.finished.num_seeds, nan.num_running, nan.finished.num_rejected) == (
                10, 4, 2, 1,
            )  # fmt: skip
            assert dict(nan.finished.rejected) == {"reward not finite": 1}
            assert (grid.num_planned, grid.finished.num_seeds, grid.num_running, grid.rate) == (10, 0, 4, None)
            assert nan.rate == pytest.approx(4 / 0.1)
            assert "is collecting: 10 episodes" in printed(root)
    text = printed(root)
    assert "no collector is running" in text
    assert "rejected: 1 reward not finite" in text
    assert [row.num_running for row in statuses(root)] == [0, 0]


def test_a_collector_that_went_silent_is_not_said_to_run(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    extend_plan(root, {"toy-grid": PLAN})
    running = TaskCount(4, running={"train-0000000000-000004": 1})
    run = StageStatus(COLLECT, "*", str(tmp_path), updated=time.time() - 3600, tasks={"toy-grid": running})
    write_json(tmp_path / "status" / COLLECT / run.file_name, run)
    assert "stopped without a word" in printed(root)
    assert statuses(root)[0].num_running == 0


def test_several_collectors_in_one_place_are_told_together(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    extend_plan(root, {"fake-nan-reward": PLAN, "toy-grid": PLAN})
    for number, state, tasks in (
        (0, "running", {"fake-nan-reward": TaskCount(4, running={"a": 3})}),
        # On another task; and one that ended there.
        (1, "done", {"toy-grid": TaskCount(8, 8, timed=8, busy_s=2.0)}),
        (2, "running", {"toy-grid": TaskCount(4, running={"x": 2})}),
    ):
        run = StageStatus(COLLECT, str(number), "", "elsewhere", number, state, updated=time.time(), tasks=tasks)
        write_json(tmp_path / "status" / COLLECT / run.file_name, run)
    assert [row.num_running for row in statuses(root)] == [3, 2]
    assert [row.rate for row in statuses(root)] == [None, 4.0]
    assert printed(root).count("is collecting") == 2


def test_every_stage_has_a_row_and_what_worked_many_times_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, task in enumerate(("a", "b,c,d")):
        run = StageStatus("experts", task, "", "there", number, "done", started=number, updated=number + 60.0)
        write_json(tmp_path / "status" / "experts" / run.file_name, run)
    failed = StageStatus("experts", "e", "", "there", 7, "failed", "no such expert", 3.0, 4.0)
    write_json(tmp_path / "status" / "experts" / failed.file_name, failed)
    with reported("dataset", tmp_path, "toy-*"):
        Progress("shards checked", 8).advance(8)
    table = stages_table(read_statuses(tmp_path))
    rows = table.texts()
    assert [row[:3] for row in rows] == [
        ("experts", "b and 2 more and 1 other run", "done"),
        ("experts", "e", "failed"),
        ("dataset", "toy-*", "done"),
    ]
    assert rows[1][3] == "error: no such expert" and rows[2][3].startswith("8 of 8 shards checked, ")
    # Without a collection it is all there is to show.
    show(StatusConfig(tmp_path))
    printed = capsys.readouterr().out
    assert "8 of 8 shards checked" in printed and "episodes/s per worker" not in printed


def test_a_place_without_a_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is planned in"):
        statuses(tmp_path)


def test_the_plan_keeps_tasks_and_larger_numbers_of_earlier_runs(tmp_path: Path) -> None:
    extend_plan(tmp_path, {"a": PLAN})
    extend_plan(tmp_path, {"b": PLAN, "a": TaskPlan(**{**asdict(PLAN), "episodes": {"train": 3, "test": 5}})})
    plan = read_plan(tmp_path)
    assert {name: task.episodes for name, task in plan.items()} == {
        "a": {"train": 8, "test": 5},
        "b": {"train": 8, "test": 2},
    }


@pytest.mark.parametrize("text", ["", "[]", '{"stage": 1}', '{"stage": "collect"}', "[" * 100_000])
def test_a_damaged_status_is_left_out_and_told(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "status" / "collect").mkdir(parents=True)
    (tmp_path / "status" / "collect" / "here-1.json").write_text(text)
    write_json(tmp_path / "status" / "collect" / "here-2.json", StageStatus("collect", "*", str(tmp_path)))
    (found,) = read_statuses(tmp_path)
    assert found.stage == "collect"
    assert "here-1.json is left out" in caplog.text


def test_while_workers_start_the_log_says_that_and_nothing_that_is_not_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = shard(tmp_path / "shards", FAKE_GRID)
    with caplog.at_level(logging.INFO, "progress"), reported(COLLECT, tmp_path, "*") as live:
        with Monitor("episodes", {("toy-grid", job.shard.stem): 4}) as monitor:
            monitor.update([JobProgress("toy-grid", job.shard.stem, 0, 0)])
            assert caplog.messages[-1] == "starting workers, 0 of 4 episodes; toy-grid"
            started = live.status.counting_since
            monitor.update([JobProgress("toy-grid", job.shard.stem, 0, 0, steps=0)])
            assert live.status.counting_since > started  # the wait for the first step is in no rate
            monitor.update([JobProgress("toy-grid", job.shard.stem, 0, 2**20, steps=7)])
            assert live.status.activity == "" and live.status.left_s is None
