"""Exports the status of a stage as Prometheus metrics on the metrics endpoint of the stage's Ray cluster.

Ray prepends ``ray_`` to each name. The labels are ``stage``, ``task`` and ``out``. ``task`` is the run's task selection
in ``jat_stage_...``, and one task in ``jat_task_...``. ``deploy/alerts.yml`` defines alerts on these metrics.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from pipeline.runtime.status import STATES, StageStatus

# Names and descriptions. Times are seconds since 1970.
METRICS = {
    "jat_stage_state": "1 for the state that a run is in (label state), else 0",
    "jat_stage_planned": "units of work of a run, 0 if not known",
    "jat_stage_done": "of these, done",
    "jat_stage_rejected": "of the done ones, rejected",
    "jat_stage_rate": "done per second",
    "jat_stage_started_seconds": "when a run started",
    "jat_stage_updated_seconds": "when a run last told of itself",
    "jat_stage_progressed_seconds": "when the number done last changed",
    "jat_stage_disk_free_bytes": "free where the outputs are, unless that is an object store",
    "jat_task_planned": "units of work of one task in a run",
    "jat_task_done": "of these, done",
    "jat_task_rejected": "of the done ones, rejected",
}


@dataclass(frozen=True)
class MetricSample:
    """The value of a metric with its labels."""

    name: str
    labels: dict[str, str]
    value: float


def samples(status: StageStatus) -> Iterator[MetricSample]:
    """Yield all metrics of a run."""
    words = status.task.split(",")
    # A scheduler may pass a list of all tasks, which is too long for a label.
    task = words[0] if len(words) == 1 else f"{words[0]} and {len(words) - 1} more"
    labels = {"stage": status.stage, "task": _escaped(task), "out": _escaped(status.out)}
    for state in STATES:
        yield MetricSample("jat_stage_state", {**labels, "state": state}, float(state == status.state))
    for name in ("planned", "done", "rejected", "rate"):
        yield MetricSample(f"jat_stage_{name}", labels, float(getattr(status, name)))
    for name in ("started", "updated", "progressed"):
        yield MetricSample(f"jat_stage_{name}_seconds", labels, getattr(status, name))
    if status.disk_free_bytes is not None:
        yield MetricSample("jat_stage_disk_free_bytes", labels, float(status.disk_free_bytes))
    for name, count in status.tasks.items():
        of_task = {**labels, "task": name}
        if count.planned:
            yield MetricSample("jat_task_planned", of_task, float(count.planned))
            yield MetricSample("jat_task_done", of_task, float(count.done + sum(count.running.values())))
            yield MetricSample("jat_task_rejected", of_task, float(count.rejected))


def _escaped(text: str) -> str:
    """Percent-encode characters other than printable ASCII, as in ``j%C3%BCrgen``; Ray accepts no others in labels."""
    return "".join(c if " " <= c <= "~" else quote(c, errors="surrogateescape") for c in text)


def publish(status: StageStatus, is_last: bool) -> None:
    """Export the metrics of a run on the connected cluster's endpoint; no-op without a cluster.

    Args:
        status: the run's status.
        is_last: whether the process may exit afterwards, so that the call must block until the metrics have arrived.
    """
    if sys.modules.get("ray") is None:
        return
    from pipeline.runtime.cluster import set_gauges

    set_gauges([(s.name, METRICS[s.name], s.labels, s.value) for s in samples(status)], is_last)
