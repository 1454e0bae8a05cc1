"""The state of a training with Stable-Baselines3: what is averaged, what is kept as the best, what a checkpoint holds.

The replay buffer is not saved (3 GB for a humanoid).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from experts.network import NetworkSpec
from experts.stable_baselines.archive import export_model
from experts.stable_baselines.recipes import ABOUT, StableBaselinesRecipe, check_settings, newest_checkpoint
from experts.training import TrainJob
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import digest_of, sync_folder, temporary_beside, write_json
from pipeline.records import record_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best policy seen, and how good the training episodes were that showed it; None if there were none.

    Attributes:
        score: what policies are compared by: the mean return, times a tenth plus the success rate where the task has
            one. Without the rate a policy that earns well beside its goal would be kept; without the tenth, the
            untrained one of a training that never succeeds.
    """

    spec: NetworkSpec
    arrays: dict[str, Tensor]
    score: float | None


class AveragedActor:
    """A moving average of an off-policy actor's parameters: the policy that is kept.

    At these learning rates the actor of one moment can fall over where those around it walk: two minutes after a
    humanoid's greedy policy had measured 6901 it measured 373, while its training return was the same.
    """

    # Share of the newest parameters after each step of all environments, so about the last 250 of these count.
    SHARE = 0.004

    def __init__(self, actor: nn.Module) -> None:
        self._parameters = [parameter.data for parameter in actor.parameters()]
        self.average = [parameter.clone() for parameter in self._parameters]

    def update(self) -> None:
        torch._foreach_lerp_(self.average, self._parameters, self.SHARE)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The actor has the averaged parameters inside."""
        own = [parameter.clone() for parameter in self._parameters]
        torch._foreach_copy_(self._parameters, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, own)


@dataclass
class TrainingState:
    """Everything of a training that a checkpoint holds.

    Attributes:
        averaged: None for on-policy algorithms, whose steps are small.
        best: None before a window of training episodes has ended.
    """

    task: Task
    model: BaseAlgorithm
    env: VecNormalize
    averaged: AveragedActor | None = None
    best: Best | None = None

    def export(self) -> tuple[NetworkSpec, dict[str, Tensor]]:
        """The policy of now, as the store takes it."""
        with self.averaged.in_place() if self.averaged else contextlib.nullcontext():
            spec, arrays = export_model(self.model, self.task, self.env)
        return dataclasses.replace(spec, sees_goal=self.task.domain == "metaworld"), arrays

    def note(self, score: float) -> None:
        """Keep the policy of now if no earlier one had shown a higher score."""
        if self.best is None or self.best.score is None or score > self.best.score:
            self.best = Best(*self.export(), score)

    def save(self, job: TrainJob, recipe: StableBaselinesRecipe) -> None:
        """Write a checkpoint, and only when it is on the disk remove the one before."""
        final = _unused(job.folder / f"checkpoint-{self.model.num_timesteps:012d}")
        with temporary_beside(final) as temporary:
            temporary.mkdir()
            self._write(temporary, recipe)
            sync_folder(temporary)
            temporary.rename(final)
        sync_folder(final)
        for other in job.folder.glob("checkpoint-*"):
            if other != final:
                shutil.rmtree(other)

    def _write(self, temporary: Path, recipe: StableBaselinesRecipe) -> None:
        self.model.save(temporary / "model.zip")
        self.env.save(str(temporary / "vec_normalize.pkl"))
        if self.averaged is not None:
            torch.save(self.averaged.average, temporary / "averaged_actor.pth")
        about: dict[str, Any] = {
            "task": self.task.name,
            "digest": digest_of(recipe),
            "steps": self.model.num_timesteps,
            "best": None,
        }
        if self.best is not None:
            torch.save(self.best.arrays, temporary / "best.pth")
            about["best"] = {"spec": dataclasses.asdict(self.best.spec), "score": self.best.score}
        write_json(temporary / ABOUT, about)

    def resume(self, job: TrainJob, recipe: StableBaselinesRecipe) -> int:
        """Take over the newest checkpoint; the steps it had done, 0 if there is none.

        Raises:
            UserError: it cannot be read, or another recipe made it.
        """
        folder = newest_checkpoint(job.folder)
        if folder is None:
            return 0
        about = check_settings(job, folder, recipe)
        try:
            self._load(folder, about)
        except Exception as error:  # a damaged file fails in many ways; starting from nothing in silence is worse
            raise UserError(
                f"{folder} cannot be resumed ({type(error).__name__}: {error}); remove {job.folder} to start anew"
            ) from error
        log.info("%s %s: resuming from %s steps", job.task.name, job.algorithm, f"{self.model.num_timesteps:,}")
        return self.model.num_timesteps

    def _load(self, folder: Path, about: dict[str, Any]) -> None:
        _, parameters, variables = load_from_zip_file(folder / "model.zip", device=self.model.device)
        self.model.set_parameters(parameters, device=self.model.device)
        for name, value in (variables or {}).items():  # SAC's entropy coefficient is in no state dict
            getattr(self.model, name).data = value.data
        saved = VecNormalize.load(str(folder / "vec_normalize.pkl"), self.env.venv)
        self.env.obs_rms, self.env.ret_rms = saved.obs_rms, saved.ret_rms
        if self.averaged is not None:
            self.averaged.average = torch.load(folder / "averaged_actor.pth", weights_only=True)
        self.best = read_best(folder, about)
        self.model.num_timesteps = int(about["steps"])


def read_best(folder: Path, about: dict[str, Any]) -> Best | None:
    """The best policy in a checkpoint that says ``about`` itself; None if no return was known when it was written."""
    if about["best"] is None:
        return None
    arrays = torch.load(folder / "best.pth", weights_only=True)
    return Best(record_of(about["best"]["spec"], NetworkSpec), arrays, about["best"]["score"])


def _unused(path: Path) -> Path:
    """``path``, or the first name after it that is free: a checkpoint is never removed before the next is whole."""
    number = 0
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
