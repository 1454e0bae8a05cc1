"""Evaluate a checkpoint: the agent plays unseen seeds of every task it was trained on.

    python -m trainer.evaluate --out runs/default

Writes ``OUT/evaluation/<task>.json`` as each task finishes, films of the first episodes of each, and
``OUT/evaluation/scores.json`` last: returns normalised with the random and expert returns that ``make experts``
measured in the same OUT. A task already evaluated with the same checkpoint and settings stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from pipeline.cli import check_at_least_one, parse, run
from pipeline.cluster import run_jobs
from pipeline.errors import UserError
from pipeline.files import read_json, sha256_of, write_json
from pipeline.film import Film, agent_films
from pipeline.manifest import DatasetManifest
from pipeline.measurement import Measurement, experts_directory, load_measurements, summarise
from pipeline.progress import Progress
from pipeline.rollout import rollout
from pipeline.scores import Interval, is_scorable, jat_scores, mean_interval, normalise
from pipeline.seeds import seeds_of
from pipeline.tasks import DEMO_TASKS, Task, select_tasks
from pipeline.versions import versions_of
from trainer.config import Choose, of_task

log = logging.getLogger(__name__)

MAX_ENVS = 32  # in lockstep: enough to fill a batch, few enough for their simulators to fit in memory


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a checkpoint on unseen seeds."""

    task: str = "*"
    """Task name, domain, glob, or comma list of these, among the tasks of the checkpoint."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    checkpoint: Path | None = None
    """Checkpoint folder, or a repository of the Hub such as jat-project/jat; the checkpoint `make train` finished with
    if not given."""
    episodes: int = 20
    """Episodes per task."""
    temperature: float = 1.0
    """Of sampled discrete actions; 0 takes the likeliest. JAT samples at 1."""
    continuous: Choose = "mean"
    """Which continuous action is taken; they differ for networks with a `bins` or `mixture` head."""
    contexts: dict[str, int] = field(default_factory=dict)
    """Time steps the agent looks back, by task or domain name; as many as the checkpoint says where not named."""
    workers: int = 2
    """Worker processes; each plays one task at a time."""
    video_episodes: int = 3
    """Episodes per task, the first ones, that are filmed; 0 for no films."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "episodes", "workers")
        if self.temperature < 0:
            raise UserError(f"--temperature is {self.temperature}; it must be at least 0")
        if min(self.contexts.values(), default=1) < 1:
            raise UserError(f"--contexts {self.contexts}: each must be at least 1")


def demo() -> EvaluateConfig:
    """The demo's six tasks."""
    return EvaluateConfig(task=DEMO_TASKS)


def jat() -> EvaluateConfig:
    """As JAT was evaluated: sampled actions, 128 time steps, 16 in Atari."""
    return EvaluateConfig(episodes=100, contexts={"atari": 16, "babyai": 128, "metaworld": 128, "mujoco": 128})


RECIPES = {"demo": demo, "jat": jat, "small": EvaluateConfig}


@dataclass(frozen=True)
class TaskScore:
    """One row of the results.

    Attributes:
        random, expert: mean returns measured in this run.
        agent: mean return with interval.
        scores: expert-normalised, per episode; None where the expert is not better than random ("not scorable").
        score: their mean with interval.
        jat_expert: mean return JAT published for its expert, where it did.
        score_on_jat_scale: the agent's mean return normalised with JAT's published random and expert returns.
        jat_score: JAT's own agent on that scale.
    """

    task: str
    domain: str
    random: float
    expert: float
    expert_kind: str
    agent: Interval
    scores: list[float] | None
    score: Interval | None
    success_rate: float | None
    num_episodes: int
    num_reference_episodes: int
    jat_expert: float | None
    score_on_jat_scale: float | None
    jat_score: float | None


@dataclass(frozen=True)
class EvaluateJob:
    task: Task
    checkpoint: Path
    revision: str
    num_episodes: int
    temperature: float
    continuous: Choose
    context_steps: int | None
    num_video_episodes: int
    directory: Path
    num_threads: int


