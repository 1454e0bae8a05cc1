"""Starts a training from the weights of a checkpoint: its network, its tokenizer, and what it knows of its tasks.

Tasks that the checkpoint does not know get fresh maps. The tokenizer and the normalisers of known tasks are the
checkpoint's, because its network has learned to read the numbers that these make.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.text import format_count
from trainer.checkpoint import AgentConfig, Checkpoint
from trainer.config import BaseModelConfig, ModelConfig, TrainConfig
from trainer.networks.layout import TaskLayout
from trainer.networks.model import Model

log = logging.getLogger(__name__)

# Options of a network that no parameter depends on.
_FREE = ("returns", "observation_noise", "action_loss_coef")
_MOST_NAMED = 5


def check_start(source: Path, known: AgentConfig, config: TrainConfig, tasks: Sequence[Task]) -> None:
    """Refuse a checkpoint that this run's network cannot take over, and say what is new and what is given up.

    Args:
        source: folder of the checkpoint.
        known: its config.
        config, tasks: settings and tasks of the run.

    Raises:
        UserError: another network, or observations that are normalised in one of them only.
    """
    differences = list(_differences(known.model, config.model))
    if differences:
        raise UserError(
            f"--from {source} has another network than this run: {'; '.join(differences[:_MOST_NAMED])}; pass the "
            f"options that it was made with"
        )
    if known.text_tokens != config.text_tokens:
        raise UserError(
            f"--from {source} reads {known.text_tokens} tokens of a mission, this run {config.text_tokens}; pass "
            f"--text-tokens {known.text_tokens}"
        )
    names = [task.name for task in tasks]
    fresh = [name for name in names if name not in known.tasks]
    lost = [name for name in known.tasks if name not in names]
    if isinstance(config.model, BaseModelConfig) and len(fresh) == len(names):
        log.warning("--from %s was trained on none of these tasks: only its trunk is taken over", source)
    for what, found in (("new to it", fresh), ("of it not trained any more", lost)):
        if found:
            more = ", ..." if len(found) > _MOST_NAMED else ""
            log.info("from %s: %s %s: %s%s", source, format_count(len(found), "task"), what,
                     ", ".join(found[:_MOST_NAMED]), more)  # fmt: skip


def _differences(before: ModelConfig | BaseModelConfig, now: ModelConfig | BaseModelConfig) -> list[str]:
    if type(before) is not type(now):
        return [f"architecture was {before.architecture}, is {now.architecture}"]
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [f"{name} was {old[name]}, is {new[name]}" for name in old if name not in _FREE and old[name] != new[name]]


def take_over(model: Model, layouts: Sequence[TaskLayout], tasks: Sequence[Task], start: Checkpoint) -> None:
    """Copy the weights of a checkpoint into an untrained network, task by task.

    Args:
        model: the network of the run; it is changed.
        layouts, tasks: the run's, in the order of the network's.
        start: the checkpoint, which ``check_start`` has accepted.

    Raises:
        UserError: a task has other sizes than in the checkpoint.
    """
    known = start.config
    pairs: dict[int, int] = {}
    for new, task in enumerate(tasks):
        if task.name in known.tasks:
            old = known.tasks.index(task.name)
            if known.layouts[old] != layouts[new]:
                raise UserError(
                    f"{task.name} has other sizes or bounds than in the checkpoint: {layouts[new]} instead of "
                    f"{known.layouts[old]}"
                )
            pairs[new] = old
    own, theirs = model.state_dict(), start.model.state_dict()
    rows, their_rows = model.rows_by_task(own), start.model.rows_by_task(theirs)
    with torch.no_grad():
        for name in own.keys() & theirs.keys():
            if name not in rows:
                own[name].copy_(theirs[name])
            for new, old in pairs.items():
                if new in rows.get(name, {}):
                    own[name][rows[name][new]] = theirs[name][their_rows[name][old]]
