"""Planning a collection of any size, and finding what it has done, takes seconds and megabytes."""

from __future__ import annotations

import dataclasses
import json
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from collectors.config import RECIPES, CollectConfig
from collectors.forecast import costs
from collectors.jobs import CollectJob
from collectors.planning import plan_jobs, plan_tasks
from collectors.rates import Rates, load_rates
from experts.choice import Mix
from experts.registry import RANDOM, rule_record
from experts.store import StoredExpert
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.plan import TaskPlan
from pipeline.storage.shards import index_shards


def plan_twice(config: CollectConfig, tasks: Sequence[Task], rates: Rates, root: Path) -> tuple[int, float, int]:
    """Plan for an empty folder, then for one in which all jobs are done: number of jobs, seconds of both, bytes.

    The random policy replaces every expert. The shards are empty files with manifests and an index.
    """
    started = time.perf_counter()
    mixes = {task.name: _nobody(task, root) for task in tasks}

    def plan_of_all() -> dict[str, TaskPlan]:
        return plan_tasks(config, tasks, mixes, lambda task: rates.of_task(task).steps_per_episode)

    plan = plan_of_all()
    jobs = plan_jobs(config, tasks, mixes, plan, root / "empty")
    seconds = time.perf_counter() - started
    tracemalloc.start()
    again = plan_jobs(config, tasks, mixes, plan, root / "empty")
    jobs_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(again) == len(jobs)
    _pretend_done(root / "done", jobs, plan)
    started = time.perf_counter()
    assert plan_jobs(config, tasks, mixes, plan_of_all(), root / "done") == []
    return len(jobs), seconds + time.perf_counter() - started, jobs_bytes


def _nobody(task: Task, root: Path) -> Mix:
    return Mix((StoredExpert(rule_record(RANDOM, task), root),), (1.0,))


def _pretend_done(root: Path, jobs: Sequence[CollectJob], plan: Mapping[str, TaskPlan]) -> None:
    """Create the files of a folder in which all jobs are done; data files and side tables are empty."""
    for job in jobs:
        shard, mix = job.shard, job.mix
        directory = root / shard.task.name
        directory.mkdir(parents=True, exist_ok=True)
        names = [f"{shard.stem}.parquet", f"{shard.stem}.episodes.parquet"]
        for name in names:
            (directory / name).touch()
        data, episodes = (FileEntry(name, 0, sha256(name.encode()).hexdigest()) for name in names)
        manifest = ShardManifest(
            shard.task.name, shard.split, shard.first_seed, shard.num_seeds, mix.kind, mix.revision,
            plan[shard.task.name].versions, shard.num_seeds, shard.num_seeds, {}, None, 0.0, data, episodes,
        )  # fmt: skip
        (directory / f"{shard.stem}.json").write_text(json.dumps(dataclasses.asdict(manifest)), encoding="ascii")
    for name in {job.shard.task.name for job in jobs}:
        index_shards(root, name)


def test_all_of_jat_is_planned_and_resumed_in_seconds_and_megabytes(tmp_path: Path) -> None:
    config, tasks = RECIPES["jat"](), select_tasks("*")
    num_jobs, seconds, jobs_bytes = plan_twice(config, tasks, load_rates(), tmp_path)
    assert sum(cost.episodes for cost in costs(config, tasks, load_rates()).values()) > 4_000_000
    assert seconds < 5
    assert num_jobs < 3000 and jobs_bytes < 10 * 2**20
