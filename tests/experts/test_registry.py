from __future__ import annotations

import importlib.metadata
from collections import Counter

import pytest

from experts.registry import KINDS, resolve
from pipeline.errors import UserError
from pipeline.tasks import Task, all_tasks, select_tasks


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def test_each_domain_with_an_expert_gets_its_own() -> None:
    chosen = Counter((task.domain, resolve(task)) for task in all_tasks() if task.domain in ("babyai", "metaworld"))
    assert chosen == {("babyai", "bot"): 39, ("metaworld", "scripted"): 50}


@pytest.mark.parametrize("name", ["atari-pong", "mujoco-ant"])
def test_a_domain_without_an_expert_says_so(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: there is no expert for {name.split('-')[0]} yet.*EXPERT=random"):
        resolve(task_named(name))


def test_random_is_an_expert_only_on_purpose_and_everywhere() -> None:
    assert {resolve(task, "random") for task in all_tasks()} == {"random"}


def test_an_unknown_expert_names_the_allowed_ones() -> None:
    with pytest.raises(UserError, match="unknown expert 'boot'; allowed: default, bot, random, scripted"):
        resolve(task_named("babyai-open"), "boot")


def test_an_expert_cannot_act_in_another_domain() -> None:
    with pytest.raises(UserError, match="expert 'bot' cannot act in metaworld-reach; allowed there: scripted, random"):
        resolve(task_named("metaworld-reach"), "bot")


def test_a_revision_names_the_package_that_defines_the_expert() -> None:
    assert KINDS["bot"].revision == f"minigrid {importlib.metadata.version('minigrid')}"
    assert KINDS["scripted"].revision == f"metaworld {importlib.metadata.version('metaworld')}"
    assert KINDS["random"].revision == "1"
