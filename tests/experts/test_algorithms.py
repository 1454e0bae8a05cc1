from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from experts.algorithms import ALGORITHMS, check_can_train, default_algorithm, train
from experts.training import TrainJob
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def test_every_trained_domain_has_a_default_algorithm_with_a_recipe_for_every_task() -> None:
    for task in all_tasks():
        if task.domain == "babyai":
            continue
        algorithm = default_algorithm(task)
        check_can_train(task, algorithm)
        assert importlib.util.find_spec(ALGORITHMS[algorithm].module), f"{algorithm} for {task.name}"


def test_babyai_is_not_trained() -> None:
    with pytest.raises(UserError, match="babyai-open: experts of babyai are not trained; its bot solves it"):
        default_algorithm(task_named("babyai-open"))


def test_an_unknown_algorithm_names_those_there_are() -> None:
    with pytest.raises(UserError, match="unknown algorithm 'dqn'; allowed: ppo, trpo, sac, tqc, crossq, ars"):
        check_can_train(task_named("atari-pong"), "dqn")


@pytest.mark.parametrize(
    ("name", "algorithm", "possible"),
    [("atari-pong", "sac", "ppo-cpu, sample-factory"), ("babyai-open", "ppo", "none")],
)
def test_an_algorithm_for_another_domain_names_the_possible_ones(name: str, algorithm: str, possible: str) -> None:
    with pytest.raises(UserError, match=f"{algorithm} has no recipe for {name}; allowed there: {possible}"):
        check_can_train(task_named(name), algorithm)


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "envpool" else find_spec(name))
    with pytest.raises(UserError, match=r"training with sac needs envpool; run .*`make setup-experts` in a clone"):
        check_can_train(task_named("mujoco-ant"), "sac")


def test_a_job_is_trained_by_its_algorithm_s_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module: Any = ModuleType("a_module")
    module.train = lambda job: f"trained {job.task.name}"
    monkeypatch.setitem(sys.modules, ALGORITHMS["sac"].module, module)
    assert train(TrainJob(FAKE_COUNT, "sac", tmp_path)) == "trained fake-count"
