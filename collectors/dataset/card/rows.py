"""The figures of the card, by task and by domain, for its tables and plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collectors.dataset.markdown import as_code, as_text
from pipeline.envs.task import Task
from pipeline.scoring.scores import jat_scale
from pipeline.storage.statistics import Moments, SplitStatistics, TaskStatistics

WEAK_SUCCESS, WEAK_SCORE, MANY_REJECTED = 0.5, 0.75, 0.1  # thresholds for the card's warning about a task
MAX_NAMED = 3  # experts listed by name in a table cell


@dataclass(frozen=True)
class CardRow:
    """One task: its training split, and figures of both splits together."""

    task: Task
    train: SplitStatistics
    test: SplitStatistics

    @cached_property
    def both(self) -> SplitStatistics:
        return self.train.merge(self.test)

    @property
    def jat_range(self) -> tuple[float, float] | None:
        """Mean returns that JAT published for its random policy and its expert; None if they define no scale."""
        return jat_scale(self.task.name)

    @property
    def on_jat_scale(self) -> float | None:
        """Mean return of the training episodes, scaled so that JAT's random policy is 0 and its expert 1."""
        if self.jat_range is None or not self.train.num_episodes:
            return None
        random, expert = self.jat_range
        return (self.train.returns.mean[0] - random) / (expert - random)

    @property
    def expert_kinds(self) -> list[str]:
        """Kinds of the acting experts; a revision is a kind and an identifier among experts of that kind."""
        return sorted({revision.rsplit("-", 1)[0] for revision in self.both.experts if revision})

    @property
    def rejected_share(self) -> float:
        """Share of the played seeds whose episode was rejected."""
        num_rejected = sum(self.both.rejected.values())
        return num_rejected / max(1, num_rejected + self.both.num_episodes)

    @property
    def is_weak(self) -> bool:
        """Whether its expert rarely succeeds or has a far lower return than JAT's, or many seeds are rejected."""
        rate, score = self.train.success_rate, self.on_jat_scale
        return (
            (rate is not None and rate < WEAK_SUCCESS)
            or (score is not None and score < WEAK_SCORE)
            or self.rejected_share > MANY_REJECTED
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table of its domain."""
        train, both = self.train, self.both
        score = self.on_jat_scale
        return (
            f"`{self.task.name}`",
            _experts(both),
            f"{train.num_episodes:,} + {self.test.num_episodes:,}",
            _mean_and_range(train.returns),
            "-" if score is None else f"{score:.2f}",
            "-" if train.success_rate is None else f"{train.success_rate:.2f}",
            f"{sum(both.rejected.values()):,}",
            f"{both.num_steps:,}",
            f"{train.lengths.mean[0]:,.0f}" if train.num_episodes else "-",
            f"{both.num_bytes / 1e6:,.1f}",
        )


TASK_HEADINGS = (
    "task", "expert", "train + test episodes", "return (range)", "on JAT's scale", "success", "rejected", "steps",
    "length", "MB",
)  # fmt: skip


@dataclass(frozen=True)
class DomainRow:
    """The tasks of one domain."""

    domain: str
    tasks: tuple[CardRow, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the summary, without the name."""
        train = [row.train for row in self.tasks]
        both = [row.both for row in self.tasks]
        scores = [score for row in self.tasks if (score := row.on_jat_scale) is not None]
        rates = [rate for s in train if (rate := s.success_rate) is not None]
        kinds = {kind for row in self.tasks for kind in row.expert_kinds}
        return (
            f"{len(self.tasks)}",
            ", ".join(map(as_text, sorted(kinds))),
            f"{sum(s.num_episodes for s in train):,} + {sum(row.test.num_episodes for row in self.tasks):,}",
            f"{sum(s.num_steps for s in both):,}",
            f"{sum(s.num_bytes for s in both) / 1e6:,.1f}",
            _median_and_range(scores),
            f"{np.mean(rates):.2f}" if rates else "-",
            f"{sum(sum(s.rejected.values()) for s in both):,}",
        )


DOMAIN_HEADINGS = (
    "", "tasks", "experts", "train + test episodes", "steps", "MB", "median on JAT's scale (range over tasks)",
    "success", "rejected",
)  # fmt: skip


def domain_rows(tasks: Sequence[Task], statistics: Sequence[TaskStatistics]) -> list[DomainRow]:
    """The tasks of a dataset by domain, in their order."""
    rows = [CardRow(t, s.splits["train"], s.splits["test"]) for t, s in zip(tasks, statistics, strict=True)]
    domains = dict.fromkeys(task.domain for task in tasks)
    return [DomainRow(domain, tuple(row for row in rows if row.task.domain == domain)) for domain in domains]


def _mean_and_range(moments: Moments) -> str:
    if not moments.count:
        return "-"
    mean, low, high = (f"{value:,.2f}" for value in (moments.mean[0], moments.low[0], moments.high[0]))
    return mean if low == high else f"{mean} ({low} to {high})"


def _median_and_range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    median = f"{np.median(values):.2f}"
    return median if len(values) == 1 else f"{median} ({min(values):.2f} to {max(values):.2f})"


def reasons(rows: Sequence[CardRow]) -> dict[str, int]:
    """Reasons of rejections, the most frequent first, with counts."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.both.rejected)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _experts(statistics: SplitStatistics) -> str:
    """The acting experts, the most frequent first, with shares if there are several."""
    ordered = sorted(statistics.experts.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > MAX_NAMED:
        return f"{len(ordered)} experts"
    if len(ordered) < 2:
        return "".join(_named(revision) for revision, _ in ordered)
    return ", ".join(f"{_named(revision)} {count / statistics.num_episodes:.0%}" for revision, count in ordered)


def _named(revision: str) -> str:
    return as_code(revision, in_table=True) if revision else "unknown"
