"""What may go wrong with a collection, each fault alone; ``tests/chaos`` mixes them at random."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from collectors.collect import collect
from collectors.config import CollectConfig
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import read_json
from pipeline.storage.shards import finished_shards
from pipeline.storage.validate import check_shard
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_NAN_REWARD, FAULTY

pytestmark = pytest.mark.usefixtures("nothing_embedded", "one_worker")


def config(out: Path, **changes: object) -> CollectConfig:
    values = {"task": "*", "out": out, "episodes": "12", "shard_episodes": "6", "workers": 1, "envs": 3}
    return CollectConfig(**{**values, "expert": "random", **changes})  # type: ignore[arg-type]


def reasons(out: Path, task: Task) -> dict[int, str]:
    paths = (out / "shards" / task.name).glob("train-*.episodes.parquet")
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert sorted(row["seed"] for row in rows) == list(range(12))
    return {row["seed"]: row["rejected"] for row in rows if row["rejected"] is not None}


@pytest.mark.parametrize("fault", ["raise", "die", "hang"])
def test_a_seed_that_cannot_be_played_is_rejected_with_its_reason_and_the_others_are_kept(
    fault: str, tmp_path: Path
) -> None:
    task = FAULTY[fault]
    collect(config(tmp_path, stall_s=2.0), [task, FAKE_COUNT])
    found = reasons(tmp_path, task)
    expected = {
        "raise": "environment: RuntimeError: the simulator broke at seed 3",
        "die": "quarantined: its worker died",
        "hang": "quarantined: no step was made for 2 s",
    }[fault]
    assert list(found) == [3]
    assert found[3].startswith(expected)
    assert reasons(tmp_path, FAKE_COUNT) == {}
    for shard in finished_shards(tmp_path / "shards", task.name):
        check_shard(task, tmp_path / "shards" / task.name, shard)
    if fault != "raise":
        assert list(read_json(tmp_path / "shards" / task.name / "quarantine.json")) == ["3"]


def test_too_many_rejected_episodes_end_the_run_with_an_error_and_are_kept(tmp_path: Path) -> None:
    # Every third seed of this task is spoilt.
    with pytest.raises(JobsFailedError, match=r"fake-nan-reward: 3 of 14 episodes rejected, 3 of them for 'reward not"):
        collect(config(tmp_path, max_rejected=0.2), [FAKE_NAN_REWARD])
    assert len(reasons(tmp_path, FAKE_NAN_REWARD)) == 3
    collect(config(tmp_path, max_rejected=0.5), [FAKE_NAN_REWARD])


def test_a_second_collector_in_the_same_place_says_so_and_stops(tmp_path: Path) -> None:
    lock = tmp_path / "shards" / FAKE_COUNT.name / ".lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            UserError, match=r"another process works on .*fake-count; wait for it, stop it, or use another --out"
        ):
            collect(config(tmp_path), [FAKE_GRID, FAKE_COUNT])
        # Another task is not held.
        collect(config(tmp_path), [FAKE_GRID])
    collect(config(tmp_path), [FAKE_COUNT])
    assert reasons(tmp_path, FAKE_COUNT) == reasons(tmp_path, FAKE_GRID) == {}


def test_a_shard_that_changed_behind_the_index_is_seen(tmp_path: Path) -> None:
    collect(config(tmp_path), [FAKE_COUNT])
    root = tmp_path / "shards"
    whole = finished_shards(root, FAKE_COUNT.name)
    assert len(whole) == len(read_json(root / FAKE_COUNT.name / "index.json")) == 3
    victim = root / FAKE_COUNT.name / whole[1].data.name
    victim.write_bytes(victim.read_bytes()[:-1])
    assert finished_shards(root, FAKE_COUNT.name) == [whole[0], whole[2]]
    collect(config(tmp_path), [FAKE_COUNT])
    assert finished_shards(root, FAKE_COUNT.name) == whole
