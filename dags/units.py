"""Group tasks into units of work for a scheduler.

A scheduler needs 1.5 s to start a unit of work, so tasks that take only seconds share a unit. Every other task has a
unit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dags.stages import CORPORA, PUBLISH, Stage
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.storage.corpora import CORPORA as CORPUS_TABLE
from pipeline.storage.corpora import select_corpora

UNIT_SECONDS = 120.0  # seconds of work on one core
MEASURED_EPISODES = 100  # episodes that `jat experts` plays with each expert
# Stages that process corpora as well as tasks; training and playing stages process only tasks.
HOLDS_CORPORA = ("dataset", PUBLISH.name)


def units_of(stage: Stage, options: Mapping[str, str]) -> list[list[str]]:
    """Names of the tasks or corpora of a stage, grouped into units of work; empty if none of them applies to it.

    Args:
        stage: stage that processes them.
        options: options of the run, by name; ``task`` is a name, domain, glob, or comma-separated list of these.
            Corpora in a list with tasks must be given by their full names.

    Raises:
        UserError: a part of ``task`` matches nothing, or ``episodes`` is not understood.
    """
    pattern = options.get("task", "*")
    if stage.name == CORPORA.name:
        return [[corpus.name for corpus in select_corpora(pattern)]]
    parts = [part.strip() for part in pattern.split(",")]
    corpora = [corpus.name for corpus in CORPUS_TABLE if corpus.name in parts]
    of_tasks = [part for part in parts if part not in corpora]
    tasks = select_tasks(",".join(of_tasks)) if of_tasks else ()
    if not stage.by_task:
        names = [task.name for task in tasks] + (corpora if stage.name in HOLDS_CORPORA else [])
        return [names] if names else []
    return grouped([(task.name, seconds) for task, seconds in zip(tasks, _seconds(stage, tasks, options), strict=True)])


def grouped(work: Sequence[tuple[str, float | None]]) -> list[list[str]]:
    """Group consecutive short tasks into about ``UNIT_SECONDS`` of work; tasks of unknown duration stay single."""
    groups: list[list[str]] = []
    together: list[str] = []
    total = 0.0
    for name, seconds in work:
        if seconds is None or seconds >= UNIT_SECONDS:
            groups.append([name])
            continue
        together.append(name)
        total += seconds
        if total >= UNIT_SECONDS:
            groups.append(together)
            together, total = [], 0.0
    return [*groups, together] if together else groups


def unit_name(tasks: Sequence[str]) -> str:
    """Display name of a unit: its task, or the first task and the number of the others."""
    return tasks[0] if len(tasks) == 1 else f"{tasks[0]} and {len(tasks) - 1} more"


def _seconds(stage: Stage, tasks: Sequence[Task], options: Mapping[str, str]) -> list[float | None]:
    """Seconds of work of each task on one core, from rates measured during collection; None if unknown."""
    from collectors.rates import load_rates

    rates = load_rates().tasks
    seconds: list[float | None] = []
    for task in tasks:
        rate = rates.get(task.name)
        if rate is None:
            seconds.append(None)
            continue
        episodes = _episodes(task, options, rate.steps_per_episode) if stage.name == "collect" else MEASURED_EPISODES
        seconds.append(episodes * rate.steps_per_episode / rate.steps_per_second)
    return seconds


def _episodes(task: Task, options: Mapping[str, str], mean_steps: float) -> int:
    from collectors.config import RECIPES, CollectConfig
    from pipeline.seeds import SPLITS

    recipe = options.get("recipe", "")
    config = RECIPES[recipe]() if recipe in RECIPES else CollectConfig(task.name)
    if options.get("episodes"):
        config = replace(config, episodes=options["episodes"])
    return sum(config.num_episodes(task, split, mean_steps) for split in SPLITS)
