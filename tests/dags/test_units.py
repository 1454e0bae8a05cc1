from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dags import serve
from dags.stages import ALL_STAGES, CORPORA, PUBLISH, QUEUE, STAGES, Stage, command
from dags.units import UNIT_SECONDS, grouped, unit_name, units_of
from pipeline.envs.registry import domains, select_tasks
from pipeline.errors import UserError
from pipeline.files import read_json
from tests.pipeline.envs.test_plugins import DOMAIN

BY_NAME = {stage.name: stage for stage in STAGES}


def test_short_work_is_put_together_and_long_or_unknown_work_stands_alone() -> None:
    half = UNIT_SECONDS / 2
    work = [("a", 1.0), ("b", UNIT_SECONDS), ("c", half), ("d", None), ("e", half), ("f", half), ("g", 2.0)]
    assert grouped(work) == [["b"], ["d"], ["a", "c", "e"], ["f", "g"]]
    assert grouped([]) == []


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_chosen_task_is_in_one_unit(stage: Stage) -> None:
    units = units_of(stage, {"task": "*", "episodes": "100"})
    names = [name for unit in units for name in unit]
    assert sorted(names) == sorted(task.name for task in select_tasks("*"))
    assert (len(units) > 1) == stage.by_task


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_tasks_from_outside_are_planned_by_name_domain_and_id(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "attic_of_units.py").write_text(DOMAIN)
    monkeypatch.setenv("JAT_DOMAINS", str(tmp_path / "attic_of_units.py"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "attic_of_units", raising=False)
    domains.cache_clear()
    try:
        units = units_of(stage, {"task": "toys,gym:CartPole-v1,gym-Pendulum-v1"})
    finally:
        domains.cache_clear()
    names = [name for unit in units for name in unit]
    assert sorted(names) == ["gym-CartPole-v1", "gym-Pendulum-v1", "toys-ball", "toys-kite"]


def test_a_unit_is_as_long_as_the_work_on_its_tasks() -> None:
    few = units_of(BY_NAME["collect"], {"task": "metaworld-[ab]*", "episodes": "20"})
    many = units_of(BY_NAME["collect"], {"task": "metaworld-[ab]*", "episodes": "16000"})
    assert len(few) == 1 and len(few[0]) == len(many) > 5
    assert all(len(unit) == 1 for unit in many)
    # An Atari expert has to be trained, which nobody can say the length of.
    assert units_of(BY_NAME["experts"], {"task": "atari-pong"}) == [["atari-pong"]]


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(UserError, match=r"no task matches 'metawrld-\*'; nearest: metaworld"):
        units_of(BY_NAME["collect"], {"task": "metawrld-*"})
    with pytest.raises(UserError, match="--episodes"):
        units_of(BY_NAME["collect"], {"task": "metaworld-reach", "episodes": "many"})


def test_corpora_are_collected_and_get_into_the_dataset_and_are_nothing_to_train_on_alone() -> None:
    assert units_of(CORPORA, {"task": "wiki*,ok-vqa"}) == [["wikipedia", "ok-vqa"]]
    assert CORPORA.name == BY_NAME["dataset"].also_after
    handed = {"task": "wikipedia,ok-vqa,metaworld-reach"}
    assert units_of(BY_NAME["dataset"], handed) == [["metaworld-reach", "wikipedia", "ok-vqa"]]
    assert units_of(PUBLISH, handed) == units_of(BY_NAME["dataset"], handed)
    assert units_of(BY_NAME["train"], handed) == [["metaworld-reach"]]
    assert units_of(BY_NAME["train"], {"task": "wikipedia"}) == []
    assert units_of(BY_NAME["dataset"], {"task": "wikipedia"}) == [["wikipedia"]]


def test_a_unit_is_shown_by_the_name_of_its_task() -> None:
    assert unit_name(["metaworld-reach"]) == "metaworld-reach"
    assert unit_name(["a", "b", "c"]) == "a and 2 more"


def test_stages_are_chained_to_stages_and_publishing_stands_beside_them() -> None:
    before: set[str | None] = {None}
    for stage in STAGES:
        assert stage.after in before, stage
        before.add(stage.name)
    assert PUBLISH.after == "dataset" and all(stage.after != PUBLISH.name for stage in STAGES)
    assert command(PUBLISH, {"out": "/o", "to": "", "task": "x"}, "py") == [
        "py", "-m", "collectors.dataset.publish", "--out", "/o",
    ]  # fmt: skip


def test_with_an_object_store_a_stage_that_needs_a_disk_gets_one() -> None:
    options = {"out": "s3://bucket/run", "task": "babyai", "workers": "2"}
    assert command(BY_NAME["train"], options, "py") == [
        "py", "-m", "dags.on_disk", "--stage", "train", "--out", "s3://bucket/run", "--", "--task", "babyai",
    ]  # fmt: skip
    assert command(BY_NAME["experts"], options, "py")[2] == "experts.prepare"
    assert command(BY_NAME["collect"], options, "py")[2] == "collectors.collect"
    for stage in ALL_STAGES:
        on_disk = command(stage, options, "py")[2] == "dags.on_disk"
        assert on_disk == (stage.name not in ("experts", "collect", "corpora")) == bool(stage.makes)


def test_every_stage_has_its_pool() -> None:
    pools = read_json(Path(serve.__file__).with_name("pools.json"))
    assert set(pools) == {f"jat_{stage.name}" for stage in ALL_STAGES}


def test_the_queue_is_one_unit_with_its_list_and_nothing_waits_for_it() -> None:
    options = {"task": "*", "out": "/data/run", "queue": "/data/queue.toml", "workers": "2", "recipe": "jat"}
    assert len(units_of(QUEUE, options)) == 1
    words = ["py", "-m", "experts.queue.run", "--out", "/data/run", "--queue", "/data/queue.toml", "--workers", "2"]
    assert command(QUEUE, options, "py") == words
    assert QUEUE.after is None and not any(QUEUE.name in (stage.after, stage.also_after) for stage in ALL_STAGES)
    # In an object store it works on a disk, to which its states and checkpoints are fetched.
    assert command(QUEUE, {**options, "out": "s3://bucket/run"}, "py")[2:5] == ["dags.on_disk", "--stage", QUEUE.name]
    assert "queue" in QUEUE.makes and "experts" in QUEUE.makes
