"""Find, load or train an expert for every task and measure it, so that the collectors can use it.

    jat experts --task 'mujoco-*' --out runs/default

The candidates of a task are the experts in ``OUT/experts/<task>/``, those embedded in this package, and the rules of
its domain. If there is none, or on request, one is trained. Every expert without a valid measurement plays the
measuring seeds, as does the random policy. Then the table of results is printed. The command is idempotent: existing
experts and valid measurements are reused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experts import functions
from experts.algorithms import ALGORITHMS, algorithms_for, check_can_train, default_algorithm, train
from experts.choice import BEST, BESTS, named, parse_choice
from experts.importing.published import RELEASED, released_repository
from experts.ranking import ExpertResult, rank_experts
from experts.registry import RANDOM, experts_of, make_policy
from experts.report import standings_table
from experts.store import StoredExpert, ensure_in_store, read_expert
from experts.training import TrainJob
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import DEMO_TASKS, select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import digest_of, update_json, write_json
from pipeline.records import read_record
from pipeline.run_layout import MEASUREMENT, RunLayout
from pipeline.runtime.cluster import Resources
from pipeline.runtime.pool import run_jobs
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import reported
from pipeline.scoring.measurement import Measurement, load_measurement, summarise
from pipeline.seeds import seeds_of
from pipeline.tables import print_table
from pipeline.text import format_count
from pipeline.versions import versions_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertsConfig:
    """Find, load or train an expert for each task, and measure it and the random policy."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    expert: str = BEST
    """Experts to prepare: `best` for all existing ones; a kind, a revision or a mix, as for collecting; an algorithm,
    to train with it unless an expert of it is stored; a folder, a .zip, .pkl or .npz file or hub:owner/name to load;
    `released`, to load the one that JAT published for each task; or `py:package.module:name`, a function or class of
    your own, which runs your code (docs/extending.md)."""
    retrain: bool = False
    """Train even if the task already has experts."""
    episodes: int = 100
    """Episodes per measurement, on seeds that no dataset contains."""
    workers: int = 2
    """Worker processes."""
    steps: int | None = None
    """Maximum environment steps of a training. Default: the recipe's."""
    seconds: float | None = None
    """Maximum seconds of a training. Default: the recipe's."""
    target: float | None = None
    """Mean return at which a training ends. Default: the recipe's."""
    sampled: bool = False
    """Store a loaded expert so that it samples its actions instead of taking the mode."""
    seed: int = 0
    """Random seed of a training."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "episodes", "workers", *(["steps"] if self.steps is not None else []))
        if self.seconds is not None and self.seconds <= 0:
            raise UserError(f"--seconds is {self.seconds}; it must be above 0")
        if self.sampled and not _is_source(self.expert):
            raise UserError(f"--sampled is about experts to load, not about --expert {self.expert}")
        if self.retrain and _is_source(self.expert):
            raise UserError(f"--retrain is about training, not about loading --expert {self.expert}")


def demo() -> ExpertsConfig:
    """The demo's six tasks."""
    return ExpertsConfig(task=DEMO_TASKS)


RECIPES = {"demo": demo}


def _is_source(text: str) -> bool:
    """Whether ``--expert`` names something to load: a file, a folder, a Hub repository, or the released experts."""
    if text.startswith(functions.PREFIX):
        return False
    return text == RELEASED or text.startswith("hub:") or text.endswith((".zip", ".pkl", ".npz")) or "/" in text


