"""The agent for a collection that plays with it (``jat collect --policy agent``); see ``experts/acting/agents.py``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.envs.policy import Policy
from pipeline.envs.task import Task
from trainer.evaluation.results import weights_of
from trainer.pretrained.folders import checkpoint_folder, claimed_tasks

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint


@functools.cache
def find_agent(out: Path, source: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """Return the folder of a checkpoint, a digest of its weights, and the names of its tasks.

    Args:
        out: root of a run.
        source: a folder, a repository of the Hub or ``builtin``; the run's own trained agent if None.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = checkpoint_folder(out, None if source is None else Path(source)).absolute()
    tasks = claimed_tasks(folder)
    if not tasks:  # the released JAT's files do not name them
        from trainer.pretrained.load import agent_config

        tasks = list(agent_config(folder).tasks)
    return folder, weights_of(folder), tuple(tasks)


def make_agent(folder: Path, task: Task, num_slots: int) -> Policy:
    """Build the policy of a checkpoint for ``num_slots`` environments of one task.

    Raises:
        UserError: a file is missing or damaged.
    """
    from trainer.agent import Agent

    return Agent(_open(folder), [task] * num_slots)


@functools.lru_cache(maxsize=1)
def _open(folder: Path) -> Checkpoint:
    """Cached, because a worker plays shard after shard with the same weights."""
    from trainer.pretrained.load import from_pretrained

    return from_pretrained(folder)
