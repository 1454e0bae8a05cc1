"""Trained agents as policies that collect: ``--policy agent`` or ``agent:CHECKPOINT``.

An agent is made by a later stage, which nothing here may import. So whoever runs the collection first names the module
that knows agents (``use_agents``, as ``dags/collect.py`` does); it is imported where an agent is looked up or acts. It
has two functions:

find_agent(out, source)           the folder of a checkpoint, a digest of its weights, and the names of its tasks
make_agent(folder, task, slots)   the ``Policy`` of a checkpoint for so many slots
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from experts.store import ExpertRecord, StoredExpert
from pipeline.envs.policy import Policy
from pipeline.envs.task import Task
from pipeline.errors import UserError

KIND = "agent"
PREFIX = f"{KIND}:"
_known_by: list[str] = []


def use_agents(module: str) -> None:
    """Name the module that finds and makes agents."""
    _known_by[:] = [module]


def is_agent(name: str) -> bool:
    """Whether a name of ``--policy`` means an agent."""
    return name == KIND or name.startswith(PREFIX)


def agent_named(out: Path, task: Task, name: str) -> StoredExpert:
    """Return the agent that a name means, with its checkpoint as the folder.

    Args:
        out: root of the run, whose own agent ``agent`` is.
        task: the task that it shall act in.
        name: ``agent`` or ``agent:CHECKPOINT``.

    Raises:
        UserError: there is no such checkpoint, it was not trained on the task, or agents are not known here.
    """
    if not _known_by:
        raise UserError(f"--policy {name}: agents act in `jat collect` only; run that")
    source = name.removeprefix(KIND).removeprefix(":")
    folder, digest, tasks = importlib.import_module(_known_by[0]).find_agent(out, source or None)
    if task.name not in tasks:
        raise UserError(
            f"--policy {name}: {folder} was not trained on {task.name}, only on: {', '.join(tasks)}; leave the task "
            f"out, or train on it first"
        )
    revision = f"{KIND}-{digest[:8]}"
    made_by = {"module": _known_by[0]}
    return StoredExpert(
        ExpertRecord(task.name, KIND, revision, None, f"the trained agent in {folder}", made_by), folder
    )


def make_agent(task: Task, agent: StoredExpert, num_slots: int) -> Policy:
    """Build the policy of an agent; call this in the process that will use it."""
    module: Any = importlib.import_module(str(agent.record.training["module"]))
    policy: Policy = module.make_agent(agent.folder, task, num_slots)
    return policy
