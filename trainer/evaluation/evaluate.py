"""Evaluates a checkpoint: the agent plays unseen seeds of every task it was trained on.

    jat evaluate --out runs/default

Writes ``OUT/evaluation/<task>.json`` when a task is finished, videos of its first episodes and of a failed one, and
finally ``OUT/evaluation/scores.json`` (``trainer/evaluation/results.py``): returns normalised with the random and
expert returns that ``jat experts`` measured in the same OUT. Episodes already played with the same checkpoint and
settings are kept, including those of an interrupted task (``trainer/evaluation/journal.py``); if the number of episodes
is increased, only the missing ones are played.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import DEMO_TASKS, domains, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import write_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import reported
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import seeds_of
from pipeline.tables import print_table
from pipeline.text import format_count
from trainer.config import RECIPES as TRAIN_RECIPES
from trainer.config import Counts, Weights, lookup_by_task_or_domain
from trainer.evaluation.journal import TaskResults
from trainer.evaluation.playing import EvaluateJob, in_groups, key_of, play_jobs, play_tasks
from trainer.evaluation.references import load_references
from trainer.evaluation.results import (
    Settings,
    TaskScore,
    load_evaluation,
    load_scores,
    weights_of,
    write_evaluation,
)
from trainer.evaluation.scoring import evaluation_of, score_task
from trainer.evaluation.table import scores_table
from trainer.pretrained.folders import check_trained, checkpoint_folder, choose_trained, claimed_tasks

if TYPE_CHECKING:
    from trainer.checkpoint import AgentConfig

log = logging.getLogger(__name__)


def jat_contexts() -> dict[str, int]:
    """JAT's context of each domain in evaluation, in time steps."""
    return {domain.name: domain.jat_context_steps for domain in domains() if domain.jat_context_steps is not None}


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a checkpoint on unseen seeds."""

    task: str = "*"
    """Tasks to evaluate: task name, domain, glob, or comma list of these, among the tasks of the checkpoint."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    checkpoint: Path | None = None
    """Checkpoint folder, a repository of the Hub such as jat-project/jat, or `builtin` for the agent that comes with
    this package; default is the final checkpoint of `jat train`."""
    name: str = ""
    """Store the results as a separate evaluation, in OUT/evaluation/NAME."""
    replace: bool = False
    """Delete existing results of another checkpoint or of other settings in the folder."""
    episodes: int = 100
    """Number of episodes per task: the first N of a fixed list of seeds that are in no dataset."""
    temperature: float = 1.0
    """Softmax temperature for sampling discrete actions; 0 takes the mode. JAT samples at 1."""
    contexts: Counts = field(default_factory=dict)
    """Context length in time steps, by task or domain name; the checkpoint's own for tasks not listed."""
    returns: Weights = field(default_factory=dict)
    """Return to ask for, by task or domain name, of an agent that was trained with `--objective return-conditioned`; by
    default what nine of ten training episodes stay below."""
    workers: int = 2
    """Number of worker processes; each plays several tasks of the same layout at a time."""
    video_episodes: int = 3
    """Number of first episodes per task to record as videos, and one more if these show no failure and there is one; 0
    for no videos."""
    reference_envs: bool = False
    """Play with the libraries' own environments instead of the faster ones: the same episodes, only slower."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "episodes", "workers")
        if self.name and not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise UserError(f"--name {self.name!r} must be a plain folder name: letters, digits, dots and dashes")
        if self.name == "films":
            raise UserError("--name films is where the run's own films are; take another name")
        if self.temperature < 0:
            raise UserError(f"--temperature is {self.temperature}; it must be at least 0")
        if min(self.contexts.values(), default=1) < 1:
            raise UserError(f"--contexts {self.contexts}: each must be at least 1")


def demo() -> EvaluateConfig:
    """The demo's six tasks, 20 episodes each."""
    return EvaluateConfig(task=DEMO_TASKS, episodes=20)


def jat() -> EvaluateConfig:
    """JAT's evaluation settings: sampled actions, context of 128 time steps, 16 in Atari."""
    return EvaluateConfig(contexts=jat_contexts())


