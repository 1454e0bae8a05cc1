"""Lists the 157 reinforcement-learning tasks of JAT and selects tasks by name.

    jat tasks --task 'babyai-*'

Names, spaces and step limits are plain data, so this module imports no simulator; ``Task.make_env`` imports the one
it needs. The tables are in ``pipeline/envs/``, one file per domain.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.envs.domain import Domain
from pipeline.envs.task import Task
from pipeline.errors import UserError, how_to_install

if TYPE_CHECKING:
    from pipeline.tables import Table

# The tasks of `jat demo`: three with a mission in natural language, three with a robot arm.
DEMO_TASKS = (
    "babyai-go-to-local,babyai-open-door,babyai-pickup-loc,"
    "metaworld-reach,metaworld-button-press,metaworld-drawer-close"
)


@functools.cache
def domains() -> tuple[Domain, ...]:
    """Return all domains in the order in which tables and reports list them."""
    from pipeline.envs import atari, babyai, metaworld, mujoco

    return atari.DOMAIN, babyai.DOMAIN, metaworld.DOMAIN, mujoco.DOMAIN


def domain_named(name: str) -> Domain:
    """Return the domain called ``name``; an unknown one is described by its name alone."""
    return next((domain for domain in domains() if domain.name == name), Domain(name, title=name))


def domain_of(task: Task) -> Domain:
    """Return the domain of a task."""
    return domain_named(task.domain)


def all_tasks(reference_envs: bool = False) -> tuple[Task, ...]:
    """Return all tasks, ordered by domain and then by name.

    Args:
        reference_envs: whether they use the libraries' own classes only; see ``Task.as_reference``.
    """
    tasks = (task for domain in domains() for task in domain.tasks)
    return tuple(task.as_reference() if reference_envs else task for task in tasks)


def select_tasks(pattern: str, tasks: Sequence[Task] | None = None) -> tuple[Task, ...]:
    """Select the tasks that match ``pattern``, in table order and without duplicates.

    Args:
        pattern: a task name, a domain name, a glob such as ``metaworld-*``, or a comma-separated list of these.
        tasks: the tasks to select from; all 157 if None.

    Raises:
        UserError: a part of the pattern matches nothing; the message names the nearest names.
    """
    tasks = all_tasks() if tasks is None else tasks
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    if not parts:
        raise UserError("no task given: pass a name, a domain, a glob such as 'metaworld-*', or a comma list")
    chosen: set[str] = set()
    for part in parts:
        matches = {t.name for t in tasks if part == t.domain or fnmatch.fnmatchcase(t.name, part)}
        if not matches:
            raise UserError(_no_match(part, tasks))
        chosen |= matches
    return tuple(task for task in tasks if task.name in chosen)


def check_can_play(task: Task) -> None:
    """Check that the task's environment can be created on this machine.

    Raises:
        UserError: a package is not installed, or a game's ROM is missing.
    """
    for package in task.packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            fix = how_to_install("envs", "setup")
            raise UserError(f"{task.name} needs the package {package}, which is not installed; run {fix}") from (error)
    if check := domain_of(task).check:
        check(task)


def _no_match(part: str, tasks: Sequence[Task]) -> str:
    names = [task.name for task in tasks]
    domains = sorted({task.domain for task in tasks})
    nearest = difflib.get_close_matches(part.replace("*", ""), names + domains, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"domains: {', '.join(domains)}"
    return f"no task matches {part!r}; {hint}. `jat tasks` lists all {len(names)} names"


def _describe_observation(task: Task) -> str:
    shape = "x".join(str(size) for size in task.observation_shape)
    return f"{task.observation.removesuffix('_observation')} {shape}" + (" + text" if task.has_text else "")


def _describe_action(task: Task) -> str:
    action = task.action
    return (
        f"{action.size} choices" if action.kind == "discrete" else f"{action.size} in [{action.low:g}, {action.high:g}]"
    )


@dataclass(frozen=True)
class TasksConfig:
    """Print the table of tasks."""

    task: str = "*"
    """Tasks to list: a task name, a domain, a glob, or a comma-separated list of these; all by default."""


def tasks_table(tasks: Sequence[Task]) -> Table:
    """Make a table with one row per task."""
    from pipeline.tables import Column, Table
    from pipeline.text import format_count

    names = ("task", "environment", "in JAT", "observation", "action")
    table = Table(
        *names, Column("max steps", "d"), Column("success", missing="-"), caption=format_count(len(tasks), "task")
    )
    for task in tasks:
        same = task.env_id == task.jat_env_id
        table.add_row(
            task.name,
            task.env_id,
            "same" if same else task.jat_env_id,
            _describe_observation(task),
            _describe_action(task),
            task.max_steps,
            task.success,
        )
    return table


def main() -> None:
    from pipeline.cli import parse
    from pipeline.tables import print_table

    print_table(tasks_table(select_tasks(parse(TasksConfig, prints_tables=True).task)))


if __name__ == "__main__":
    from pipeline.cli import run

    run("pipeline.envs.registry")
