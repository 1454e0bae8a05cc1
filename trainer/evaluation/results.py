"""What an evaluation leaves: its files as types. No torch here; the report and the model card read these.

OUT/evaluation/              of the checkpoint that `jat train` finished with, or the one named
    <task>.json              every episode: a ``Measurement``
    <task>.jsonl             while a task is played: the episodes that are over (``trainer/evaluation/journal.py``)
    films/<task>/<seed>.mp4  of the first episodes, and of the worst if these show no failure
    scores.json              an ``Evaluation``: settings, scores per task, per domain and overall; written last
    curve.json               a ``Curve``: the checkpoints along training
OUT/evaluation/<name>/       another one, kept beside it: the same files
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json, sha256_of, update_json
from pipeline.scoring.measurement import Measurement
from pipeline.scoring.scores import Aggregate, Interval

OVERALL = "overall"


@dataclass(frozen=True)
class Settings:
    """What was evaluated, and how.

    Attributes:
        checkpoint: its folder, or the repository it came from.
        weights: first digits of the digest of its weights.
        step, trained_timesteps: how long it was trained; 0 where it does not say.
        temperature: of sampled discrete actions; 0 takes the likeliest.
        contexts: time steps it looked back, by task or domain, where other than the checkpoint says.
        continuous: which of the continuous actions that the network finds likely was taken.
    """

    checkpoint: str
    weights: str
    step: int
    trained_timesteps: int
    temperature: float
    contexts: dict[str, int]
    continuous: str = "mean"

    @property
    def revision(self) -> str:
        """What the results of a task say they are of."""
        return f"{self.weights} {self.how}"

    @property
    def how(self) -> str:
        """The same without the weights."""
        text = f"at temperature {self.temperature:g}"
        if self.continuous != "mean":
            text += f", {self.continuous} continuous actions"
        if self.contexts:
            looks_back = ", ".join(f"{name} {steps}" for name, steps in sorted(self.contexts.items()))
            text += f", looking back {looks_back}"
        return text


@dataclass(frozen=True)
class TaskScore:
    """One task's results.

    Attributes:
        random, expert: mean returns measured in this run.
        expert_kind: of the expert that collected the data, or else of the best that is measured.
        agent: mean return with interval.
        scores: expert-normalised, per episode; None where the expert is not better than random ("not scorable").
        score: their mean with interval.
        success_rate: None where the task has no notion of it.
        num_episodes: that count; ``rejected`` ones do not.
        num_reference_episodes: the fewer of random's and the expert's.
        jat_expert: mean return JAT published for its expert, where it did.
        score_on_jat_scale: the agent's mean return normalised with JAT's published random and expert returns; None
            where these are not scorable.
        jat_score: JAT's own agent on that scale.
        returns: of the episodes that count.
        random_returns, expert_returns: the same of the references; empty in results of earlier versions.
        rejected: episodes that do not count, by reason.
        jat_random, jat_return: mean returns JAT published for random and for its own agent.
        jat_scale_scores: as ``scores``, on JAT's scale.
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


@dataclass(frozen=True)
class DomainScore:
    """The results of a domain's tasks together, or of all tasks (``overall``).

    Attributes:
        not_scorable: tasks whose expert is not better than random; they are in no expert-normalised aggregate.
        expert: of expert-normalised scores, with references measured in this run; None where no task is scorable.
        jat_scale: of scores with JAT's published references.
        human: of human-normalised scores; in Atari only.
        jat_mean: mean over the tasks of ``jat_scale`` of JAT's own agent; its median is ``jat_median``. JAT published
            means of tasks only, so there is no IQM of it for some of the tasks.
        jat_human_mean: the same of ``human``.
        success_rate: mean over tasks that know success.
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


@dataclass(frozen=True)
class Evaluation:
    """``scores.json``."""

    settings: Settings
    tasks: list[TaskScore]
    domains: list[DomainScore]
    overall: DomainScore

    @property
    def summaries(self) -> list[DomainScore]:
        """Of the domains, and of all tasks where that is not the same."""
        return [*self.domains, self.overall] if len(self.domains) > 1 else self.domains


@dataclass(frozen=True)
class CheckpointPoint:
    """One checkpoint along training.

    Attributes:
        name: of its folder.
        step: optimiser steps.
        timesteps: real (not padded) time steps seen.
        seconds: of training so far, without evaluation.
        flops: estimate: 6 for each parameter of the trunk and each position computed, padding included.
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
    """``curve.json``: the same tasks and seeds played by checkpoints along training, in the order of their steps.

    Attributes:
        tasks: that are in the scores; a task that is not scorable is not.
        episodes: per task and checkpoint, at least.
        settings: how they were played, in words.
    """

    tasks: list[str]
    episodes: int
    settings: str
    points: list[CheckpointPoint]

    @property
    def names(self) -> list[str]:
        """Of the domains in it, and ``overall`` where that is not the same."""
        found = dict.fromkeys(name for point in self.points for name in point.domains)
        return [name for name in found if name != OVERALL or len(found) > 2]


