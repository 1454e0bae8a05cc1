"""The algorithms that train experts, and the default algorithm of each task."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from experts.store import StoredExpert
from experts.training import TrainJob
from pipeline.envs.task import Task
from pipeline.errors import UserError, how_to_install
from pipeline.files import exclusive

# Seconds to wait for the lock of a training: if its driver was killed, its processes end within seconds.
LOCK_S = 60.0
LOCK = "lock"


@dataclass(frozen=True)
class Algorithm:
    """An algorithm that trains experts.

    Attributes:
        module: module with ``train`` and ``export``; a module ``recipes`` in the same package has ``check`` (see
            ``experts/training.py``). It is only imported where it runs.
        domains: domains that it has recipes for.
        packages: import names that training needs in addition to those for acting.
        num_cpus: cores reserved per training.
        num_gpus: GPUs, or a share of one, reserved per training if there are any.
    """

    module: str
    domains: tuple[str, ...]
    packages: tuple[str, ...]
    num_cpus: int = 1
    num_gpus: float = 0


_ON_POLICY = Algorithm(
    "experts.stable_baselines.train", ("mujoco", "metaworld"), ("stable_baselines3", "sb3_contrib", "envpool")
)
_OFF_POLICY = dataclasses.replace(_ON_POLICY, num_gpus=0.25)
ALGORITHMS = {
    "ppo": _ON_POLICY,
    "trpo": _ON_POLICY,
    "sac": _OFF_POLICY,
    "tqc": _OFF_POLICY,
    "crossq": _OFF_POLICY,
    "ppo-cpu": Algorithm("experts.ppo_cpu.train", ("atari",), ("torch",)),
    "sample-factory": Algorithm(
        "experts.sample_factory.train", ("atari", "mujoco", "metaworld"), ("sample_factory",), num_cpus=2, num_gpus=1
    ),
}


def default_algorithm(task: Task) -> str:
    """Return the algorithm whose recipe is known to work for ``task``.

    Raises:
        UserError: the experts of the domain are rules and not trained.
    """
    if task.domain in ("mujoco", "metaworld"):
        from experts.stable_baselines.recipes import own_algorithm

        return own_algorithm(task)
    if task.domain == "atari":
        return "ppo-cpu"
    raise UserError(f"{task.name}: experts of {task.domain} are not trained; its bot solves it")


def check_can_train(task: Task, algorithm: str) -> None:
    """Check that an algorithm has a recipe for ``task`` and that its packages are installed.

    Raises:
        UserError: the algorithm is unknown or not for this domain, or packages are missing.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(f"unknown algorithm {algorithm!r}; allowed: {', '.join(ALGORITHMS)}")
    possible = [name for name, value in ALGORITHMS.items() if task.domain in value.domains]
    if algorithm not in possible:
        raise UserError(f"{algorithm} has no recipe for {task.name}; allowed there: {', '.join(possible) or 'none'}")
    missing = [name for name in ALGORITHMS[algorithm].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"training with {algorithm} needs {', '.join(missing)}; run {how_to_install('experts', 'setup-experts')}"
        )


def train(job: TrainJob) -> StoredExpert:
    """Train in this process; resume from the last checkpoint if there is one.

    Raises:
        UserError: another process is training in the same folder and still holds its lock after ``LOCK_S`` seconds.
        TrainingStoppedError: this process was asked to stop; a last checkpoint has been written.
    """
    with exclusive(job.folder / LOCK, f"{job} is under way elsewhere: wait until it ends, or stop it", LOCK_S):
        return _module_of(job).train(job)


def export(job: TrainJob) -> StoredExpert:
    """Write the best policy of a training's last checkpoint to the store; the training may be running.

    Raises:
        UserError: there is no checkpoint, or it contains no policy with a known return.
    """
    return _module_of(job).export(job)


def check_can_resume(job: TrainJob) -> None:
    """Check that a training's checkpoint, if there is one, was made with the same settings.

    Raises:
        UserError: it was made with other settings.
    """
    package = ALGORITHMS[job.algorithm].module.rpartition(".")[0]
    importlib.import_module(f"{package}.recipes").check(job)


def _module_of(job: TrainJob) -> Any:
    return importlib.import_module(ALGORITHMS[job.algorithm].module)
