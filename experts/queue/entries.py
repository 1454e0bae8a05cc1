"""Read the queue's entries from a TOML file; they are trained from top to bottom.

    [[training]]
    task = "atari-breakout, atari-boxing"   # names, domains or globs: one training per task, in this order
    algorithm = "ppo-cpu"                   # default: the task's default algorithm
    steps = 10_000_000                      # environment steps
    core_hours = 6.0                        # CPU hours, summed over all resumptions
    target = 300.0                          # mean return of training episodes at which the training ends
    patience = 3_000_000                    # the training ends after so many steps without an improvement of 1 %

Budgets default to the recipe's. With ``core_hours`` the recipe's limit of wall-clock time is ignored.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from experts.algorithms import check_can_resume, check_can_train, default_algorithm
from experts.training import TrainJob
from pipeline.envs.registry import check_can_play, select_tasks
from pipeline.errors import UserError

TRAINING = "training"


@dataclass(frozen=True)
class QueueEntry:
    """One requested training.

    Attributes:
        steps, core_hours, target, patience: as in the file; None for the recipe's value.
    """

    task: str
    algorithm: str
    steps: int | None = None
    core_hours: float | None = None
    target: float | None = None
    patience: int | None = None

    @property
    def name(self) -> str:
        """Name such as ``atari-pong/sample-factory``; also the path of its folder."""
        return f"{self.task}/{self.algorithm}"

    def job(self, out: Path) -> TrainJob:
        """Return the entry as a job for a trainer.

        Raises:
            UserError: the task does not exist any more.
        """
        (task,) = select_tasks(self.task)
        core_seconds = None if self.core_hours is None else 3600 * self.core_hours
        return TrainJob(
            task,
            self.algorithm,
            out,
            steps=self.steps,
            target=self.target,
            patience=self.patience,
            core_seconds=core_seconds,
            is_queued=True,
        )


def read_entries(path: Path) -> list[QueueEntry]:
    """Read the entries of a file in order.

    Raises:
        UserError: the file is missing or invalid, or names an unknown task or a training twice; the message contains
            the position.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the queue {path} cannot be read ({error.strerror}); pass --queue FILE") from error
    except ValueError as error:  # also text that is not UTF-8
        raise UserError(f"{path} is not TOML ({error}); correct it") from error
    tables = raw.pop(TRAINING, None)
    if raw or not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        unknown = f"unknown: {', '.join(raw)}; " if raw else ""
        raise UserError(f"{path}: {unknown}it must hold tables [[{TRAINING}]], each with a task, and nothing else")
    found: dict[str, tuple[int, QueueEntry]] = {}
    for number, table in enumerate(tables, 1):
        where = f"{path}: training {number}"
        try:
            entries = _entries_of(table)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for entry in entries:
            if entry.name in found:
                first = found[entry.name][0]
                raise UserError(
                    f"{where}: {entry.task} with {entry.algorithm} is asked for by training {first} already; "
                    f"leave one of them out"
                )
            found[entry.name] = (number, entry)
    return [entry for _, entry in found.values()]


def _entries_of(table: dict[str, Any]) -> list[QueueEntry]:
    known = {field.name for field in fields(QueueEntry)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise UserError(f"unknown setting {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    for name, kind in (("task", "a name"), ("algorithm", "a name")):
        if name in table and not isinstance(table[name], str):
            raise UserError(f"{name} is {table[name]!r}; it must be {kind} in quotes")
    if "task" not in table:
        raise UserError("it names no task")
    for name in ("steps", "patience"):
        _check_positive(table, name, (int,), "a whole number above 0")
    _check_positive(table, "core_hours", (int, float), "a number above 0")
    target = table.get("target")
    if target is not None and (not _is_number(target, (int, float))):
        raise UserError(f"target is {target!r}; it must be a number")
    tasks = [task for part in table["task"].split(",") for task in select_tasks(part)]
    budgets = {name: value for name, value in table.items() if name not in ("task", "algorithm")}
    return [QueueEntry(task.name, table.get("algorithm") or default_algorithm(task), **budgets) for task in tasks]


def _check_positive(table: dict[str, Any], name: str, kinds: tuple[type, ...], allowed: str) -> None:
    value = table.get(name)
    if value is not None and (not _is_number(value, kinds) or value <= 0):
        raise UserError(f"{name} is {value!r}; it must be {allowed}")


def _is_number(value: Any, kinds: tuple[type, ...]) -> bool:
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def check_entries(entries: Sequence[QueueEntry], out: Path) -> None:
    """Check that all entries can be trained, before any training begins.

    Raises:
        UserError: an algorithm is unknown or has no recipe for its task, a package or a ROM is missing, or a checkpoint
            was made with other settings.
    """
    for entry in entries:
        job = entry.job(out)
        check_can_train(job.task, entry.algorithm)
        check_can_play(job.task)
        check_can_resume(job)
