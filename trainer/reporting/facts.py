"""Gathers the contents of the report from the outputs of the stages: numbers and names, without markup."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.envs.registry import all_tasks, domain_named
from pipeline.run_layout import MEASUREMENT, RunLayout
from pipeline.runtime.hardware import Hardware, this_machine
from pipeline.scoring.measurement import Measurement, read_measurement
from pipeline.scoring.rounds import Round, load_rounds
from pipeline.scoring.scores import jat_scale
from pipeline.seeds import FIRST_SEED
from pipeline.storage.manifest import DatasetManifest, FileEntry, TaskManifest
from pipeline.storage.plan import describe_missing
from pipeline.versions import versions_of
from trainer.evaluation.results import (
    OVERALL,
    Curve,
    DomainScore,
    Evaluation,
    TaskScore,
    load_curve,
    load_evaluation,
    load_measurement_of,
    weights_of,
)
from trainer.reporting.commands import RecordedRun, stage_runs
from trainer.training.logs import TrainManifest, read_log

PACKAGES = ("torch", "ray", "datasets", "pyarrow", "gymnasium", "numpy")
WEAK = 0.5  # normalised scores below this are called weak
NUM_WEAKEST = 10  # number of tasks listed as the weakest


@dataclass(frozen=True)
class ReportRow:
    """One task: its scores, its policies, and its data."""

    score: TaskScore
    measurement: Measurement | None
    data: TaskManifest | None

    @property
    def is_weak(self) -> bool:
        return self.score.score is not None and self.score.score.mean < WEAK

    @property
    def expert_on_jat_scale(self) -> float | None:
        """The mean return of our expert, normalised such that JAT's random policy is 0 and JAT's expert 1."""
        scale = jat_scale(self.score.task)
        return None if scale is None else (self.score.expert - scale[0]) / (scale[1] - scale[0])

    @property
    def agent_revision(self) -> str:
        return self.measurement.revision if self.measurement else ""


@dataclass(frozen=True)
class DataSummary:
    """The data of one domain and the experts that collected it.

    Attributes:
        experts: number of tasks by kind of expert.
        vs_jat: median over tasks of the expert's return on JAT's scale; None if JAT has none.
        num_as_good: number of tasks, of ``num_compared``, whose expert scores at least 0.9 of JAT's expert on that
            scale.
    """

    domain: str
    num_tasks: int
    train_episodes: int
    test_episodes: int
    train_steps: int
    num_rejected: int
    num_bytes: int
    experts: dict[str, int]
    vs_jat: float | None
    num_as_good: int
    num_compared: int


@dataclass(frozen=True)
class Facts:
    """Everything in the report except its images and videos.

    Attributes:
        training: None if the checkpoint was not trained in this run.
        log: the training curve, one dict per optimiser step.
        versions: versions of the packages that define the environments, at evaluation time.
        installed, machine: package versions and machine that write the report.
        seeds: first seed of each range and the purpose of the range.
        num_known: number of known tasks by domain, of which the evaluation may have only some.
        not_evaluated: tasks of the dataset that have not been evaluated.
        missing: the episodes that were planned and that the dataset lacks, in words; empty if there are none.
        rounds: the finished rounds of `jat dagger`; empty if this is no run of it.
    """

    evaluation: Evaluation
    rows: list[ReportRow]
    training: TrainManifest | None
    log: list[dict[str, Any]]
    curve: Curve | None
    data: list[DataSummary]
    stages: list[RecordedRun]
    versions: dict[str, str]
    installed: dict[str, str]
    machine: Hardware
    seeds: dict[str, int]
    num_known: dict[str, int]
    not_evaluated: list[str]
    missing: str
    rounds: list[Round]

    @cached_property
    def weakest(self) -> list[ReportRow]:
        """The tasks with the lowest scores, worst first."""
        scored = [row for row in self.rows if row.score.score is not None]
        return sorted((row for row in scored if row.is_weak), key=_mean_score)[:NUM_WEAKEST]

    @cached_property
    def not_scorable(self) -> list[ReportRow]:
        return [row for row in self.rows if row.score.score is None]

    @cached_property
    def rejected(self) -> list[ReportRow]:
        """Tasks for which some of the agent's episodes were rejected."""
        return [row for row in self.rows if row.score.rejected]

    @property
    def sampling_seconds(self) -> float:
        """Seconds that adaptive sampling spent on measuring; 0 without it."""
        return max((float(row.get("sampling_seconds", 0.0)) for row in self.log), default=0.0)

    def num_weak(self, domain: str) -> int:
        """Number of tasks of a domain, or of all tasks, with a score below ``WEAK``."""
        return sum(row.is_weak for row in self.rows if domain in (row.score.domain, OVERALL))

    def jat_iqm(self, domain: DomainScore) -> float | None:
        """JAT's published IQM of a domain; None if the evaluation lacks some of its tasks, so that the two are not
        comparable."""
        is_whole = domain.num_tasks == self.num_known.get(domain.domain)
        return domain_named(domain.domain).jat_iqm if is_whole else None

    @property
    def has_jat_iqms(self) -> bool:
        """Whether the evaluation has all of JAT's tasks of some domain."""
        return any(self.jat_iqm(domain) is not None for domain in self.evaluation.domains)

    @property
    def off_jat_scale(self) -> list[str]:
        """Tasks that JAT has, but on which JAT's expert is hardly better than random."""
        scores = [row.score for row in self.rows]
        return [score.task for score in scores if score.jat_expert is not None and jat_scale(score.task) is None]

    @property
    def num_wins(self) -> tuple[int, int]:
        """Number of tasks in which the agent is above JAT's on JAT's scale, and number of comparable tasks."""
        pairs = [(s.score_on_jat_scale, s.jat_score) for s in self.evaluation.tasks]
        compared = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        return sum(ours > theirs for ours, theirs in compared), len(compared)


