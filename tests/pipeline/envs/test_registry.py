from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from pipeline.envs.registry import DEMO_TASKS, all_tasks, select_tasks
from pipeline.errors import UserError
from pipeline.scoring.scores import jat_scores
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_TASKS


def names(pattern: str) -> list[str]:
    return [task.name for task in select_tasks(pattern)]


def test_there_are_157_tasks_with_their_own_names() -> None:
    tasks = all_tasks()
    assert len(tasks) == 157
    assert len({task.name for task in tasks}) == 157
    assert Counter(task.domain for task in tasks) == {"atari": 57, "babyai": 39, "metaworld": 50, "mujoco": 11}


def test_the_names_are_those_of_the_published_scores() -> None:
    assert {task.name for task in all_tasks()} == set(jat_scores())


def test_a_name_starts_with_its_domain() -> None:
    assert all(task.name.startswith(task.domain + "-") for task in all_tasks())


def test_a_name_a_domain_a_glob_and_a_comma_list_choose_tasks() -> None:
    assert names("metaworld-reach") == ["metaworld-reach"]
    assert names("mujoco") == names("mujoco-*")
    assert len(names("mujoco")) == 11
    assert names("metaworld-reach*") == ["metaworld-reach", "metaworld-reach-wall"]
    assert names("babyai-go-to-red-ball?grey") == ["babyai-go-to-red-ball-grey"]
    assert len(names("*")) == 157


def test_chosen_tasks_come_in_table_order_without_doubles() -> None:
    expected = ["babyai-open", "metaworld-reach", "metaworld-reach-wall", "mujoco-ant"]
    assert names(" mujoco-ant, metaworld-reach*,metaworld-reach ,babyai-open,") == expected


def test_the_demo_tasks_exist() -> None:
    assert len(names(DEMO_TASKS)) == 6


def test_another_table_can_be_chosen_from() -> None:
    assert select_tasks("toy", FAKE_TASKS) == (FAKE_GRID,)
    assert select_tasks("*", FAKE_TASKS) == (FAKE_COUNT, FAKE_GRID)


def test_an_unknown_task_names_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"'metaworld-raech'; nearest: metaworld-reach,.* lists all 157 names"):
        select_tasks("babyai-open,metaworld-raech")
    with pytest.raises(UserError, match=r"nearest: .*metaworld"):
        select_tasks("metaword*")


def test_a_task_like_no_other_names_the_domains() -> None:
    with pytest.raises(UserError, match="'zzz'; domains: atari, babyai, metaworld, mujoco"):
        select_tasks("zzz")


@pytest.mark.parametrize("pattern", ["", " , "])
def test_no_task_at_all_is_an_error(pattern: str) -> None:
    with pytest.raises(UserError, match="no task given"):
        select_tasks(pattern)


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.envs.registry", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_refuses_an_unknown_task_in_one_line_with_code_2() -> None:
    result = run_command("--task", "nonsense")
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: no task matches 'nonsense'")


def test_the_command_prints_one_line_per_task() -> None:
    result = run_command("--task", "mujoco-pusher,babyai-open")
    assert result.returncode == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    (pusher,) = [row for row in rows if "mujoco-pusher" in row]
    assert {"Pusher-v5", "Pusher-v4", "continuous", "100"} <= set(pusher)
    assert sum("babyai-open" in row for row in rows) == 1
    assert ["2", "tasks"] in rows
