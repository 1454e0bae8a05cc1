"""The algorithms that train experts, and the one each task is trained with unless told otherwise."""

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

# Processes of a training whose driver was killed end within seconds; one that resumes it waits for that.
LOCK_S = 60.0
LOCK = "lock"


@dataclass(frozen=True)
class Algorithm:
    """A way to train an expert.

    Attributes:
        module: has ``train`` and ``export``, a module ``recipes`` beside it ``check`` (see ``experts/training.py``);
            imported only where it runs.
        domains: where it has recipes.
        packages: import names it needs beyond what acting needs.
        num_cpus: cores one training occupies.
        num_gpus: GPUs, or a share of one, that one training occupies where there are any.
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
    """The algorithm whose recipe is known to work for ``task``.

    Raises:
        UserError: a domain whose experts are rules, not trained.
    """
    if task.domain in ("mujoco", "metaworld"):
        from experts.stable_baselines.recipes import own_algorithm

        return own_algorithm(task)
    if task.domain == "atari":
        return "ppo-cpu"
    raise UserError(f"{task.name}: experts of {task.domain} are not trained; its bot solves it")


def check_can_train(task: Task, algorithm: str) -> None:
    """Refuse an algorithm without a recipe for ``task``, or whose packages are not installed.

    Raises:
        UserError: unknown, not for this domain, or packages that are missing.
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
    """Train, in this process, from the last checkpoint if there is one.

    Raises:
        UserError: another process has been training in the same folder for ``LOCK_S`` seconds from now on.
        TrainingStoppedError: this process was asked to stop; the last checkpoint is written.
    """
    with exclusive(job.folder / LOCK, f"{job} is under way elsewhere: wait until it ends, or stop it", LOCK_S):
        return _module_of(job).train(job)


def export(job: TrainJob) -> StoredExpert:
    """Put the best policy of a training's last checkpoint into the store, whether the training runs or not.

    Raises:
        UserError: there is no checkpoint, or it holds no policy whose return is known.
    """
    return _module_of(job).export(job)


def check_can_resume(job: TrainJob) -> None:
    """Refuse a training whose checkpoint was made with other settings.

    Raises:
        UserError: it was; nothing is said if there is no checkpoint.
    """
    package = ALGORITHMS[job.algorithm].module.rpartition(".")[0]
    importlib.import_module(f"{package}.recipes").check(job)


def _module_of(job: TrainJob) -> Any:
    return importlib.import_module(ALGORITHMS[job.algorithm].module)
