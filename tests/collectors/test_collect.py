from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from collectors.collect import collect
from collectors.config import RECIPES, CollectConfig, check_amounts
from collectors.jobs import CollectJob, collect_shard
from experts.acting.noise import parse_noise
from experts.choice import Mix
from experts.registry import experts_of
from experts.scripted.babyai import BabyAIBotPolicy
from experts.store import ensure_in_store
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import ShardJob, read_plan
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import finished_shards
from pipeline.storage.validate import check_shard
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_NAN_REWARD,
    FAKE_TASKS,
    num_steps,
    random_mix,
    store_network,
    store_random,
    write_measurement,
)

TEST = 1_000_000_000
one_worker = pytest.mark.usefixtures("one_worker")
pytestmark = pytest.mark.usefixtures("nothing_embedded")


def config(out: Path, episodes: str = "10", **changes: Any) -> CollectConfig:
    values = {
        "task": "*",
        "out": out,
        "episodes": episodes,
        "shard_episodes": "4",
        "workers": 1,
        "envs": 3,
        "max_rejected": 1.0,
    }
    return CollectConfig(**{**values, "test_share": 0.25, "expert": "random", **changes})


def rule_mix(out: Path, task: Task) -> Mix:
    """The rule of a domain, alone."""
    return Mix((ensure_in_store(out, experts_of(out, task)[0]),), (1.0,))


def side_table(out: Path, task: Task, split: str = "train") -> list[dict[str, Any]]:
    """Who acted and so on, by seed."""
    paths = sorted((out / "shards" / task.name).glob(f"{split}-*.episodes.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def shards_of(out: Path, task: Task) -> list[tuple[str, int, int]]:
    return [(shard.split, shard.first_seed, shard.num_seeds) for shard in finished_shards(out / "shards", task.name)]


def states(out: Path) -> dict[str, tuple[int, int]]:
    """Per file of the shards what changes when it is written anew."""
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "shards").rglob("*")
        if path.is_file() and path.name not in ("config.json", "plan.json", ".lock") and path.parent.name != "progress"
    }


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in states(out)}


@one_worker
def test_the_shards_cover_the_seeds_of_both_splits(tmp_path: Path) -> None:
    collect(config(tmp_path), FAKE_TASKS)
    expected = [("test", TEST, 3), ("train", 0, 4), ("train", 4, 4), ("train", 8, 2)]
    assert shards_of(tmp_path, FAKE_COUNT) == expected
    assert shards_of(tmp_path, FAKE_GRID) == expected
    for task in FAKE_TASKS:
        for shard in finished_shards(tmp_path / "shards", task.name):
            check_shard(task, tmp_path / "shards" / task.name, shard)
            (block,) = read_blocks(task, tmp_path / "shards" / task.name / shard.data.name)
            seeds = range(shard.first_seed, shard.first_seed + shard.num_seeds)
            assert block.lengths.tolist() == [num_steps(seed) for seed in seeds]
            # The third number of an observation is the seed's remainder by 20.
            found = block.observations[np.cumsum(block.lengths) - 1, 2].tolist()
            assert found == [seed % 20 for seed in seeds]
    assert read_json(tmp_path / "shards" / "config.json")["episodes"] == "10"


@one_worker
def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    collect(config(tmp_path), [FAKE_COUNT])
    before = states(tmp_path)
    collect(config(tmp_path), [FAKE_COUNT])
    # Neither fewer episodes nor another way to play them make a shard anew.
    collect(config(tmp_path, "3", shard_episodes="9", envs=1), [FAKE_COUNT])
    assert states(tmp_path) == before


@one_worker
def test_more_episodes_add_only_what_is_missing(tmp_path: Path) -> None:
    collect(config(tmp_path), [FAKE_COUNT])
    before = states(tmp_path)
    collect(config(tmp_path, "13"), [FAKE_COUNT])
    after = states(tmp_path)
    indexed = "shards/fake-count/index.json"
    assert {name: after[name] for name in before if name != indexed} == {
        name: state for name, state in before.items() if name != indexed
    }
    assert shards_of(tmp_path, FAKE_COUNT) == [
        ("test", TEST, 3),
        ("test", TEST + 3, 1),
        ("train", 0, 4),
        ("train", 4, 4),
        ("train", 8, 2),
        ("train", 10, 2),
        ("train", 12, 1),
    ]


