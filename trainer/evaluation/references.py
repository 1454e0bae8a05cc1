"""The references that the agent is compared with: the random policy and the expert, as ``jat experts`` measured
them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from pipeline.scoring.measurement import Measurement, best_measurement, load_measurements, packaged_measurements
from pipeline.storage.manifest import collected_by


def load_references(out: Path, tasks: Sequence[Task], pattern: str = "") -> dict[Task, tuple[Measurement, Measurement]]:
    """Return, per task, the measurements of the random policy and of the expert that collected the dataset.

    If the dataset's expert is not a measured one (a mix, for example), the best measured expert is used. A task that is
    not measured in ``out`` has the measurements that come with the package.

    Raises:
        UserError: they are not measured; names the command that measures them.
    """
    collected = collected_by(out)
    references: dict[Task, tuple[Measurement, Measurement]] = {}
    missing = []
    for task in tasks:
        random, experts = _by_policy(load_measurements(out, task))
        if random is None or not experts:
            random, experts = _by_policy(packaged_measurements(task))
        if random is None or not experts:
            missing.append(task.name)
            continue
        best = best_measurement(list(experts.values()))
        references[task] = random, experts.get(collected.get(task.name, ""), best)
    if missing:
        names = ",".join(missing) if len(missing) <= 8 or not pattern else pattern
        raise UserError(
            f"no measurement of random and expert with the installed packages of {', '.join(missing[:8])}"
            f"{f' and {len(missing) - 8} more' if len(missing) > 8 else ''} in {RunLayout(out).experts}; "
            f"run `jat experts --task {names} --out {out}` first"
        )
    return references


def _by_policy(found: dict[str, Measurement]) -> tuple[Measurement | None, dict[str, Measurement]]:
    """Return the measurement of the random policy, if there is one, and those of the experts by revision."""
    random = next((measurement for measurement in found.values() if measurement.policy == "random"), None)
    return random, {revision: measurement for revision, measurement in found.items() if measurement.policy != "random"}
