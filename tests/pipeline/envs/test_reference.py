"""One switch plays every domain with the libraries' own classes: ``Task.as_reference``, ``--reference-envs``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collectors import collect
from experts.scripted.babyai import BabyAIBotPolicy
from experts.scripted.metaworld import ScriptedPolicy
from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task

CASES: tuple[tuple[str, Callable[[Task], Any], str], ...] = (
    ("atari-freeway", RandomPolicy, "ale_py"),
    ("babyai-pickup", BabyAIBotPolicy, "minigrid"),
    ("metaworld-hand-insert", ScriptedPolicy, "metaworld"),
    ("mujoco-halfcheetah", RandomPolicy, "gymnasium"),
)


@pytest.mark.filterwarnings("ignore:.*is out of date")
@pytest.mark.parametrize(("name", "make_policy", "package"), CASES)
def test_a_reference_is_the_librarys_own_class_and_plays_the_same_episodes(
    name: str, make_policy: Callable[[Task], Any], package: str
) -> None:
    (task,) = select_tasks(name)
    reference = task.as_reference()
    env = reference.make_env()
    assert type(env.unwrapped).__module__.split(".")[0] == package
    assert "gen_obs" not in vars(env.unwrapped)  # which the faster level of BabyAI replaces
    env.close()
    num_seeds = 1 if task.domain == "atari" else 3
    ours, theirs = (list(rollout(one, make_policy(one), range(num_seeds), num_envs=2)) for one in (task, reference))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.seed, one.texts, one.ended, one.success, one.rejected) == (
            other.seed, other.texts, other.ended, other.success, other.rejected,
        )  # fmt: skip
        for array in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, array), getattr(other, array))


def test_a_reference_uses_the_librarys_own_bot() -> None:
    (task,) = select_tasks("babyai-pickup")
    policy = BabyAIBotPolicy(task.as_reference())
    env = task.as_reference().make_env()
    env.reset(seed=0)
    policy.reset([0], [0], [env])
    assert type(policy._bots[0]).__module__ == "minigrid.utils.baby_ai_bot"
    assert type(ScriptedPolicy(select_tasks("metaworld-reach")[0].as_reference())._policy).__module__.startswith(
        "metaworld.policies"
    )
    env.close()


@pytest.mark.parametrize("options", [[], ["--reference-envs"]])
def test_the_switch_reaches_all_tasks_of_a_collection(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Task] = []

    def note(config: Any, tasks: tuple[Task, ...]) -> None:
        seen.extend(tasks)
        raise KeyboardInterrupt  # nothing is collected

    monkeypatch.setattr(collect, "collect", note)
    monkeypatch.setattr(sys, "argv", ["x", "--task", "*", "--out", str(tmp_path), *options])
    with pytest.raises(KeyboardInterrupt):
        collect.main()
    assert [task.name for task in seen] == [task.name for task in all_tasks()]
    assert {task.is_reference for task in seen} == {bool(options)}