def evaluation_directory(out: Path, name: str = "") -> Path:
    """Where an evaluation is; ``name`` is that of one kept beside the run's own."""
    return out / "evaluation" / name


def scores_path(out: Path, name: str = "") -> Path:
    return evaluation_directory(out, name) / "scores.json"


def curve_path(out: Path) -> Path:
    return evaluation_directory(out) / "curve.json"


def load_measurement_of(out: Path, task_name: str, name: str = "") -> Measurement | None:
    """Every episode of a task in an evaluation; None if it is not played."""
    path = evaluation_directory(out, name) / f"{task_name}.json"
    return Measurement(**read_json(path)) if path.exists() else None


def load_evaluation(out: Path, name: str = "") -> Evaluation:
    """The results of a finished evaluation.

    Raises:
        UserError: there is none, or it is of another version.
    """
    path = scores_path(out, name)
    if not path.exists():
        raise UserError(f"nothing is evaluated in {path.parent}; run `jat evaluate` with the same --out first")
    raw = read_json(path)
    try:
        return Evaluation(
            Settings(**raw["settings"]),
            [_task_score(row) for row in raw["tasks"]],
            [_domain_score(row) for row in raw["domains"]],
            _domain_score(raw["overall"]),
        )
    except (TypeError, KeyError) as error:
        raise UserError(f"{path} is of another version ({error}); run `jat evaluate` again") from error


def load_scores(out: Path, name: str = "") -> list[TaskScore]:
    """Results of a finished evaluation by task; see ``load_evaluation``."""
    path = scores_path(out, name)
    raw = read_json(path) if path.exists() else None
    if isinstance(raw, list):  # of studies begun before there was more than a list of tasks
        return [_task_score({"human_score": None, **row}) for row in raw]
    return load_evaluation(out, name).tasks


def find_evaluation(out: Path, checkpoint: Path) -> tuple[str, Evaluation] | None:
    """The evaluation of a checkpoint and its name: the run's own, or else the first of those kept beside it."""
    directory = evaluation_directory(out)
    names = ["", *sorted(path.parent.name for path in directory.glob("*/scores.json"))]
    weights = weights_of(checkpoint)
    for name in names:
        if scores_path(out, name).exists():
            evaluation = load_evaluation(out, name)
            if evaluation.settings.weights == weights:
                return name, evaluation
    return None


def load_curve(out: Path) -> Curve | None:
    """The checkpoints along training; None if they are not evaluated."""
    if not curve_path(out).exists():
        return None
    raw = read_json(curve_path(out))
    points = [
        CheckpointPoint(**{**row, "domains": {name: _aggregate(value) for name, value in row["domains"].items()}})
        for row in raw["points"]
    ]
    return Curve(raw["tasks"], raw["episodes"], raw["settings"], points)


def weights_of(checkpoint: Path) -> str:
    """First digits of the digest of a checkpoint's weights."""
    return sha256_of(checkpoint / "model.safetensors")[:16]


def write_evaluation(out: Path, name: str, evaluation: Evaluation) -> None:
    """Write ``scores.json`` if anything in it has changed."""
    update_json(scores_path(out, name), asdict(evaluation))


def _interval(raw: dict[str, float] | None) -> Interval | None:
    return Interval(**raw) if raw else None


def _aggregate(raw: dict[str, Any]) -> Aggregate:
    intervals = {name: Interval(**raw[name]) for name in ("mean", "median", "iqm", "optimality_gap")}
    return Aggregate(raw["num_tasks"], raw["num_episodes"], **intervals)


def _task_score(raw: dict[str, Any]) -> TaskScore:
    return TaskScore(**{**raw, **{key: _interval(raw[key]) for key in ("agent", "score", "human_score")}})


def _domain_score(raw: dict[str, Any]) -> DomainScore:
    scales = {key: _aggregate(raw[key]) if raw[key] else None for key in ("expert", "jat_scale", "human")}
    return DomainScore(**{**raw, **scales})