def evaluate_task(job: EvaluateJob) -> Measurement:
    """Play one task; write its measurement and video."""
    import torch

    from trainer.agent import Agent
    from trainer.pretrained import from_pretrained

    torch.set_num_threads(job.num_threads)
    seeds = seeds_of("evaluate", job.num_episodes)
    num_envs = min(len(seeds), MAX_ENVS)
    checkpoint = from_pretrained(job.checkpoint)
    agent = Agent(checkpoint, job.task, num_envs, job.temperature, job.context_steps, job.continuous)
    versions = versions_of(job.task.packages)
    film = Film(job.task, seeds[: job.num_video_episodes], agent_films(job.directory.parent, job.task.name))
    listener = film.listen if job.num_video_episodes else None
    episodes = rollout(job.task, agent, seeds, num_envs, listener, keep_observations=False)
    measurement = summarise(job.task, film.of(episodes, job.revision, versions), "agent", job.revision, versions)
    write_json(job.directory / f"{job.task.name}.json", measurement)
    return measurement


def evaluate(config: EvaluateConfig, tasks: Sequence[Task] | None = None, is_worker: bool = False) -> list[TaskScore]:
    """Play what is not played yet and write the scores of all tasks played with this checkpoint and temperature.

    Args:
        config: what to evaluate.
        tasks: the table to choose from; all 157 if None.
        is_worker: whether this process is a worker itself, and so plays the tasks one by one without others.

    Raises:
        UserError: no checkpoint, a task it was not trained on, or random or expert not measured.
    """
    from trainer.networks import check_context
    from trainer.pretrained import agent_config, checkpoint_folder

    checkpoint = checkpoint_folder(config.out, config.checkpoint)
    agent = agent_config(checkpoint)
    trained = agent.tasks
    chosen = [task for task in select_tasks(config.task, tasks) if task.name in trained]
    if not chosen:
        raise UserError(f"the checkpoint was not trained on {config.task}, only on: {', '.join(trained)}")
    for task in chosen:
        _references(config.out, task)
        check_context(agent.model, of_task(config.contexts, task.name, task.domain, agent.context_steps), task.name)
    directory = config.out / "evaluation"
    revision = f"{sha256_of(checkpoint / 'model.safetensors')[:16]} at temperature {config.temperature:g}"
    if config.continuous != "mean":
        revision += f", {config.continuous} continuous actions"
    if config.contexts:
        looks_back = ", ".join(f"{name} {steps}" for name, steps in sorted(config.contexts.items()))
        revision += f", looking back {looks_back}"
    num_threads = max(1, (os.cpu_count() or 1) // config.workers)
    jobs = [
        EvaluateJob(
            task,
            checkpoint.absolute(),
            revision,
            config.episodes,
            config.temperature,
            config.continuous,
            of_task(config.contexts, task.name, task.domain, None),
            config.video_episodes,
            directory.absolute(),
            num_threads,
        )
        for task in chosen
        if not _is_evaluated(directory, task, revision, seeds_of("evaluate", config.episodes))
    ]
    log.info("%d tasks to evaluate with %s, %d already done", len(jobs), checkpoint, len(chosen) - len(jobs))
    progress = Progress("tasks evaluated", len(jobs), interval_s=0)
    played_here = ((job, evaluate_task(job)) for job in jobs)
    for job, measurement in played_here if is_worker else run_jobs(evaluate_task, jobs, config.workers):
        progress.advance(1, f"{job.task.name}: return {measurement.accepted_returns.mean():.2f}")
    played = [
        task for task in select_tasks("*", tasks) if task.name in trained and _is_evaluated(directory, task, revision)
    ]
    scores = [_score(task, _load(directory, task), *_references(config.out, task)) for task in played]
    rows = [asdict(score) for score in scores]
    if not scores_path(config.out).exists() or read_json(scores_path(config.out)) != rows:
        write_json(directory / "config.json", config)
        write_json(scores_path(config.out), rows)
    return scores


def scores_path(out: Path) -> Path:
    return out / "evaluation" / "scores.json"


def load_scores(out: Path) -> list[TaskScore]:
    """Results of the last evaluation.

    Raises:
        UserError: there is none.
    """
    if not scores_path(out).exists():
        raise UserError(f"nothing is evaluated in {out}; run `make evaluate` with the same OUT first")
    rows = read_json(scores_path(out))
    for row in rows:
        row["agent"] = Interval(**row["agent"])
        row["score"] = Interval(**row["score"]) if row["score"] else None
    return [TaskScore(**row) for row in rows]


def scores_of(out: Path, checkpoint: Path) -> list[TaskScore]:
    """Results of the last evaluation, as far as it played this checkpoint; perhaps none."""
    if not scores_path(out).exists():
        return []
    weights = sha256_of(checkpoint / "model.safetensors")[:16]
    scores = {score.task: score for score in load_scores(out)}
    return [s for name, s in scores.items() if _revision(out / "evaluation" / f"{name}.json").startswith(weights)]


def _revision(path: Path) -> str:
    return str(read_json(path)["revision"]) if path.exists() else ""


def _references(out: Path, task: Task) -> tuple[Measurement, Measurement]:
    """Measurements of the random policy and of the expert that collected the dataset.

    Where the dataset's expert is not one that is measured (a mix, for one), the best measured expert is taken.
    """
    found = load_measurements(out, task)
    random = next((m for m in found.values() if m.policy == "random"), None)
    experts = {revision: m for revision, m in found.items() if m.policy != "random"}
    if random is None or not experts:
        raise UserError(
            f"{task.name}: no measurement of random and expert with the installed packages in "
            f"{experts_directory(out, task.name)}; run `make experts TASK={task.name} OUT={out}` first"
        )
    best = max(experts.values(), key=lambda m: m.accepted_returns.mean())
    return random, experts.get(_collected_by(out, task), best)


def _collected_by(out: Path, task: Task) -> str:
    """Revision of the expert, or mix of experts, that collected the run's dataset of a task; empty if unknown."""
    path = out / "dataset" / DatasetManifest.FILE_NAME
    if not path.exists():
        return ""
    info = DatasetManifest.load(path).tasks.get(task.name)
    return info.expert_revision if info else ""


def _is_evaluated(directory: Path, task: Task, revision: str, seeds: list[int] | None = None) -> bool:
    """Whether a task was played with this revision, on just these seeds if given."""
    if not (directory / f"{task.name}.json").exists():
        return False
    found = _load(directory, task)
    return found.revision == revision and seeds in (None, found.seeds)


def _load(directory: Path, task: Task) -> Measurement:
    return Measurement(**read_json(directory / f"{task.name}.json"))


def _score(task: Task, agent: Measurement, random: Measurement, expert: Measurement) -> TaskScore:
    random_mean, expert_mean = float(random.accepted_returns.mean()), float(expert.accepted_returns.mean())
    scores = None
    if is_scorable(random_mean, expert_mean):
        scores = normalise(agent.accepted_returns, random_mean, expert_mean)
    published = jat_scores().get(task.name)
    agent_interval = mean_interval([agent.accepted_returns])
    on_jat_scale = None
    if published is not None and is_scorable(published["random"], published["expert"]):
        returns = [agent_interval.mean, published["jat"]]
        on_jat_scale = normalise(returns, published["random"], published["expert"]).tolist()
    return TaskScore(
        task=task.name,
        domain=task.domain,
        random=random_mean,
        expert=expert_mean,
        expert_kind=expert.policy,
        agent=agent_interval,
        scores=None if scores is None else scores.tolist(),
        score=None if scores is None else mean_interval([scores]),
        success_rate=agent.success_rate,
        num_episodes=len(agent.accepted_returns),
        num_reference_episodes=min(len(random.accepted_returns), len(expert.accepted_returns)),
        jat_expert=published["expert"] if published else None,
        score_on_jat_scale=on_jat_scale[0] if on_jat_scale else None,
        jat_score=on_jat_scale[1] if on_jat_scale else None,
    )


def domain_scores(scores: Sequence[TaskScore]) -> dict[str, Interval]:
    """Per domain, the mean over its scorable tasks with a stratified bootstrap interval."""
    domains = dict.fromkeys(score.domain for score in scores)
    samples = {d: [np.array(s.scores) for s in scores if s.domain == d and s.scores is not None] for d in domains}
    return {domain: mean_interval(values) for domain, values in samples.items() if values}


def main() -> None:
    evaluate(parse(EvaluateConfig, RECIPES))


if __name__ == "__main__":
    run("trainer.evaluate")
