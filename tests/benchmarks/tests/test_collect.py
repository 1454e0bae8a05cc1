from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from collectors.jobs import CollectJob, collect_shard
from experts.choice import Mix
from experts.registry import experts_of
from pipeline.envs.registry import select_tasks
from pipeline.errors import UserError
from pipeline.storage.plan import ShardJob
from tests.benchmarks.baselines.collecting import collect_plainly, rule_actor
from tests.benchmarks.soak import Run, SoakConfig

pytestmark = pytest.mark.slow


def table_of(*words: str) -> str:
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize(("name", "num_episodes"), [("babyai-go-to-local", 12), ("metaworld-reach", 3)])
def test_the_plain_way_writes_the_same_episodes(name: str, num_episodes: int, tmp_path: Path) -> None:
    (task,) = select_tasks(name)
    (rule,) = (e for e in experts_of(tmp_path, task) if e.record.kind in ("bot", "scripted"))
    shard = ShardJob(task, "train", 0, num_episodes, rule.record.kind)
    manifest = collect_shard(CollectJob(shard, Mix((rule,), (1.0,)), tmp_path, 4))
    num_steps = collect_plainly(task, rule_actor(task, rule), range(num_episodes), tmp_path / "plain.parquet")
    assert num_steps == manifest.num_steps
    ours, plain = pq.read_table(tmp_path / name / manifest.data.name), pq.read_table(tmp_path / "plain.parquet")
    assert ours.to_pylist() == plain.to_pylist()


def test_every_way_of_collecting_is_timed() -> None:
    """Sample Factory acts in its own process."""
    table = table_of(
        "-m",
        "tests.benchmarks.collect",
        "--task",
        "babyai-go-to-local,mujoco-pendulum",
        "--steps",
        "200",
        "--rounds",
        "1",
    )
    rows = [line.split("│")[1:-1] for line in table.splitlines() if "babyai-" in line or "mujoco-" in line]
    assert [row[0].strip() for row in rows] == ["babyai-go-to-local", "mujoco-pendulum"]
    for row in rows:
        assert all(float(cell.split()[0].replace(",", "")) > 0 for cell in row[1:])


def test_a_long_run_is_watched_early_and_late() -> None:
    table = table_of(
        "-m", "tests.benchmarks.soak", "--workers-episodes", "0", "--episodes", "4000", "--window", "1000",
        "--shard-episodes", "200", "--rounds", "1",
    )  # fmt: skip
    assert "1,000 to 2,000" in table
    assert "3,000 to 4,000" in table
    assert "last / first" in table


def test_a_long_run_shorter_than_its_window_is_refused() -> None:
    with pytest.raises(UserError, match="--episodes is 4,000; with --window 10,000 it must be 11,000 or more"):
        SoakConfig(episodes=4000)


def test_the_rate_is_that_between_the_first_and_the_last_shard_of_a_window() -> None:
    run = Run(np.array([10.0, 11.0, 12.0, 14.0, 16.0]), np.array([100] * 5), [])
    assert run.rate() == pytest.approx(400 / 6)
    assert run.rate(100, 300) == pytest.approx(200 / 2)
    assert run.rate(300) == pytest.approx(200 / 4)
