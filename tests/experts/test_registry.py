from __future__ import annotations

import importlib.metadata
from collections import Counter
from pathlib import Path

import pytest

from experts.network import NetworkPolicy
from experts.registry import experts_of, make_policy, rule_record
from experts.scripted.babyai import BabyAIBotPolicy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from experts.store import StoredExpert, ensure_in_store
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.fakes import FAKE_COUNT, FAKE_GRID, store_network

pytestmark = pytest.mark.usefixtures("nothing_embedded")


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def kinds_of(out: Path, task: Task) -> list[str]:
    return [expert.record.kind for expert in experts_of(out, task)]


def test_every_task_has_the_rules_of_its_domain_and_the_random_policy(tmp_path: Path) -> None:
    found = Counter((task.domain, *kinds_of(tmp_path, task)) for task in all_tasks())
    assert found == {
        ("atari", "random"): 57,
        ("babyai", "bot", "random"): 39,
        ("metaworld", "scripted", "random"): 50,
        ("mujoco", "random"): 11,
    }
    assert not (tmp_path / "experts").exists()  # looking writes nothing


def test_a_rule_s_revision_names_the_version_that_defines_it() -> None:
    task = task_named("metaworld-reach")
    bot = rule_record("bot", task_named("babyai-open"))
    assert bot.revision == f"bot-{importlib.metadata.version('minigrid')}"
    scripted = rule_record("scripted", task)
    assert scripted.revision == f"scripted-{importlib.metadata.version('metaworld')}"
    assert scripted.versions == {"metaworld": importlib.metadata.version("metaworld")}
    assert (scripted.task, scripted.network) == ("metaworld-reach", None)
    assert rule_record("random", task).revision == "random-1"


def test_a_rule_of_another_version_cannot_act_any_more(tmp_path: Path) -> None:
    task = task_named("babyai-open")
    bot = experts_of(tmp_path, task)[0]
    folder = ensure_in_store(tmp_path, bot).folder
    old = folder.with_name("bot-0.1")
    write_json(old / "expert.json", {**read_json(folder / "expert.json"), "revision": "bot-0.1"})
    assert [expert.record.revision for expert in experts_of(tmp_path, task)] == [folder.name, "random-1"]


def test_networks_of_the_run_come_before_embedded_ones_and_rules_last(tmp_path: Path, nothing_embedded: Path) -> None:
    embedded = store_network(tmp_path / "elsewhere", action=0.1)
    here = store_network(tmp_path, action=0.2)
    (tmp_path / "elsewhere" / "experts").rename(nothing_embedded)
    found = experts_of(tmp_path, FAKE_COUNT)
    assert [expert.folder for expert in found] == [
        here.folder,
        nothing_embedded / "fake-count" / embedded.folder.name,
        tmp_path / "experts" / "fake-count" / "random-1",
    ]


@pytest.mark.parametrize(
    ("name", "policy"),
    [("babyai-open", BabyAIBotPolicy), ("metaworld-reach", ScriptedPolicy), ("mujoco-ant", RandomPolicy)],
)
def test_a_rule_becomes_its_policy(name: str, policy: type, tmp_path: Path) -> None:
    task = task_named(name)
    assert type(make_policy(task, experts_of(tmp_path, task)[0])) is policy


def test_a_network_acts_with_the_weights_in_its_folder(tmp_path: Path) -> None:
    policy = make_policy(FAKE_COUNT, store_network(tmp_path, action=-0.25))
    assert type(policy) is NetworkPolicy
    (episode,) = rollout(FAKE_COUNT, policy, [3])
    assert episode.actions.tolist() == [[-0.25, -0.25]] * 4


def test_a_network_of_other_sizes_is_refused_by_its_name(tmp_path: Path) -> None:
    expert = store_network(tmp_path)
    with pytest.raises(UserError, match=rf"expert {expert.record.revision} \(.*toy-grid .* has observations 4"):
        make_policy(FAKE_GRID, StoredExpert(expert.record, expert.folder))
