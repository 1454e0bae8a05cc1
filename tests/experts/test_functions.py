from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from experts.choice import choose, named
from experts.functions import allow_functions, function_record, make_function_policy
from experts.prepare import ExpertsConfig
from experts.registry import experts_of, make_policy
from experts.store import StoredExpert, ensure_in_store
from pipeline.domain_files import FUNCTIONS
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from tests.fakes import FAKE_COUNT, FAKE_GRID, store_random, write_measurement

OWN = "tests.experts.own_functions"


@pytest.fixture(autouse=True)
def _none_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FUNCTIONS, "")


def cartpole() -> Task:
    (task,) = select_tasks("gym:CartPole-v1")
    return task


@pytest.mark.parametrize("name", ["lean", "Leaning"])
def test_a_function_and_a_class_act_better_than_random(name: str) -> None:
    policy = make_function_policy(f"{OWN}:{name}", cartpole())
    returns = [episode.total_reward for episode in rollout(cartpole(), policy, range(5), 2)]
    assert min(returns) > 100


def test_a_function_sees_the_text_and_one_number_is_an_action_of_any_size() -> None:
    shown = Observations(np.zeros((2, 4)), ["ab", "abc"], np.zeros(2, np.float32))
    assert make_function_policy(f"{OWN}:word", FAKE_GRID).act([0, 1], shown) == [2, 3]
    one = cartpole()
    (pendulum,) = select_tasks("gym:Pendulum-v1")
    (action,) = make_function_policy(f"{OWN}:half", pendulum).act(
        [0], Observations(np.zeros((1, 3)), None, np.zeros(1))
    )
    assert action.tolist() == [0.5] and one.action.size == 2


def test_a_stored_record_runs_no_code_unless_the_function_is_named(tmp_path: Path) -> None:
    task, text = cartpole(), f"py:{OWN}:lean"
    expert = ensure_in_store(tmp_path, StoredExpert(function_record(f"{OWN}:lean", task), tmp_path / "nowhere"))
    assert "py" not in {found.record.kind for found in experts_of(tmp_path, task)}
    allow_functions(f"0.5*{text}+0.5*random")
    assert os.environ[FUNCTIONS] == f"{OWN}:lean"
    (found,) = named(text, experts_of(tmp_path, task))
    assert found.record == expert.record and found.folder == expert.folder
    assert make_policy(task, found).act([0], Observations(np.ones((1, 4)), None, np.zeros(1))) == [1]


def test_the_expert_of_a_run_can_be_a_function(tmp_path: Path) -> None:
    task = cartpole()
    write_measurement(store_random(tmp_path, task), task, [20.0, 21.0])
    allow_functions(f"py:{OWN}:lean")
    (expert,) = named(f"py:{OWN}:lean", experts_of(tmp_path, task))
    write_measurement(ensure_in_store(tmp_path, expert), task, [180.0, 181.0])
    mix = choose(tmp_path, task, f"py:{OWN}:lean")
    assert mix.kind == "py" and mix.revision == expert.record.revision
    ExpertsConfig("gym:CartPole-v1", expert=f"py:{OWN}:lean", retrain=True)  # no source to load


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("py:nowhere:act", "py:nowhere:act cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        (f"py:{OWN}:missing", "cannot be loaded: AttributeError"),
        (f"py:{OWN}:NUMBER", "is a int, expected a function or a class"),
        ("py:os.system('x')", r"is not of the form py:package.module:name"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        allow_functions(text)
    assert "\n" not in str(error.value)


def test_a_class_that_is_no_policy_is_refused() -> None:
    with pytest.raises(UserError, match="Nothing is a class without reset and act"):
        make_function_policy(f"{OWN}:Nothing", FAKE_COUNT)