def prepare(config: ExpertsConfig, tasks: Sequence[Task]) -> None:
    """Load, train and measure missing experts, write ``best.json`` per task, and print the table.

    Raises:
        UserError: a task cannot have the expert, or a training option was given although nothing is to be trained.
        JobsFailedError: some trainings or measurements failed; the others are complete and in the table.
    """
    out = config.out.absolute()  # workers may have another working directory
    failures: list[JobsFailedError] = []
    unpublished: list[Task] = []
    if config.expert == RELEASED:
        unpublished = [task for task in tasks if released_repository(task.name) is None]
        tasks = [task for task in tasks if task not in unpublished]
        chosen = _load_released(config, out, tasks, failures)
    elif _is_source(config.expert):
        chosen = _load(config, out, tasks)
    else:
        functions.allow_functions(config.expert)
        wanted = {task.name: _wanted(config, out, task) for task in tasks}
        chosen = {name: list(w.experts) for name, w in wanted.items()}
        jobs = [
            TrainJob(task, algorithm, out, config.seed, config.steps, config.seconds, config.target)
            for task in tasks
            for algorithm in wanted[task.name].algorithms
        ]
        _check_options_matter(config, len(jobs))
        for job, expert in _train(config, jobs, failures):
            chosen[job.task.name].append(expert)
    for task in tasks:
        for expert in experts_of(out, task):
            ensure_in_store(out, expert)  # also embedded experts and rules, so that later stages only need OUT
    _measure_missing(config, out, tasks, chosen, failures)
    write_json(RunLayout(out).experts_config, config)
    found = [rank_experts(out, task) for task in tasks]
    for task, ranked in zip(tasks, found, strict=True):
        write_best(out, task, ranked)
    print_table(standings_table(found))
    if unpublished:
        names = ", ".join(task.name for task in unpublished)
        log.info("JAT published no expert for %s: %s", format_count(len(unpublished), "task"), names)
    if failures:
        messages = "\n".join(str(error) for error in failures)
        raise JobsFailedError(messages, [failure for error in failures for failure in error.failures])


def _load(config: ExpertsConfig, out: Path, tasks: Sequence[Task]) -> dict[str, list[StoredExpert]]:
    from experts.importing.imports import import_expert

    _check_options_matter(config, 0)
    return {task.name: [import_expert(task, config.expert, out, config.sampled)] for task in tasks}


def _load_released(
    config: ExpertsConfig, out: Path, tasks: Sequence[Task], failures: list[JobsFailedError]
) -> dict[str, list[StoredExpert]]:
    from experts.importing.released import load_released

    _check_options_matter(config, 0)
    if not tasks:
        raise UserError(f"JAT published no expert for --task {config.task}; choose other tasks, or --expert {BEST}")
    return load_released(tasks, out, config.sampled, failures)


def _check_options_matter(config: ExpertsConfig, num_trainings: int) -> None:
    given = [f"--{name}" for name in ("steps", "seconds", "target") if getattr(config, name) is not None]
    if given and not num_trainings:
        raise UserError(f"{', '.join(given)}: nothing is to be trained; pass --retrain to train anew")


@dataclass(frozen=True)
class Wanted:
    """``--expert`` resolved for one task: existing experts, and algorithms to train with."""

    experts: tuple[StoredExpert, ...]
    algorithms: tuple[str, ...]


def _wanted(config: ExpertsConfig, out: Path, task: Task) -> Wanted:
    there = [expert for expert in experts_of(out, task) if expert.record.kind != RANDOM]
    experts: dict[str, StoredExpert] = {}
    algorithms: dict[str, None] = {}
    for part in parse_choice(config.expert):
        found = _first_possible(task, part.names, there, config.retrain)
        if isinstance(found, str):
            algorithms[found] = None
        else:
            experts |= {expert.record.revision: expert for expert in found}
    return Wanted(tuple(experts.values()), tuple(algorithms))


def _first_possible(
    task: Task, names: Sequence[str], there: Sequence[StoredExpert], retrain: bool
) -> Sequence[StoredExpert] | str:
    """Resolve the first usable one of ``names``: to existing experts, or to the algorithm to train one with.

    Raises:
        UserError: none of them exists or can be trained.
    """
    for name in names:
        if name == RANDOM and not retrain:
            return []  # the random policy is always measured
        is_best = name in BESTS
        found = there if is_best else named(name, there)
        if found and not retrain:
            return found
        if is_best:
            return default_algorithm(task)
        if name in ALGORITHMS and (len(names) == 1 or ALGORITHMS[name].can_train(task)):
            check_can_train(task, name)
            return name
    algorithms = ", ".join(algorithms_for(task)) or "none"
    if retrain:
        raise UserError(f"{task.name}: {','.join(names)} cannot be trained; algorithms there: {algorithms}")
    raise UserError(
        f"{task.name} has no expert {','.join(names)}; it has {', '.join(e.record.revision for e in there) or 'none'}; "
        f"algorithms to train one with: {algorithms}; or give a folder (./name), a .zip, .pkl or .npz "
        "file, or hub:owner/name"
    )


@dataclass(frozen=True)
class Retraining:
    """The note of a run with ``--retrain``: a digest of its options, and the revisions of finished trainings by job."""

    request: str
    finished: dict[str, str]