RECIPES = {**dict.fromkeys(TRAIN_RECIPES, EvaluateConfig), "demo": demo, "jat": jat}


@dataclass(frozen=True)
class EvaluatePlan:
    """A validated evaluation.

    Attributes:
        tasks: names of the chosen tasks.
        jobs: the missing episodes to play.
    """

    config: EvaluateConfig
    settings: Settings
    tasks: list[str]
    jobs: list[EvaluateJob]


def evaluate(config: EvaluateConfig, tasks: Sequence[Task] | None = None, is_worker: bool = False) -> list[TaskScore]:
    """Play the missing episodes and write the scores of all tasks evaluated with this checkpoint and settings.

    Args:
        config: what to evaluate.
        tasks: the task table to choose from; all 157 tasks if None.
        is_worker: whether this process is itself a worker, and so plays the tasks one by one without starting others.

    Raises:
        UserError: no checkpoint, a task it was not trained on, random or expert not measured, or results of another
            checkpoint in the folder; raised before any episode is played.
        JobsFailedError: some tasks failed; the others are played and scored.
    """
    planned = plan(config, tasks)
    try:
        play([planned], config.workers, is_worker)
    except JobsFailedError:
        write_scores(planned, tasks)
        raise
    return write_scores(planned, tasks)


def plan(config: EvaluateConfig, tasks: Sequence[Task] | None = None) -> EvaluatePlan:
    """Validate an evaluation and find the missing episodes; see ``evaluate``."""
    checkpoint = checkpoint_folder(config.out, config.checkpoint)
    select_tasks(config.task, tasks, claimed_tasks(checkpoint))
    check_trained(config.task, checkpoint, tasks)
    # Imported here because they take seconds to import: errors above come first.
    from trainer.data.returns import asked_returns
    from trainer.networks.build import check_context
    from trainer.pretrained.load import agent_config

    agent = agent_config(checkpoint)
    chosen = choose_trained(config.task, agent.tasks, tasks)
    if config.reference_envs:
        chosen = [task.as_reference() for task in chosen]
    load_references(config.out, chosen, config.task)
    for task in chosen:
        check_context(
            agent.model,
            lookup_by_task_or_domain(config.contexts, task.name, task.domain, agent.context_steps),
            task.name,
        )
    asked_returns(agent.returns, config.returns, chosen)
    settings = Settings(
        checkpoint=str(config.checkpoint or checkpoint),
        weights=weights_of(checkpoint),
        step=agent.step,
        trained_timesteps=agent.trained_timesteps,
        temperature=config.temperature,
        contexts=config.contexts,
        returns=config.returns,
    )
    _check_or_clear_results(config, settings, select_tasks("*", tasks, agent.tasks))
    jobs = _make_jobs(config, chosen, checkpoint, agent, settings)
    num_tasks = sum(len(job.tasks) for job in jobs)
    log.info(
        "%s to evaluate with %s, %d already done", format_count(num_tasks, "task"), checkpoint, len(chosen) - num_tasks
    )
    return EvaluatePlan(config, settings, [task.name for task in chosen], jobs)


def play(plans: Sequence[EvaluatePlan], workers: int, is_worker: bool = False) -> None:
    """Play all missing episodes, in one pool of workers or in this process."""
    jobs = [job for planned in plans for job in planned.jobs]
    progress = Progress("tasks evaluated", sum(len(job.tasks) for job in jobs), interval_s=0)
    played_here = ((job, play_tasks(job)) for job in jobs)
    for _, measurements in played_here if is_worker else play_jobs(jobs, workers):
        for measurement in measurements:
            progress.advance(1, f"{measurement.task}: {_describe(measurement)}")


