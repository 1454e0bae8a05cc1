from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from collectors.collect import CollectJob, collect_shard
from collectors.progress import FOLDER, Monitor, format_seconds, read_progresses
from collectors.status import status_table, statuses
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.plan import ShardJob, TaskPlan, extend_plan, read_plan
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


def test_planned_done_running_and_rejected_are_told_while_it_runs_and_after(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    extend_plan(root, {"fake-nan-reward": PLAN, "toy-grid": PLAN})
    jobs = [shard(root, first=0), shard(root, first=4), shard(root, FAKE_GRID)]
    with Monitor(root, {(job.shard.task.name, job.shard.stem): 4 for job in jobs}) as monitor:
        monitor.update([("fake-nan-reward", jobs[0].shard.stem, 1, 50 * 2**20), ("toy-grid", jobs[2].shard.stem, 3, 0)])
        monitor.add(collect_shard(jobs[0]), 0.1)
        monitor.update([("fake-nan-reward", jobs[1].shard.stem, 2, 0), ("toy-grid", jobs[2].shard.stem, 9, 0)])
        (progress,) = read_progresses(root)
        assert progress.is_running
        # 4 in a finished shard; 2 and 4, never more than the shard has, in those under way.
        assert (progress.episodes, progress.left) == (10, 2)
        assert progress.worker_bytes == 50 * 2**20
        nan, grid = statuses(root)
        assert (nan.num_planned, nan.finished.num_seeds, nan.num_running, nan.finished.num_rejected) == (10, 4, 2, 1)
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
    with Monitor(root, {("toy-grid", "train-0000000000-000004"): 4}) as monitor:
        monitor.update([("toy-grid", "train-0000000000-000004", 1, 0)])
        (path,) = (root / FOLDER).iterdir()
        raw = read_json(path)
    write_json(path, {**raw, "updated": raw["updated"] - 3600})
    assert "stopped without a word" in printed(root)
    assert statuses(root)[0].num_running == 0


def test_several_collectors_in_one_place_are_told_together(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    extend_plan(root, {"fake-nan-reward": PLAN, "toy-grid": PLAN})
    jobs = [shard(root), shard(root, FAKE_GRID)]
    with Monitor(root, {("fake-nan-reward", jobs[0].shard.stem): 4}) as monitor:
        monitor.update([("fake-nan-reward", jobs[0].shard.stem, 3, 0)])
        # The same from another machine, on another task, and one that ended there long ago.
        (path,) = (root / FOLDER).iterdir()
        other = {**read_json(path), "host": "elsewhere", "tasks": {}}
        write_json(root / FOLDER / "elsewhere-1.json", {**other, "process": 1, "ended": 1.0, "tasks": {
            "toy-grid": {"todo": 8, "done": 8, "running": {}, "timed": 8, "busy_s": 2.0}}})  # fmt: skip
        write_json(root / FOLDER / "elsewhere-2.json", {**other, "process": 2, "tasks": {
            "toy-grid": {"todo": 4, "done": 0, "running": {"x": 2}, "timed": 0, "busy_s": 0.0}}})  # fmt: skip
        assert [row.num_running for row in statuses(root)] == [3, 2]
        assert [row.rate for row in statuses(root)] == [None, 4.0]
        assert printed(root).count("is collecting") == 2
        # The next collector takes over the times of the one that ended, not the file of the one that runs.
        monitor._take_over()
        assert sorted(path.name for path in (root / FOLDER).iterdir())[0] == "elsewhere-2.json"
        assert monitor.progress.tasks["toy-grid"].timed == 8


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (119, "119 s"), (600, "10 min"), (7200, "2 h"), (200_000, "2.31 d"), (float("inf"), "?")],
)
def test_seconds_are_told_in_a_unit_that_fits(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