@one_worker
def test_a_lost_data_file_is_made_again_alone_and_with_the_same_bytes(tmp_path: Path) -> None:
    collect(config(tmp_path), FAKE_TASKS)
    before, before_bytes = states(tmp_path), contents(tmp_path)
    lost = "shards/toy-grid/train-0000000004-000004"
    (tmp_path / f"{lost}.parquet").unlink()
    collect(config(tmp_path), FAKE_TASKS)
    indexed = "shards/toy-grid/index.json"  # knows when a sidecar was written
    assert contents(tmp_path) == {**before_bytes, indexed: contents(tmp_path)[indexed]}
    after = states(tmp_path)
    assert {name for name in before if after[name] != before[name]} - {indexed} == {
        f"{lost}.parquet",
        f"{lost}.episodes.parquet",
        f"{lost}.json",
    }


@one_worker
def test_neither_the_number_of_environments_nor_a_part_run_before_shows_in_the_bytes(tmp_path: Path) -> None:
    collect(config(tmp_path / "a", envs=16), FAKE_TASKS)
    collect(config(tmp_path / "b", "8", envs=1), FAKE_TASKS)
    collect(config(tmp_path / "b", envs=1, test_share=0.3), FAKE_TASKS)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    common = sorted(name for name in set(a) & set(b) if "train" in name)
    assert len(common) == 2 * 3 * 3
    assert all(a[name] == b[name] for name in common)


