"""Checks of a dataset's quality. Each looks for one kind of fault and says what to do about it.

A finding is a reason to look, not a proof: small worlds repeat episodes, and some experts push with full force.
Thresholds are far from what well-behaved data shows, so that a clean dataset has no finding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from collectors.dataset.doctor.facts import TaskFacts
from pipeline.envs.task import CONTINUOUS

FAR = 10.0  # robust standard deviations from the median
RARE = 0.01  # share of the episodes; what is more frequent is no outlier
MANY_REPEATS = 0.5  # share of repeated episodes in tasks whose observations may repeat by chance
SAME_TASK = 0.5  # share of a task's episodes that another task has, too
CONSTANT = 1e-7  # standard deviation, relative to the largest value
CLIPPED = 0.5  # share of the steps
Z, SHARE_OF_MEASURED = 5.0, 0.05  # standard errors, and share of the measured return
FEW_JUDGED = 10  # successful and failed episodes needed to compare them
UNEVEN = 10.0  # times fewer or more episodes than the median task of the domain
MAX_NAMED = 8
ADVICE = {
    "equal episodes": "keep one of each: `jat dataset remove --task {task} --seeds {seeds}`",
    "equal tasks": "one of them is mislabelled: compare their sources, `jat dataset remove --task {task}`",
    "unusual length": "look: `jat dataset replay --task {task} --seed {seed}`; take out: `remove --seeds {seeds}`",
    "unusual return": "look: `jat dataset replay --task {task} --seed {seed}`; take out: `remove --seeds {seeds}`",
    "constant dimension": "nothing can be learned from it; if it should vary, the source or a sensor is at fault",
    "clipped actions": "the expert leaves the action range: retrain it with bounded actions, or expect a hard target",
    "return unlike the measurement": "environment, noise or expert has changed: measure again with `jat experts`",
    "success against return": "failed episodes earn more: check where success comes from, do not select by it",
    "imbalance": "collect more with `jat collect --task {task}`, or weight the tasks when training",
}


@dataclass(frozen=True)
class Finding:
    """What is unusual about a task.

    Attributes:
        kind: one of ``ADVICE``.
        task: name of the task.
        count: number of episodes, dimensions or tasks that are affected.
        what: in a few words, with the values.
        advice: what to do.
    """

    kind: str
    task: str
    count: int
    what: str
    advice: str


def check_quality(tasks: Sequence[TaskFacts]) -> list[Finding]:
    """All findings, by task in the given order."""
    found = [finding for facts in tasks if len(facts) for finding in _check_task(facts)]
    found += _equal_tasks(tasks)
    found += _imbalance(tasks)
    order = {facts.task.name: place for place, facts in enumerate(tasks)}
    return sorted(found, key=lambda finding: order[finding.task])


def _check_task(facts: TaskFacts) -> Iterator[Finding]:
    yield from _equal_episodes(facts)
    yield from _outliers(facts, "unusual length", facts.lengths, "steps")
    yield from _outliers(facts, "unusual return", facts.returns, "")
    yield from _constant_dimensions(facts)
    yield from _clipped_actions(facts)
    yield from _measured_returns(facts)
    yield from _success_against_return(facts)


def _finding(kind: str, facts: TaskFacts, count: int, what: str, rows: np.ndarray | None = None) -> Finding:
    seeds = [] if rows is None else [int(seed) for seed in facts.seeds[rows] if seed >= 0]
    advice = ADVICE[kind].format(
        task=facts.task.name,
        seed=seeds[0] if seeds else "SEED",
        seeds=",".join(map(str, seeds[:MAX_NAMED])) + (",..." if len(seeds) > MAX_NAMED else "") if seeds else "SEEDS",
    )
    return Finding(kind, facts.task.name, count, what, advice)


def _equal_episodes(facts: TaskFacts) -> Iterator[Finding]:
    if facts.digests is None:
        return
    first: dict[bytes, int] = {}
    rows = [row for row, digest in enumerate(facts.digests) if first.setdefault(digest, row) != row]
    share = len(rows) / len(facts)
    if not rows or (facts.task.observation != CONTINUOUS and share < MANY_REPEATS):
        return
    pair = first[facts.digests[rows[0]]], rows[0]
    what = f"{len(rows)} of {len(facts)} episodes are copies of earlier ones, such as rows {pair[0]} and {pair[1]}"
    yield _finding("equal episodes", facts, len(rows), what, np.array(rows))


def _outliers(facts: TaskFacts, kind: str, values: np.ndarray, unit: str) -> Iterator[Finding]:
    """Few values that are far from all others, in units of a spread that outliers do not affect."""
    median = float(np.median(values))
    low, high = np.percentile(values, (25, 75))
    spread = (high - low) / 1.349  # of a normal distribution: its standard deviation
    if spread == 0:
        low, high = np.percentile(values, (2.5, 97.5))
        spread = (high - low) / 3.92
    rows = np.flatnonzero(np.abs(values - median) > FAR * spread)
    if not len(rows) or len(rows) > RARE * len(values):
        return
    shown = ", ".join(f"{value:g}" for value in values[rows[:3]])
    more = ", ..." if len(rows) > 3 else ""
    yield _finding(kind, facts, len(rows), f"{shown}{more} {unit}".strip() + f" where the median is {median:g}", rows)


def _constant_dimensions(facts: TaskFacts) -> Iterator[Finding]:
    """Dimensions of continuous observations and actions that never change; grids have many, which is no fault."""
    moments = {"observation": facts.statistics.observations, "action": facts.statistics.actions}
    for name, of_steps in moments.items():
        if of_steps is None or of_steps.count < 2 or (name == "observation" and facts.task.observation != CONTINUOUS):
            continue
        largest = np.maximum(np.abs(of_steps.low), np.abs(of_steps.high))
        dims = np.flatnonzero(np.array(of_steps.std) <= CONSTANT * largest).tolist()
        if dims:
            named = ", ".join(map(str, dims[:MAX_NAMED])) + (", ..." if len(dims) > MAX_NAMED else "")
            yield _finding("constant dimension", facts, len(dims), f"{name} {named} of {len(of_steps.std)}")


def _clipped_actions(facts: TaskFacts) -> Iterator[Finding]:
    if facts.clipped is None or facts.statistics.actions is None:
        return
    varies = np.array(facts.statistics.actions.std) > CONSTANT  # what never changes is another finding
    dims = np.flatnonzero((facts.clipped >= CLIPPED) & varies).tolist()
    if dims:
        named = ", ".join(f"{dim} ({facts.clipped[dim]:.0%})" for dim in dims[:MAX_NAMED])
        more = ", ..." if len(dims) > MAX_NAMED else ""
        yield _finding("clipped actions", facts, len(dims), f"at a bound in most steps: dimension {named}{more}")


def _measured_returns(facts: TaskFacts) -> Iterator[Finding]:
    """Experts whose mean return differs from their measurement by more than chance explains, and by some percent."""
    experts = np.array(facts.experts)
    for revision, measurement in (facts.measurements or {}).items():
        returns, measured = facts.returns[(experts == revision) & ~facts.noisy], measurement.accepted_returns
        if len(returns) < 2 or len(measured) < 2:
            continue
        error = math.sqrt(returns.var(ddof=1) / len(returns) + measured.var(ddof=1) / len(measured))
        difference = abs(returns.mean() - measured.mean())
        if difference > Z * error and difference > SHARE_OF_MEASURED * abs(measured.mean()):
            what = f"{revision}: {returns.mean():.4g} here, {measured.mean():.4g} in {len(measured)} measured episodes"
            yield _finding("return unlike the measurement", facts, len(returns), what)


def _success_against_return(facts: TaskFacts) -> Iterator[Finding]:
    won, lost = (facts.returns[facts.successes == value] for value in (1.0, 0.0))
    if min(len(won), len(lost)) >= FEW_JUDGED and np.median(won) < np.median(lost):
        what = (
            f"median return {np.median(won):.4g} of {len(won)} successes, {np.median(lost):.4g} of {len(lost)} failures"
        )
        yield _finding("success against return", facts, len(won) + len(lost), what)


def _equal_tasks(tasks: Sequence[TaskFacts]) -> Iterator[Finding]:
    """Pairs of tasks of which the smaller has mostly episodes of the larger."""
    holders: dict[bytes, list[int]] = {}
    for place, facts in enumerate(tasks):
        for digest in set(facts.digests or ()):
            holders.setdefault(digest, []).append(place)
    shared = Counter(
        (a, b) for places in holders.values() for i, a in enumerate(places) for b in places[i + 1 :]
    )  # fmt: skip
    for (a, b), count in sorted(shared.items()):
        sizes = [len(set(tasks[place].digests or ())) for place in (a, b)]
        if count >= SAME_TASK * min(sizes):
            what = f"{count} of {min(sizes)} different episodes are those of {tasks[a].task.name}"
            yield _finding("equal tasks", tasks[b], count, what)


def _imbalance(tasks: Sequence[TaskFacts]) -> Iterator[Finding]:
    """Tasks with many times fewer or more episodes than the others of their domain, and splits without episodes."""
    for domain in dict.fromkeys(facts.task.domain for facts in tasks):
        of_domain = [facts for facts in tasks if facts.task.domain == domain]
        median = float(np.median([len(facts) for facts in of_domain]))
        for facts in of_domain:
            if not UNEVEN * len(facts) > median > len(facts) / UNEVEN and len(of_domain) > 2:
                what = f"{len(facts):,} episodes, the median task of {domain} has {median:,.0f}"
                yield _finding("imbalance", facts, len(facts), what)
            for split, count in facts.splits.items():
                if not count:
                    yield _finding("imbalance", facts, 0, f"no {split} episode")
