"""The output files of an evaluation as types. This module does not import torch; the report and the model card use it.

OUT/evaluation/              of the final checkpoint of `jat train`, or of the one given
    <task>.json              every episode: a ``Measurement``
    <task>.jsonl             while a task is played: its finished episodes (``trainer/evaluation/journal.py``)
    films/<task>/<seed>.mp4  of the first episodes, and of the worst if these show no failure
    scores.json              an ``Evaluation``: settings, scores per task, per domain and overall; written last
    curve.json               a ``Curve``: the checkpoints along training
OUT/evaluation/<name>/       a separate named evaluation: the same files
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json, sha256_of, update_json
from pipeline.names import check_name, check_texts
from pipeline.records import RecordError, read_record, read_values
from pipeline.run_layout import RunLayout
from pipeline.scoring.measurement import Measurement, read_measurement
from pipeline.scoring.scores import Aggregate, Interval

OVERALL = "overall"
RESULTS = "the results of an evaluation"
# What to do about a damaged file of an evaluation.
AGAIN = "it is damaged or of another version: delete it and run `jat evaluate` again"


@dataclass(frozen=True)
class Settings:
    """What was evaluated, and with which settings.

    Attributes:
        checkpoint: its folder, or the repository it came from.
        weights: first digits of the digest of its weights.
        step, trained_timesteps: how long it was trained; 0 if not recorded.
        temperature: softmax temperature for sampling discrete actions; 0 takes the mode.
        contexts: context length in time steps, by task or domain, where it differs from the checkpoint's.
        returns: what was asked for, by task or domain, of an agent that can be asked; its default where not listed.
        continuous: how continuous actions were chosen; other than by their mean only in results of earlier versions.
    """

    checkpoint: str
    weights: str
    step: int
    trained_timesteps: int
    temperature: float
    contexts: dict[str, int]
    continuous: str = "mean"
    returns: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts((self.weights, self.continuous), self.contexts, self.returns)

    @property
    def revision(self) -> str:
        """Revision that the results of a task are labelled with."""
        return f"{self.weights} {self.how}"

    @property
    def how(self) -> str:
        """The revision without the weights."""
        text = f"at temperature {self.temperature:g}"
        if self.continuous != "mean":
            text += f", {self.continuous} continuous actions"
        if self.contexts:
            looks_back = ", ".join(f"{name} {steps}" for name, steps in sorted(self.contexts.items()))
            text += f", looking back {looks_back}"
        if self.returns:
            text += ", asked for " + ", ".join(f"{name} {value:g}" for name, value in sorted(self.returns.items()))
        return text


@dataclass(frozen=True)
class TaskScore:
    """One task's results.

    Attributes:
        random, expert: mean returns measured in this run.
        expert_kind: kind of the expert that collected the data, or else of the best measured one.
        agent: mean return with interval.
        scores: expert-normalised, per episode; None if the expert is not better than random ("not scorable").
        score: their mean with interval.
        success_rate: None if the task does not define success.
        num_episodes: number of valid episodes, without ``rejected`` ones.
        num_reference_episodes: the smaller number of episodes of random and expert.
        jat_expert: mean return JAT published for its expert, if it did.
        score_on_jat_scale: the agent's mean return normalised with JAT's published random and expert returns; None if
            the task is not scorable with these.
        jat_score: JAT's own agent on that scale.
        returns: returns of the valid episodes.
        random_returns, expert_returns: returns of the references; empty in results of earlier versions.
        rejected: number of episodes that do not count, by reason.
        jat_random, jat_return: mean returns JAT published for random and for its own agent.
        jat_scale_scores: like ``scores``, on JAT's scale.
        human: mean return of a human, in Atari.
        human_scores: per episode, where 0 is random and 1 a human; in Atari only.
        human_score: their mean with interval.
        jat_human_score: JAT's own agent on that scale.
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
    returns: list[float] = field(default_factory=list)
    random_returns: list[float] = field(default_factory=list)
    expert_returns: list[float] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    jat_random: float | None = None
    jat_return: float | None = None
    jat_scale_scores: list[float] | None = None
    human: float | None = None
    human_scores: list[float] | None = None
    human_score: Interval | None = None
    jat_human_score: float | None = None

    def __post_init__(self) -> None:
        check_name("task", self.task)
        check_name("domain", self.domain)
        check_texts((self.expert_kind,), self.rejected)
        own, others = (self.returns, self.scores), (self.random_returns, self.expert_returns)
        for values in (*own, *others, self.jat_scale_scores, self.human_scores):
            if values and not all(map(math.isfinite, values)):
                raise RecordError(f"returns or scores of {self.task} are not all finite")