@one_worker
def test_rejected_episodes_are_counted_with_their_seeds(tmp_path: Path) -> None:
    collect(config(tmp_path, "8", shard_episodes="8"), [FAKE_NAN_REWARD])
    (_, train) = finished_shards(tmp_path / "shards", FAKE_NAN_REWARD.name)
    # Seeds 1, 4 and 7 are spoilt.
    assert (train.num_seeds, train.num_episodes, train.num_rejected) == (8, 5, 3)
    check_shard(FAKE_NAN_REWARD, tmp_path / "shards" / FAKE_NAN_REWARD.name, train)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert": "bot"}, "holds episodes of expert 'bot'"),
        (
            {"expert_revision": "random-0"},
            r"expert 'random' \(random-0\) with numpy .* would add expert 'random' \(random-1\).*--expert 'random-0'",
        ),
        ({"versions": {"numpy": "0.1"}}, r"with numpy 0\.1; .* Use another --out"),
        (
            {"noise": "0.5*gaussian=0.1"},
            r"and noise 0\.5\*gaussian=0\.1; .*, with --noise '0\.5\*gaussian=0\.1'$",
        ),
    ],
    ids=["expert", "revision", "versions", "noise"],
)
def test_episodes_of_another_origin_are_not_mixed(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    shard = ShardJob(FAKE_COUNT, "train", 0, 2, "random")
    job = CollectJob(shard, random_mix(tmp_path, FAKE_COUNT), tmp_path / "shards", 2)
    manifest = collect_shard(job)
    write_json(tmp_path / "shards" / "fake-count" / f"{job.shard.stem}.json", replace(manifest, **change))
    before = states(tmp_path)
    with pytest.raises(UserError, match=message):
        collect(config(tmp_path), FAKE_TASKS)
    assert states(tmp_path) == before


@one_worker
@pytest.mark.parametrize(
    ("name", "max_length"), [("babyai-go-to-local", 64), ("metaworld-drawer-close", 100)], ids=["babyai", "metaworld"]
)
def test_real_experts_collect_real_tasks(name: str, max_length: int, tmp_path: Path) -> None:
    (task,) = select_tasks(name)
    # What a measurement would say.
    expert, random = experts_of(tmp_path, task)
    write_measurement(ensure_in_store(tmp_path, expert), task, [9.0] * 3)
    write_measurement(ensure_in_store(tmp_path, random), task, [0.0] * 3)
    collect(config(tmp_path, "3", shard_episodes="2", expert="best"), [task])
    assert shards_of(tmp_path, task) == [("test", TEST, 1), ("train", 0, 2), ("train", 2, 1)]
    for shard in finished_shards(tmp_path / "shards", task.name):
        check_shard(task, tmp_path / "shards" / task.name, shard)
        assert shard.num_successes == shard.num_episodes == shard.num_seeds
        assert 0 < shard.num_steps <= max_length * shard.num_seeds
        assert shard.expert == {"babyai": "bot", "metaworld": "scripted"}[task.domain]
        assert shard.expert_revision == expert.record.revision


def test_a_shard_of_the_bot_is_the_same_in_another_process(tmp_path: Path) -> None:
    # Another hash seed, too: the order of a set of strings must not decide what the bot does.
    (task,) = select_tasks("babyai-synth-loc")
    shard = ShardJob(task, "train", 0, 12, "bot")
    here = collect_shard(CollectJob(shard, rule_mix(tmp_path, task), tmp_path / "here", 4))
    source = (
        "import sys, pathlib, tests.collectors.test_collect as t; "
        "t.collect_for_another_process(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "there")],
        env={**os.environ, "PYTHONHASHSEED": "4321"},
        check=True,
        timeout=120,
    )
    there = ShardManifest.load(tmp_path / "there" / task.name / f"{shard.stem}.json")
    assert there == here


def collect_for_another_process(root: Path) -> None:
    (task,) = select_tasks("babyai-synth-loc")
    collect_shard(CollectJob(ShardJob(task, "train", 0, 12, "bot"), rule_mix(root.parent, task), root, 3))


def test_the_bot_s_shard_holds_what_the_rollout_gave(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-go-to-local")
    manifest = collect_shard(CollectJob(ShardJob(task, "test", TEST, 3, "bot"), rule_mix(tmp_path, task), tmp_path, 2))
    episodes = list(rollout(task, BabyAIBotPolicy(task), range(TEST, TEST + 3)))
    (block,) = read_blocks(task, tmp_path / task.name / manifest.data.name)
    np.testing.assert_array_equal(block.observations, np.concatenate([e.observations for e in episodes]))
    np.testing.assert_array_equal(block.actions, np.concatenate([e.actions for e in episodes]))
    np.testing.assert_array_equal(block.rewards, np.concatenate([e.rewards for e in episodes]))
    assert block.texts is not None
    assert block.texts.to_pylist() == [text for e in episodes for text in e.texts or ()]


@pytest.mark.parametrize(
    ("episodes", "share", "expected"),
    [
        # (train, test) of fake-count and of toy-grid
        ("300", 0.1, [(300, 30), (300, 30)]),
        ("300,toy=1000", 0.1, [(300, 30), (1000, 100)]),
        ("300,fake=20,fake-count=7", 0.1, [(7, 1), (300, 30)]),
        ("fake-count=5, 9", 0.5, [(5, 3), (9, 5)]),
        ("1", 0.001, [(1, 1), (1, 1)]),
        ("70", 0.1, [(70, 7), (70, 7)]),
    ],
)
def test_episodes_are_counted_by_task_then_domain_then_the_rest(
    episodes: str, share: float, expected: Sequence[tuple[int, int]]
) -> None:
    found = config(Path("x"), episodes, test_share=share)
    assert [(found.num_episodes(task, "train"), found.num_episodes(task, "test")) for task in FAKE_TASKS] == expected


@pytest.mark.parametrize("episodes", ["", "0", "-3", "many", "1.5", "babyai=", "babyai=0", "300,", "=", "toy:3"])
def test_a_number_of_episodes_that_is_none_is_refused(episodes: str) -> None:
    with pytest.raises(UserError, match="--episodes"):
        config(Path("x"), episodes)


def test_a_task_without_a_number_of_episodes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="says nothing about fake-count; add a number for the rest"):
        collect(config(tmp_path, "toy=3"), FAKE_TASKS)
    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shard_episodes", "0", "--shard-episodes '0': '0' is not a number of at least 1"),
        ("workers", 0, "--workers is 0"),
        ("envs", -1, "--envs is -1"),
        ("shard_episodes", "9steps", "shards are cut by episodes, not by steps"),
        ("test_share", 0.0, r"--test-share is 0\.0"),
        ("test_share", 1.5, r"--test-share is 1\.5"),
    ],
)
def test_a_setting_out_of_range_is_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(Path("x"), **{field: value})


def test_episodes_of_a_name_that_no_task_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.collect.run_jobs", lambda *_: [])
    with pytest.raises(UserError, match="babay"):
        collect(config(tmp_path, "300,babay=10000"), FAKE_TASKS)


def store_measured(out: Path, action: float, value: float, kind: str) -> str:
    """A network that was measured to earn ``value``, and its revision."""
    expert = store_network(out, FAKE_COUNT, action, kind)
    write_measurement(expert, FAKE_COUNT, [value] * 3)
    write_measurement(store_random(out), FAKE_COUNT, [0.0] * 3)
    return expert.record.revision


