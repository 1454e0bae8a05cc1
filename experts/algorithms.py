"""The algorithms that train experts, and the default algorithm of each task."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experts.ars import recipes as ars
from experts.ppo_cpu import recipes as ppo_cpu
from experts.sample_factory import recipes as sample_factory
from experts.stable_baselines import recipes as stable_baselines
from experts.store import StoredExpert
from experts.training import TrainJob
from pipeline.envs.registry import domain_of
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
        can_train: whether it has a recipe for a task.
        packages: import names that training needs in addition to those for acting.
        num_cpus: cores reserved per training.
        num_gpus: GPUs, or a share of one, reserved per training if there are any.
    """

    module: str
    can_train: Callable[[Task], bool]
    packages: tuple[str, ...]
    num_cpus: int = 1
    num_gpus: float = 0


def _stable_baselines(name: str) -> Algorithm:
    return Algorithm(
        "experts.stable_baselines.train",
        lambda task: stable_baselines.can_train(task, name),
        ("stable_baselines3", "sb3_contrib", "envpool"),
        num_gpus=0.25 if name in stable_baselines.OFF_POLICY else 0,
    )


ALGORITHMS = {name: _stable_baselines(name) for name in ("ppo", "trpo", "sac", "tqc", "crossq")} | {
    "ars": Algorithm("experts.ars.train", ars.can_train, ("torch",)),
    "ppo-cpu": Algorithm("experts.ppo_cpu.train", ppo_cpu.can_train, ("torch",)),
    "sample-factory": Algorithm(
        "experts.sample_factory.train", sample_factory.can_train, ("sample_factory",), num_cpus=2, num_gpus=1
    ),
}


def algorithms_for(task: Task) -> list[str]:
    """Names of the algorithms that have a recipe for a task."""
    return [name for name, algorithm in ALGORITHMS.items() if algorithm.can_train(task)]


def default_algorithm(task: Task) -> str:
    """Return the algorithm whose recipe is known to work for ``task``.

    Raises:
        UserError: no algorithm trains on such observations; the message names the experts that there are.
    """
    possible = algorithms_for(task)
    if task.name in ars.TUNED:
        return "ars"
    if "ppo" in possible:
        return stable_baselines.own_algorithm(task)
    if possible:
        return possible[0]
    rules = ", ".join(domain_of(task).experts)
    there = f"its {rules} solves it" if rules else "give one to load, --expert PATH"
    raise UserError(f"{task.name}: experts of {task.domain} are not trained; {there}")


def check_can_train(task: Task, algorithm: str) -> None:
    """Check that an algorithm has a recipe for ``task`` and that its packages are installed.

    Raises:
        UserError: the algorithm is unknown or not for this domain, or packages are missing.
    """
    if algorithm not in ALGORITHMS:
        raise UserError(f"unknown algorithm {algorithm!r}; allowed: {', '.join(ALGORITHMS)}")
    possible = algorithms_for(task)
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