@dataclass(frozen=True)
class DomainScore:
    """The aggregated results of a domain's tasks, or of all tasks (``overall``).

    Attributes:
        not_scorable: tasks whose expert is not better than random; expert-normalised aggregates exclude them.
        expert: aggregate of expert-normalised scores, with references measured in this run; None if no task is
            scorable.
        jat_scale: aggregate of scores with JAT's published references.
        human: aggregate of human-normalised scores; in Atari only.
        jat_mean: mean of JAT's own agent over the tasks of ``jat_scale``; the median is ``jat_median``. JAT published
            only means of tasks, so its IQM is not available for a subset of the tasks.
        jat_human_mean: the same for ``human``.
        success_rate: mean over the tasks that define success.
    """

    domain: str
    num_tasks: int
    not_scorable: list[str]
    expert: Aggregate | None
    jat_scale: Aggregate | None
    human: Aggregate | None
    jat_mean: float | None
    jat_median: float | None
    jat_human_mean: float | None
    success_rate: float | None

    def __post_init__(self) -> None:
        check_name("domain", self.domain)


@dataclass(frozen=True)
class Evaluation:
    """Contents of ``scores.json``."""

    settings: Settings
    tasks: list[TaskScore]
    domains: list[DomainScore]
    overall: DomainScore

    def __post_init__(self) -> None:
        if not self.tasks or {task.domain for task in self.tasks} != {domain.domain for domain in self.domains}:
            raise RecordError("its tasks and its domains differ")

    @property
    def summaries(self) -> list[DomainScore]:
        """Return the results of the domains, followed by those of all tasks if there are several domains."""
        return [*self.domains, self.overall] if len(self.domains) > 1 else self.domains


@dataclass(frozen=True)
class CheckpointPoint:
    """One checkpoint along training.

    Attributes:
        name: name of its folder.
        step: optimiser steps.
        timesteps: real (not padded) time steps processed.
        seconds: training time so far, without evaluation.
        flops: estimate: 6 for each parameter of the trunk and each position computed, including padding.
        domains: aggregate of expert-normalised scores by domain, and ``overall``.
    """

    name: str
    step: int
    timesteps: int
    seconds: float
    flops: float
    domains: dict[str, Aggregate]


@dataclass(frozen=True)
class Curve:
    """Contents of ``curve.json``: the same tasks and seeds played by checkpoints along training, ordered by step.

    Attributes:
        tasks: tasks that the scores include; tasks that are not scorable are excluded.
        episodes: minimum number per task and checkpoint.
        settings: description of the evaluation settings.
    """

    tasks: list[str]
    episodes: int
    settings: str
    points: list[CheckpointPoint]

    @property
    def names(self) -> list[str]:
        """Names of its domains, followed by ``overall`` if there are several."""
        found = dict.fromkeys(name for point in self.points for name in point.domains)
        return [name for name in found if name != OVERALL or len(found) > 2]


def load_measurement_of(out: Path, task_name: str, name: str = "") -> Measurement | None:
    """Load all episodes of a task in an evaluation; None if it has not been played."""
    path = RunLayout(out).played(task_name, name)
    return read_measurement(path, AGAIN) if path.exists() else None


def load_evaluation(out: Path, name: str = "") -> Evaluation:
    """Load the results of a finished evaluation.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    path = RunLayout(out).scores(name)
    if not path.exists():
        raise UserError(f"nothing is evaluated in {path.parent}; run `jat evaluate` with the same --out first")
    return read_record(path, Evaluation, RESULTS, AGAIN)


def load_scores(out: Path, name: str = "") -> list[TaskScore]:
    """Load the results of a finished evaluation by task; see ``load_evaluation``."""
    path = RunLayout(out).scores(name)
    if path.exists() and isinstance(read_json(path), list):  # format of older studies: only a list of tasks
        found: list[TaskScore] = read_values(path, list[TaskScore], RESULTS, AGAIN)
        return found
    return load_evaluation(out, name).tasks


def find_evaluation(out: Path, checkpoint: Path) -> tuple[str, Evaluation] | None:
    """Find the evaluation of a checkpoint and its name: the run's own, or else the first separate named one."""
    directory = RunLayout(out).evaluation()
    names = ["", *sorted(path.parent.name for path in directory.glob("*/scores.json"))]
    weights = weights_of(checkpoint)
    for name in names:
        if RunLayout(out).scores(name).exists():
            evaluation = load_evaluation(out, name)
            if evaluation.settings.weights == weights:
                return name, evaluation
    return None


def load_curve(out: Path) -> Curve | None:
    """Load the scores of the checkpoints along training; None if they have not been evaluated."""
    if not RunLayout(out).curve.exists():
        return None
    fix = "delete it and run `jat agent curve` again"
    return read_record(RunLayout(out).curve, Curve, "the scores along a training", fix)


def weights_of(checkpoint: Path) -> str:
    """Return the first digits of the digest of a checkpoint's weights."""
    return sha256_of(checkpoint / "model.safetensors")[:16]


def write_evaluation(out: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``scores.json`` unless it is unchanged."""
    update_json(RunLayout(out).scores(name), asdict(evaluation))