@one_worker
def test_noise_is_told_in_plan_manifest_and_side_table_and_does_not_depend_on_the_cut(tmp_path: Path) -> None:
    noise = "0.5*epsilon=0.5,gaussian=0.25"
    for name, changes in (("a", {}), ("b", {"shard_episodes": "7", "envs": 1})):
        collect(config(tmp_path / name, "30", noise=noise, **changes), FAKE_TASKS)
    collect(config(tmp_path / "plain", "30"), FAKE_TASKS)
    for task, text in ((FAKE_COUNT, "gaussian=0.25"), (FAKE_GRID, "0.5*epsilon=0.5")):
        assert {shard.noise for shard in finished_shards(tmp_path / "a" / "shards", task.name)} == {text}
        assert read_plan(tmp_path / "a" / "shards")[task.name].noise == text
        (setting,) = parse_noise(text)
        rows, plain = side_table(tmp_path / "a", task), side_table(tmp_path / "plain", task)
        assert [row["noise"] for row in rows] == [setting.of_episode(seed) for seed in range(30)]
        assert [row["noise"] for row in plain] == [None] * 30
        actions = {name: all_actions(tmp_path / name, task) for name in ("a", "b", "plain")}
        same = [np.array_equal(x, y) for x, y in zip(actions["a"], actions["plain"], strict=True)]
        assert all(same[row["seed"]] for row in rows if row["noise"] is None) and not all(same)
        assert all(np.array_equal(x, y) for x, y in zip(actions["a"], actions["b"], strict=True))
    assert {row["noise"] for row in side_table(tmp_path / "a", FAKE_GRID)} == {None, "epsilon=0.5"}
    before = states(tmp_path / "a")
    with pytest.raises(UserError, match=r"and noise .*, with --noise "):
        collect(config(tmp_path / "a", "40"), FAKE_TASKS)
    assert states(tmp_path / "a") == before
    with pytest.raises(UserError, match=r"would add .* and noise gaussian=0\.25\. .*, with no --noise$"):
        collect(config(tmp_path / "plain", "40", noise=noise), FAKE_TASKS)


def all_actions(out: Path, task: Task) -> list[np.ndarray]:
    """Actions of the training episodes, by seed."""
    found: list[np.ndarray] = []
    for shard in finished_shards(out / "shards", task.name):
        if shard.split == "train":
            (block,) = read_blocks(task, out / "shards" / task.name / shard.data.name)
            found += np.split(block.actions, np.cumsum(block.lengths)[:-1])
    return found


def test_noise_that_no_task_can_have_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epsilon is for discrete actions"):
        collect(config(tmp_path, noise="epsilon=0.1"), [FAKE_COUNT])
    with pytest.raises(UserError, match="'foo' is no noise"):
        config(tmp_path, noise="foo=1")
    assert list(tmp_path.iterdir()) == []


@one_worker
def test_plans_and_manifests_from_before_there_was_noise_are_those_without(tmp_path: Path) -> None:
    collect(config(tmp_path), [FAKE_COUNT])
    root = tmp_path / "shards"
    for path in (root / "fake-count").glob("*.json"):
        raw = read_json(path)
        for entry in [entry["manifest"] for entry in raw.values()] if path.name == "index.json" else [raw]:
            assert entry.pop("noise") is None
        write_json(path, raw)
    before = states(tmp_path)
    collect(config(tmp_path), [FAKE_COUNT])
    assert {name: state for name, state in states(tmp_path).items() if "index" not in name} == {
        name: state for name, state in before.items() if "index" not in name
    }
    assert read_plan(root)["fake-count"].noise is None


@one_worker
def test_steps_are_turned_into_episodes_by_the_expert_s_measured_length(tmp_path: Path) -> None:
    expert = store_network(tmp_path, FAKE_COUNT)
    write_measurement(store_random(tmp_path), FAKE_COUNT, [0.0] * 3)
    path = write_measurement(expert, FAKE_COUNT, [9.0] * 4)
    write_json(path, {**read_json(path), "lengths": [2, 3, 3, 4]})
    collect(config(tmp_path, "fake-count=30steps", expert="best"), [FAKE_COUNT])
    assert read_plan(tmp_path / "shards")["fake-count"].episodes == {"train": 10, "test": 3}
    with pytest.raises(UserError, match="length of an episode of toy-grid is not known"):
        collect(config(tmp_path, "30steps", expert="random"), [FAKE_GRID])


def test_the_recipes_are_jat_s_counts_and_choose_the_best_expert() -> None:
    jat, tasks = RECIPES["jat"](), select_tasks("*")
    assert jat.expert == RECIPES["laptop"]().expert == "best"
    found = {t.domain: (jat.num_episodes(t, "train", 1000), jat.num_episodes(t, "test", 1000)) for t in tasks}
    assert found["babyai"] == (95_000, 5_000)
    assert [found[domain][0] for domain in ("metaworld", "mujoco", "atari")] == [16_000, 9_000, 444]
    for recipe in RECIPES.values():
        check_amounts(recipe(), select_tasks(recipe().task))