def gather(out: Path, name: str = "") -> Facts:
    """Gather all facts of a run and of an evaluation in it: the run's own, or a separate named one.

    Raises:
        UserError: there is no such evaluation.
    """
    evaluation = load_evaluation(out, name)
    dataset = DatasetManifest.find(RunLayout(out).dataset)
    tasks = dataset.tasks if dataset else {}
    rows = [
        ReportRow(score, load_measurement_of(out, score.task, name), tasks.get(score.task))
        for score in evaluation.tasks
    ]
    evaluated = {row.score.task for row in rows}
    training = _training(out, evaluation)
    measured = [row.measurement.versions for row in rows if row.measurement]
    return Facts(
        evaluation=evaluation,
        rows=rows,
        training=training,
        log=read_log(RunLayout(out).train_log) if training else [],
        curve=load_curve(out) if training else None,
        data=_data_summaries(rows),
        stages=stage_runs(out),
        versions={name: version for versions in measured for name, version in sorted(versions.items())},
        installed={"python": platform.python_version(), **versions_of(PACKAGES)},
        machine=this_machine(),
        seeds=dict(FIRST_SEED),
        num_known=Counter(task.domain for task in all_tasks()),
        not_evaluated=[name for name in tasks if name not in evaluated],
        missing=describe_missing(dataset.missing, tasks) if dataset else "",
        rounds=load_rounds(out),
    )


def expert_revisions(out: Path, row: ReportRow) -> list[str]:
    """Return the experts whose videos may be shown next to the agent's: the one that collected the data, else the best
    measured one."""
    measured = []
    for path in sorted(RunLayout(out).experts_of(row.score.task).glob(f"[!.]*/{MEASUREMENT}")):
        found = read_measurement(path)
        if found.policy != "random" and len(found.accepted_returns):
            measured.append((float(found.accepted_returns.mean()), path.parent.name))
    collected = [row.data.expert_revision] if row.data else []
    return [*collected, *(revision for _, revision in sorted(measured, reverse=True))]


def _training(out: Path, evaluation: Evaluation) -> TrainManifest | None:
    """Return the run's training, if the evaluated checkpoint was trained by it."""
    path = RunLayout(out).train_manifest
    checkpoint = RunLayout(out).checkpoints / Path(evaluation.settings.checkpoint).name
    if not path.exists() or not (checkpoint / "model.safetensors").is_file():
        return None
    if weights_of(checkpoint) != evaluation.settings.weights:
        return None
    return TrainManifest.read(path)


def _mean_score(row: ReportRow) -> float:
    return row.score.score.mean if row.score.score else 0.0


def _data_summaries(rows: Sequence[ReportRow]) -> list[DataSummary]:
    domains = dict.fromkeys(row.score.domain for row in rows if row.data)
    return [
        _data_summary(domain, [row for row in rows if row.data and row.score.domain == domain]) for domain in domains
    ]


def _data_summary(domain: str, rows: Sequence[ReportRow]) -> DataSummary:
    manifests = [row.data for row in rows if row.data]
    train = [manifest.splits["train"] for manifest in manifests if "train" in manifest.splits]
    test = [manifest.splits["test"] for manifest in manifests if "test" in manifest.splits]
    vs_jat = [value for row in rows if (value := row.expert_on_jat_scale) is not None]
    return DataSummary(
        domain=domain,
        num_tasks=len(rows),
        train_episodes=sum(split.num_episodes for split in train),
        test_episodes=sum(split.num_episodes for split in test),
        train_steps=sum(split.num_steps for split in train),
        num_rejected=sum(split.num_rejected for split in [*train, *test]),
        num_bytes=_num_bytes(entry for split in [*train, *test] for entry in split.data),
        experts=dict(Counter(manifest.expert for manifest in manifests).most_common()),
        vs_jat=float(np.median(vs_jat)) if vs_jat else None,
        num_as_good=sum(value >= 0.9 for value in vs_jat),
        num_compared=len(vs_jat),
    )


def _num_bytes(entries: Iterable[FileEntry]) -> int:
    return sum(entry.num_bytes for entry in entries)
