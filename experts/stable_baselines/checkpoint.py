"""The state of a Stable-Baselines3 training: the averaged actor, the best policy, and checkpoints.

Checkpoints do not contain the replay buffer (3 GB for a humanoid).
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
    """The best policy so far and its score in training episodes.

    Attributes:
        score: number by which policies are compared; None if no training episodes were available. It is the mean
            return. Where the task defines success, the mean return is multiplied by (0.1 + success rate). Without the
            rate, a policy with high reward that misses the goal would be kept. Without the 0.1, a training that never
            succeeds would keep the untrained policy.
    """

    spec: NetworkSpec
    arrays: dict[str, Tensor]
    score: float | None


class AveragedActor:
    """An exponential moving average of an off-policy actor's parameters; this is the policy that is stored.

    At these learning rates single iterates of the actor can fail while their neighbours succeed: a humanoid's greedy
    policy measured 6901 and two minutes later 373, while its training return was unchanged.
    """

    # Weight of the newest parameters. The average is updated after each vectorised step, so it covers about 250 steps.
    SHARE = 0.004

    def __init__(self, actor: nn.Module) -> None:
        self._parameters = [parameter.data for parameter in actor.parameters()]
        self.average = [parameter.clone() for parameter in self._parameters]

    def update(self) -> None:
        torch._foreach_lerp_(self.average, self._parameters, self.SHARE)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Context manager in which the actor uses the averaged parameters."""
        own = [parameter.clone() for parameter in self._parameters]
        torch._foreach_copy_(self._parameters, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, own)


@dataclass
class TrainingState:
    """The training state that a checkpoint contains.

    Attributes:
        averaged: None for on-policy algorithms, whose updates are small.
        best: None until a full window of training episodes has ended.
    """

    task: Task
    model: BaseAlgorithm
    env: VecNormalize
    averaged: AveragedActor | None = None
    best: Best | None = None

    def export(self) -> tuple[NetworkSpec, dict[str, Tensor]]:
        """Convert the current policy to the store's format."""
        with self.averaged.in_place() if self.averaged else contextlib.nullcontext():
            spec, arrays = export_model(self.model, self.task, self.env)
        return dataclasses.replace(spec, sees_goal=self.task.hidden_goal is not None), arrays

    def note(self, score: float) -> None:
        """Keep the current policy as the best if its score is higher than that of any earlier one."""
        if self.best is None or self.best.score is None or score > self.best.score:
            self.best = Best(*self.export(), score)

    def save(self, job: TrainJob, recipe: StableBaselinesRecipe) -> None:
        """Write a checkpoint; remove the previous one only after the new one is synced to disk."""
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
            _save(self.averaged.average, temporary / "averaged_actor.pth")
        about: dict[str, Any] = {
            "task": self.task.name,
            "digest": digest_of(recipe),
            "steps": self.model.num_timesteps,
            "best": None,
        }
        if self.best is not None:
            _save(self.best.arrays, temporary / "best.pth")
            about["best"] = {"spec": dataclasses.asdict(self.best.spec), "score": self.best.score}
        write_json(temporary / ABOUT, about)

    def resume(self, job: TrainJob, recipe: StableBaselinesRecipe) -> int:
        """Load the newest checkpoint and return its number of steps; 0 if there is none.

        Raises:
            UserError: the checkpoint cannot be read, or was made by another recipe.
        """
        folder = newest_checkpoint(job.folder)
        if folder is None:
            return 0
        about = check_settings(job, folder, recipe)
        try:
            self._load(folder, about)
        except Exception as error:  # a damaged file can raise anything; restarting silently from zero would be worse
            raise UserError(
                f"{folder} cannot be resumed ({type(error).__name__}: {error}); remove {job.folder} to start anew"
            ) from error
        log.info("%s %s: resuming from %s steps", job.task.name, job.algorithm, f"{self.model.num_timesteps:,}")
        return self.model.num_timesteps

    def _load(self, folder: Path, about: dict[str, Any]) -> None:
        _, parameters, variables = load_from_zip_file(folder / "model.zip", device=self.model.device)
        self.model.set_parameters(parameters, device=self.model.device)
        for name, value in (variables or {}).items():  # SAC's entropy coefficient is not in a state dict
            getattr(self.model, name).data = value.data
        saved = VecNormalize.load(str(folder / "vec_normalize.pkl"), self.env.venv)
        self.env.obs_rms, self.env.ret_rms = saved.obs_rms, saved.ret_rms
        if self.averaged is not None:
            self.averaged.average = torch.load(folder / "averaged_actor.pth", weights_only=True)
        self.best = read_best(folder, about)
        self.model.num_timesteps = int(about["steps"])


def read_best(folder: Path, about: dict[str, Any]) -> Best | None:
    """Read the best policy of a checkpoint with metadata ``about``; None if it had no return yet."""
    if about["best"] is None:
        return None
    arrays = torch.load(folder / "best.pth", weights_only=True)
    return Best(record_of(about["best"]["spec"], NetworkSpec), arrays, about["best"]["score"])


def _unused(path: Path) -> Path:
    """Return ``path``, or the first free name after it: an old checkpoint is kept until the next one is complete."""
    number = 0
    found = path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def _save(value: Any, path: Path) -> None:
    """Write through a file of Python's: given a path, torch raises an error of its own that hides a full disk."""
    with path.open("wb") as handle:
        torch.save(value, handle)
