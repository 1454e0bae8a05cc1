"""Which tasks are worked on together: a scheduler spends a second and a half on every unit of work it starts, so tasks
that are seconds of work share one, and every other has one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dags.stages import CORPORA, PUBLISH, Stage
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.storage.corpora import CORPORA as CORPUS_TABLE
from pipeline.storage.corpora import select_corpora

UNIT_SECONDS = 120.0  # of one core
MEASURED_EPISODES = 100  # of each expert, by `jat experts`
# A dataset has corpora, too; all that learn or play have tasks alone.
HOLDS_CORPORA = ("dataset", PUBLISH.name)


def units_of(stage: Stage, options: Mapping[str, str]) -> list[list[str]]:
    """Names of the tasks or corpora of a stage, in units of work; none if it has to do with none of them.

    Args:
        stage: what is done with them.
        options: of the run, by name; ``task`` is a name, domain, glob, or comma list of these. Corpora beside tasks are
            given by their full names.

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
    """Neighbours together until they are ``UNIT_SECONDS`` of work; one of which nothing is known alone."""
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
    """How a unit is shown: its task, or the first and the number of the others."""
    return tasks[0] if len(tasks) == 1 else f"{tasks[0]} and {len(tasks) - 1} more"


def _seconds(stage: Stage, tasks: Sequence[Task], options: Mapping[str, str]) -> list[float | None]:
    """What each task takes one core, from the rates measured while collecting; None where they are not known."""
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
