"""What our own trainers keep of a training: its settings while it lasts, the network and its cost at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experts.store import StoredExpert, write_expert
from experts.training import CURVE, TrainJob, read_curve, read_progress
from pipeline.errors import UserError
from pipeline.records import read_values
from pipeline.versions import versions_of

if TYPE_CHECKING:
    from torch import Tensor

    from experts.spec import NetworkSpec

# File with the settings that must not change on resuming, in the folder of the training.
SETTINGS = "settings.json"


def check_same_settings(job: TrainJob, wanted: Mapping[str, Any]) -> None:
    """Raise if the training in the job's folder was started with other settings.

    Raises:
        UserError: names the settings that differ and the fix.
    """
    path = job.folder / SETTINGS
    if not path.exists():
        return
    found = read_values(path, dict[str, Any], "the settings of a training", f"remove {job.folder} to start anew")
    if found != wanted:
        differing = ", ".join(name for name in wanted if found.get(name) != wanted[name])
        raise UserError(
            f"{job.folder} was begun with another {differing}, so it cannot be resumed; remove it to start anew"
        )


def store_trained(
    job: TrainJob,
    kind: str,
    network: tuple[NetworkSpec, Mapping[str, Tensor]],
    origin: str,
    steps: int,
    facts: Mapping[str, Any],
    packages: Sequence[str],
) -> StoredExpert:
    """Write the network of a training of our own to the store, with what the training has cost and its curve.

    Args:
        job: the training.
        kind: kind of the expert.
        network: its specification and arrays.
        origin: how it was made, in words.
        steps: environment steps of the training; later points of the curve are left out.
        facts: what else its record says of the training.
        packages: whose versions are recorded, beside those of the task.
    """
    progress = read_progress(job.folder)
    cost = {
        "budget": progress.budget,
        "seed": job.seed,
        "steps": steps,
        "seconds": round(progress.seconds, 1),
        "core_seconds": round(progress.core_seconds, 1),
    }
    return write_expert(
        job.out,
        job.task.name,
        kind,
        *network,
        origin=origin,
        training={**facts, **cost},
        versions=versions_of((*packages, *job.task.packages)),
        curve=[point for point in read_curve(job.folder / CURVE) if point.steps <= steps],
    )
