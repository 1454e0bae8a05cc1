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
import sys
from collections.abc import Iterable, Sequence
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
    """Return all domains in the order in which tables and reports list them: JAT's, gymnasium's ids, and plug-ins.

    Raises:
        UserError: a plug-in cannot be loaded, or its name is taken.
    """
    from pipeline.envs import atari, babyai, gymnasium_ids, metaworld, mujoco
    from pipeline.envs.plugins import plugin_domains

    own = (atari.DOMAIN, babyai.DOMAIN, metaworld.DOMAIN, mujoco.DOMAIN, gymnasium_ids.DOMAIN)
    return (*own, *plugin_domains(own))


def domain_named(name: str) -> Domain:
    """Return the domain called ``name``; an unknown one is described by its name alone."""
    return next((domain for domain in domains() if domain.name == name), Domain(name, title=name))


def domain_of(task: Task) -> Domain:
    """Return the domain of a task."""
    return domain_named(task.domain)


def all_tasks() -> tuple[Task, ...]:
    """Return all tasks, ordered by domain and then by name."""
    return tuple(task for domain in domains() for task in domain.tasks)


def select_tasks(pattern: str, tasks: Sequence[Task] | None = None, among: Iterable[str] = ()) -> tuple[Task, ...]:
    """Select the tasks that match ``pattern``, in table order and without duplicates.

    Args:
        pattern: a task name, a domain name, a glob such as ``metaworld-*``, ``gym:`` and an id of gymnasium, or a
            comma-separated list of these.
        tasks: the tasks to select from; all of the table, and gymnasium's ids, if None.
        among: names of other tasks that a domain or a glob may match, such as those of a dataset with tasks of
            gymnasium's ids; they are not in the table.

    Raises:
        UserError: a part of the pattern matches nothing; the message names the nearest names.
    """
    parts = [part.strip() for part in pattern.split(",") if part.strip()]
    if not parts:
        raise UserError("no task given: pass a name, a domain, a glob such as 'metaworld-*', or a comma list")
    if tasks is None:
        tasks = (*all_tasks(), *_gym_tasks(parts, among))
    chosen: set[str] = set()
    for part in parts:
        name = gymnasium_name(part) if part.startswith("gym:") else part
        matches = {t.name for t in tasks if name == t.domain or fnmatch.fnmatchcase(t.name, name)}
        if not matches:
            raise UserError(_no_match(part, tasks))
        chosen |= matches
    return tuple(task for task in tasks if task.name in chosen)


def gymnasium_name(part: str) -> str:
    """Name of the task that ``gym:ID`` selects."""
    from pipeline.envs.gymnasium_ids import PREFIX, task_name

    return task_name(part.removeprefix(PREFIX))


def _gym_tasks(parts: Sequence[str], among: Iterable[str]) -> list[Task]:
    """Tasks of gymnasium's ids that are named in ``parts``, or that are in ``among`` and match a part."""
    if not any(name.startswith(("gym:", "gym-")) for name in (*parts, *among)):
        return []
    from pipeline.envs.gymnasium_ids import DOMAIN, PREFIX, env_id_of, gym_task

    ids = [env_id for part in parts if (env_id := env_id_of(part))]
    for name in among:
        is_wanted = any(part == DOMAIN.name or fnmatch.fnmatchcase(name, part) for part in parts)
        if is_wanted and (env_id := env_id_of(name)):
            module = env_id.rpartition(":")[0]
            if module and module not in sys.modules and env_id not in ids:
                # The name may come from a stranger's file, which must not choose what is imported.
                raise UserError(
                    f"{name} needs the package {module!r}, which is imported only if you name the task: "
                    f"--task {PREFIX}{env_id}"
                )
            ids.append(env_id)
    return [gym_task(env_id) for env_id in sorted(set(ids))]


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