def _train(
    config: ExpertsConfig, jobs: Sequence[TrainJob], failures: list[JobsFailedError]
) -> Iterator[tuple[TrainJob, StoredExpert]]:
    """Run trainings in parallel as far as resources allow.

    An interrupted training resumes from its checkpoint. With ``--retrain``, finished trainings are recorded in
    ``retrain.json``, so that resuming the same command does not repeat them. The file is removed when all are done.
    """
    note = RunLayout(config.out).retrained
    request = digest_of([config.task, config.expert, config.seed, config.steps, config.seconds, config.target])
    finished: dict[str, str] = {}
    if config.retrain and note.exists():
        before = read_record(note, Retraining, "the note of a repeated training", "delete it")
        finished = before.finished if before.request == request else {}
    for job in jobs:
        if str(job) in finished:
            yield job, read_expert(RunLayout(job.out).expert(job.task.name, finished[str(job)]))
    try:
        left = [job for job in jobs if str(job) not in finished]
        progress = Progress("trainings", len(left), interval_s=0)
        for job, expert in run_jobs(train, left, config.workers, resources_of):
            progress.advance(1, f"{job.task.name}: {expert.record.revision}")
            if config.retrain:
                finished[str(job)] = expert.record.revision
                write_json(note, Retraining(request, finished))
            yield job, expert
        note.unlink(missing_ok=True)
    except JobsFailedError as error:
        failures.append(error)


def resources_of(job: TrainJob) -> Resources:
    algorithm = ALGORITHMS[job.algorithm]
    return Resources(algorithm.num_cpus, algorithm.num_gpus)


@dataclass(frozen=True)
class MeasureJob:
    """Measure an expert on the first ``num_episodes`` measuring seeds of a task."""

    task: Task
    expert: StoredExpert
    num_episodes: int

    def __str__(self) -> str:
        return f"measuring {self.expert.record.revision} in {self.task.name}"


def measure(job: MeasureJob) -> Measurement:
    """Play the episodes, write the measurement to the expert's folder and return it."""
    record = job.expert.record
    policy = make_policy(job.task, job.expert)
    episodes = rollout(job.task, policy, seeds_of("measure", job.num_episodes), keep_observations=False)
    measurement = summarise(job.task, episodes, record.kind, record.revision, versions_of(job.task.packages))
    if not len(measurement.accepted_returns):
        raise RuntimeError(
            f"{record.revision} had every episode of {job.task.name} rejected: {measurement.rejected[0]}"
        )
    write_json(job.expert.folder / MEASUREMENT, measurement, indent=None)
    return measurement


def _measure_missing(
    config: ExpertsConfig,
    out: Path,
    tasks: Sequence[Task],
    chosen: Mapping[str, Sequence[StoredExpert]],
    failures: list[JobsFailedError],
) -> None:
    """Measure the chosen experts and the random policy of each task; valid measurements are skipped."""
    wanted = []
    for task in tasks:
        revisions = {expert.record.revision for expert in chosen[task.name]}
        for expert in experts_of(out, task):
            if expert.record.kind == RANDOM or expert.record.revision in revisions:
                wanted.append(MeasureJob(task, expert, config.episodes))
    jobs = [job for job in wanted if not is_measured(job)]
    log.info("%s wanted, %d already there", format_count(len(wanted), "measurement"), len(wanted) - len(jobs))
    progress = Progress("measurements", len(jobs))
    try:
        for job, measurement in run_jobs(measure, jobs, config.workers):
            mean, name = measurement.mean_return, f"{job.task.name} {measurement.revision}"
            progress.advance(1, f"{name}: return {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]")
    except JobsFailedError as error:
        failures.append(error)


def is_measured(job: MeasureJob) -> bool:
    """Whether the expert has a valid measurement of at least ``num_episodes`` episodes."""
    found = load_measurement(job.expert.folder, job.task)
    return found is not None and len(found.seeds) >= job.num_episodes


def write_best(out: Path, task: Task, ranked: Sequence[ExpertResult]) -> None:
    """Write ``best.json`` for human readers; the collectors compare the measurements themselves."""
    path = RunLayout(out).best_experts(task.name)
    best = {name: found.revision if (found := rule(ranked)) else None for name, rule in BESTS.items()}
    update_json(path, best)


def main() -> None:
    config = parse(ExpertsConfig, RECIPES, prints_tables=True)
    with reported("experts", config.out, config.task):
        prepare(config, select_tasks(config.task))


if __name__ == "__main__":
    run("experts.prepare")
