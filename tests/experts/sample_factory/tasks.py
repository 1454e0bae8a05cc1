"""The tasks these tests train and load for: ours, and one with vectors and choices, which is not among ours."""

from __future__ import annotations

import dataclasses

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Action, Task
from tests.fakes import FAKE_COUNT

FAKE_DISCRETE = dataclasses.replace(FAKE_COUNT, name="fake-discrete", action=Action("discrete", 5))


def task_named(name: str) -> Task:
    if name == FAKE_DISCRETE.name:
        return FAKE_DISCRETE
    (task,) = select_tasks(name)
    return task