def write_scores(planned: EvaluatePlan, tasks: Sequence[Task] | None = None) -> list[TaskScore]:
    """Score all tasks that are played with the settings of a plan.

    Raises:
        JobsFailedError: a task has no valid episode; the others are scored.
    """
    config, settings = planned.config, planned.settings
    directory = RunLayout(config.out).evaluation(config.name)
    names = {path.name.partition(".json")[0] for path in directory.glob("*.json*")}
    played = {task: TaskResults(directory, task, settings.revision) for task in select_tasks("*", tasks, names)}
    found = {task: results.measurement for task, results in played.items() if results.measurement is not None}
    counting = {task: measurement for task, measurement in found.items() if len(measurement.accepted_returns)}
    references = load_references(config.out, list(counting), config.task)
    scores = [score_task(task.domain, measurement, *references[task]) for task, measurement in counting.items()]
    if not RunLayout(config.out).scores(config.name).exists() or load_scores(config.out, config.name) != scores:
        write_json(RunLayout(config.out).evaluation_config(config.name), config)
        write_evaluation(config.out, config.name, evaluation_of(settings, scores))
    lost = [f"{task.name}: {measurement.rejected[0]}" for task, measurement in found.items() if task not in counting]
    if lost:
        raise JobsFailedError(
            f"no episode of {format_count(len(lost), 'task')} counts; the others are scored. First: {lost[0]}"
        )
    return scores


def _make_jobs(
    config: EvaluateConfig, tasks: Sequence[Task], checkpoint: Path, agent: AgentConfig, settings: Settings
) -> list[EvaluateJob]:
    """Return the jobs for the tasks with fewer episodes than requested."""
    directory = RunLayout(config.out).evaluation(config.name)
    wanted: list[tuple[Task, int | None]] = []
    sizes: list[tuple[Hashable, int]] = []
    for task in tasks:
        results = TaskResults(directory, task, settings.revision)
        if not results.is_whole(config.episodes):
            looks_back = lookup_by_task_or_domain(config.contexts, task.name, task.domain, None)
            wanted.append((task, looks_back))
            sizes.append(((key_of(agent, task), looks_back), len(results.missing(config.episodes))))
    return [
        EvaluateJob(
            tasks=tuple(wanted[index][0] for index in group),
            checkpoint=checkpoint.absolute(),
            revision=settings.revision,
            num_episodes=config.episodes,
            temperature=config.temperature,
            context_steps=wanted[group[0]][1],
            filmed=seeds_of("evaluate", min(config.video_episodes, config.episodes)),
            films=RunLayout(config.out).agent_films(name=config.name).absolute(),
            directory=directory.absolute(),
            num_threads=max(1, (os.cpu_count() or 1) // config.workers),
            returns=config.returns,
        )
        for group in in_groups(sizes, config.workers)
    ]


def _check_or_clear_results(config: EvaluateConfig, settings: Settings, tasks: Sequence[Task]) -> None:
    """Fail if the folder holds results of another checkpoint or settings; delete them if ``--replace`` is set.

    Raises:
        UserError: there are such results and ``--replace`` is not set.
    """
    directory = RunLayout(config.out).evaluation(config.name)
    results = [TaskResults(directory, task, settings.revision) for task in tasks]
    others = [(found.task.name, found.others) for found in results if found.others is not None]
    if not others:
        return
    if not config.replace:
        (name, first), *_ = others
        raise UserError(
            f"{directory} holds results of {format_count(len(others), 'task')} played otherwise, such as {name}: "
            f"weights {first.revision}, {_in_words(first.versions)}; now it is weights {settings.revision}. Keep "
            f"them and evaluate beside them with --name NAME, or drop them with --replace"
        )
    for found in results:
        if found.others is not None:
            found.remove()
    RunLayout(config.out).scores(config.name).unlink(missing_ok=True)


def _describe(measurement: Measurement) -> str:
    returns = measurement.accepted_returns
    lost = len(measurement.seeds) - len(returns)
    mean = f"return {returns.mean():.2f}" if len(returns) else "no return"
    return mean + (f", {format_count(lost, 'episode')} lost" if lost else "")


def _in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items()) or "no packages"


def main() -> None:
    config = parse(EvaluateConfig, RECIPES, prints_tables=True)
    with reported("evaluate", config.out, config.task, needs_disk=True):
        evaluate(config)
    print_table(scores_table(load_evaluation(config.out, config.name)))


if __name__ == "__main__":
    run("trainer.evaluation.evaluate")