@one_worker
def test_a_network_of_the_store_collects(tmp_path: Path) -> None:
    store_measured(tmp_path, 0.25, 5.0, "sac")
    revision = store_measured(tmp_path, 0.5, 9.0, "ppo")
    collect(config(tmp_path, "4", expert="best"), [FAKE_COUNT])
    _, shard = finished_shards(tmp_path / "shards", "fake-count")
    assert (shard.expert, shard.expert_revision) == ("ppo", revision)
    assert {(row["expert"], row["expert_revision"]) for row in side_table(tmp_path, FAKE_COUNT)} == {("ppo", revision)}
    (block,) = read_blocks(FAKE_COUNT, tmp_path / "shards" / "fake-count" / shard.data.name)
    assert set(block.actions.ravel().tolist()) == {0.5}


@one_worker
def test_in_a_mix_every_row_names_the_expert_that_really_acted(tmp_path: Path) -> None:
    ppo, sac = store_measured(tmp_path, 0.5, 9.0, "ppo"), store_measured(tmp_path, 0.25, 5.0, "sac")
    collect(config(tmp_path, "30", expert="0.5*ppo+0.5*sac"), [FAKE_COUNT])
    rows = side_table(tmp_path, FAKE_COUNT)
    assert [row["seed"] for row in rows] == list(range(30))
    acted: list[float] = []
    for shard in finished_shards(tmp_path / "shards", "fake-count"):
        assert (shard.expert, shard.expert_revision) == ("0.5*ppo+0.5*sac", f"0.5*{ppo}+0.5*{sac}")
        if shard.split == "train":
            (block,) = read_blocks(FAKE_COUNT, tmp_path / "shards" / "fake-count" / shard.data.name)
            acted += [float(actions[0, 0]) for actions in np.split(block.actions, np.cumsum(block.lengths)[:-1])]
    named = {("ppo", ppo): 0.5, ("sac", sac): 0.25}
    assert acted == [named[row["expert"], row["expert_revision"]] for row in rows]
    assert set(acted) == {0.5, 0.25}
    # Another cut of the same seeds is played by the same experts.
    store_measured(tmp_path / "b", 0.5, 9.0, "ppo")
    store_measured(tmp_path / "b", 0.25, 5.0, "sac")
    collect(config(tmp_path / "b", "30", expert="ppo+sac", shard_episodes="7", envs=16), [FAKE_COUNT])
    assert side_table(tmp_path / "b", FAKE_COUNT) == [
        {**row, "row": again["row"]} for row, again in zip(rows, side_table(tmp_path / "b", FAKE_COUNT), strict=True)
    ]


@one_worker
def test_going_on_takes_the_same_choice_or_says_how(tmp_path: Path) -> None:
    first = store_measured(tmp_path, 0.5, 5.0, "ppo")
    collect(config(tmp_path, "4", expert="best"), [FAKE_COUNT])
    better = store_measured(tmp_path, 0.25, 9.0, "sac")
    with pytest.raises(UserError, match=rf"holds .* \({first}\) .* add expert 'sac' \({better}\).*--expert '{first}'"):
        collect(config(tmp_path, "8", expert="best"), [FAKE_COUNT])
    collect(config(tmp_path, "8", expert=first), [FAKE_COUNT])
    assert len(side_table(tmp_path, FAKE_COUNT)) == 8


def test_every_task_without_a_usable_expert_is_named_before_anything_is_played(tmp_path: Path) -> None:
    store_measured(tmp_path, 0.5, 0.0, "ppo")
    with pytest.raises(UserError) as refused:
        collect(config(tmp_path, expert="best"), FAKE_TASKS)
    for part in (
        "2 of 2 tasks have no expert to collect with:",
        "fake-count: expert ppo-",
        "is not clearly better than random",
        "toy-grid: --expert best means no measured expert",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "shards").exists()


@one_worker
def test_a_weak_expert_collects_when_that_is_allowed(tmp_path: Path) -> None:
    store_measured(tmp_path, 0.5, 0.0, "ppo")
    collect(config(tmp_path, "2", expert="best", allow_weak=True), [FAKE_COUNT])
    assert [row["expert"] for row in side_table(tmp_path, FAKE_COUNT)] == ["ppo", "ppo"]
