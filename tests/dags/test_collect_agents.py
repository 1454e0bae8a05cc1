"""``jat collect --policy agent``: the agent acts, an expert labels, into the same shards, each exactly once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from collectors.config import CollectConfig
from collectors.jobs import CollectJob, collect_shard
from collectors.planning import choose_all, plan_jobs, plan_tasks
from experts.acting import agents
from experts.acting.agents import use_agents
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.run_layout import RunLayout
from pipeline.storage.plan import extend_plan, read_plan
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import finished_shards
from pipeline.storage.validate import check_shard, scan_together
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, store_network, store_random, write_measurement
from tests.trainer.conftest import make_dataset, tiny_config
from trainer.agent import Agent
from trainer.checkpoint import latest_checkpoint
from trainer.pretrained.load import from_pretrained
from trainer.train import train

LABEL = 0.5
TASKS = (FAKE_COUNT, FAKE_GRID)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    make_dataset(out)
    train(tiny_config(out), TASKS)
    found = latest_checkpoint(RunLayout(out).checkpoints)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def agents_are_known(nothing_embedded: Path) -> Iterator[None]:
    use_agents("trainer.acting")
    yield
    agents._known_by.clear()


def prepared(out: Path) -> Path:
    """An expert that always acts 0.5, measured, and the random policy."""
    write_measurement(store_network(out, FAKE_COUNT, LABEL), FAKE_COUNT, [9.0] * 3)
    write_measurement(store_random(out), FAKE_COUNT, [0.0] * 3)
    return out


def config(out: Path, **changes: Any) -> CollectConfig:
    values = {"task": "*", "out": out, "episodes": "12", "shard_episodes": "5", "envs": 3, "test_share": 0.25}
    return CollectConfig(**{**values, **changes})


def planned(wanted: CollectConfig, tasks: Sequence[Task] = (FAKE_COUNT,)) -> list[CollectJob]:
    """What `jat collect` does before it starts workers."""
    root = RunLayout(wanted.out).shards
    mixes, labellers = choose_all(wanted, wanted.out, tasks)
    plan = plan_tasks(wanted, tasks, mixes, lambda task: None, labellers)
    jobs = plan_jobs(wanted, tasks, mixes, plan, root, labellers)
    extend_plan(root, plan)
    return jobs


def play(wanted: CollectConfig) -> None:
    for job in planned(wanted):
        collect_shard(job)


def episodes_of(out: Path) -> dict[int, dict[str, Any]]:
    """Side-table row, actions and labels by seed."""
    found: dict[int, dict[str, Any]] = {}
    folder = RunLayout(out).shards / FAKE_COUNT.name
    shards = finished_shards(RunLayout(out).shards, FAKE_COUNT.name)
    for shard in shards:
        check_shard(FAKE_COUNT, folder, shard)
        (block,) = read_blocks(FAKE_COUNT, folder / shard.data.name)
        ends = np.cumsum(block.lengths)[:-1]
        labels = [None] * len(block.lengths) if block.labels is None else np.split(block.labels, ends)
        rows = pq.read_table(folder / shard.episodes.name).to_pylist()
        for row, actions, of_row in zip(rows, np.split(block.actions, ends), labels, strict=True):
            assert row["seed"] not in found
            found[row["seed"]] = {**row, "actions": actions, "labels": of_row}
    scan_together([(folder, shard) for shard in shards], lambda problem: pytest.fail(str(problem)))
    return found


@pytest.mark.parametrize("policy", ["agent:{}", "0.5*agent:{}+0.5*best"])
def test_the_agent_acts_the_expert_labels_and_neither_cut_nor_batch_matters(
    policy: str, checkpoint: Path, tmp_path: Path
) -> None:
    acting = policy.format(checkpoint)
    play(config(prepared(tmp_path / "a"), policy=acting, labels="best"))
    play(config(prepared(tmp_path / "b"), policy=acting, labels="best", envs=1, shard_episodes="9"))
    found, again = episodes_of(tmp_path / "a"), episodes_of(tmp_path / "b")
    assert found.keys() == again.keys() and len(found) == 15
    seeds = sorted(found)
    alone = rollout(FAKE_COUNT, Agent(from_pretrained(checkpoint), [FAKE_COUNT] * 3), seeds, 3)
    kinds = set()
    for seed, episode in zip(seeds, alone, strict=True):
        one, other = found[seed], again[seed]
        assert one["actions"].tobytes() == other["actions"].tobytes()
        assert (one["labels"] == LABEL).all() and (other["labels"] == LABEL).all()
        assert one["label_expert"].startswith("ppo-") and one["num_labelled"] == one["length"]
        kinds.add(one["expert"])
        if one["expert"] == "agent":
            assert one["expert_revision"].startswith("agent-")
            assert one["actions"].tobytes() == episode.actions.tobytes()
        else:
            assert (one["actions"] == LABEL).all() and one["expert_revision"].startswith("ppo-")
    assert kinds == ({"agent", "ppo"} if "+" in policy else {"agent"})


def test_the_agent_plays_the_seeds_after_the_expert_s_and_a_run_that_was_killed_is_resumed_to_the_bit(
    checkpoint: Path, tmp_path: Path
) -> None:
    play(config(prepared(tmp_path / "whole")))
    folder = RunLayout(tmp_path / "whole").shards / FAKE_COUNT.name
    before = {path.name: sha256_of(path) for path in folder.glob("*.parquet")}
    wanted = {"episodes": "24", "policy": f"agent:{checkpoint}", "labels": "best"}
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    play(config(tmp_path / "whole", **wanted))
    after = {path.name: sha256_of(path) for path in folder.glob("*.parquet")}
    assert before.items() < after.items()  # what the expert played is as it was
    by = {seed: row["expert"] for seed, row in episodes_of(tmp_path / "whole").items() if seed < 100}
    assert by == {seed: "ppo" if seed < 12 else "agent" for seed in range(24)}
    jobs = planned(config(tmp_path / "killed", **wanted))
    assert len(jobs) > 2
    for job in jobs[:2]:
        collect_shard(job)
    killed = RunLayout(tmp_path / "killed").shards / FAKE_COUNT.name
    (killed / f".{jobs[2].shard.stem}.parquet.tmp").write_bytes(b"half")
    (killed / f"{jobs[1].shard.stem}.json").unlink()  # a shard without its manifest does not count
    again = planned(config(tmp_path / "killed", **wanted))
    assert [job.shard for job in again] == [jobs[1].shard, *(job.shard for job in jobs[2:])]
    for job in again:
        collect_shard(job)
    assert {path.name: sha256_of(path) for path in killed.glob("train-*.parquet")} == {
        name: digest for name, digest in after.items() if name.startswith("train-")
    }
    assert planned(config(tmp_path / "killed", **wanted)) == []
    assert read_plan(killed.parent)[FAKE_COUNT.name].labels == episodes_of(tmp_path / "killed")[0]["expert_revision"]


def test_others_play_on_only_when_an_earlier_plan_is_complete(checkpoint: Path, tmp_path: Path) -> None:
    jobs = planned(config(prepared(tmp_path)))
    collect_shard(jobs[0])
    with pytest.raises(UserError, match=r"of an earlier plan \(ppo-\w+\) are missing .*run its command again"):
        planned(config(tmp_path, episodes="24", policy=f"agent:{checkpoint}"))


def test_the_expert_does_not_play_on_after_the_agent_by_mistake(checkpoint: Path, tmp_path: Path) -> None:
    play(config(prepared(tmp_path), policy=f"agent:{checkpoint}"))
    with pytest.raises(UserError, match="holds episodes of expert 'agent'"):
        planned(config(tmp_path, episodes="24"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "agent:{}", "expert": "bot"}, "acts, so --expert bot would not; give one of them"),
        ({"policy": "agent:{}", "noise": "gaussian=0.1"}, "--noise gaussian=0.1 disturbs experts; leave it out"),
        ({"labels": "agent:{}"}, "an agent cannot label; name an expert such as best"),
        ({"labels": "0*best"}, "--labels '0[*]best': '0[*]best' is neither a name"),
        ({"policy": "agent:{}", "labels": "random"}, "fake-count: --labels random can label nothing"),
        ({"policy": "agent:nowhere"}, "nowhere is neither a folder nor a repository"),
        ({"policy": "agent"}, "no finished training in "),
        ({"expert": "agent:{}"}, "--expert agent:.* means no measured expert"),
        ({"labels": "sac"}, "--labels sac means no measured expert"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    changes: dict[str, str], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        planned(config(prepared(tmp_path), **{name: text.format(checkpoint) for name, text in changes.items()}))
    assert "\n" not in str(refused.value)
    assert not RunLayout(tmp_path).shards.exists()


def test_a_checkpoint_that_does_not_know_the_task_is_named_with_what_it_knows(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not trained on pixel-count, only on: fake-count, toy-grid"):
        planned(config(tmp_path, policy=f"agent:{checkpoint}"), [FAKE_PIXELS])
    agents._known_by.clear()
    with pytest.raises(UserError, match="agents act in `jat collect` only"):
        planned(config(prepared(tmp_path), policy=f"agent:{checkpoint}"))
