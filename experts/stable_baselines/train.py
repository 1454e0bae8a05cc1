"""Train an expert with Stable-Baselines3 or sb3-contrib over EnvPool, resumable.

Every few minutes the model, its optimisers and the normalisation statistics are saved; a run that is started again
goes on from there. The replay buffer is not saved (3 GB for a humanoid): a resumed run first refills it with
``warmup_steps`` transitions of its own policy.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from sb3_contrib import TQC, TRPO, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
from torch import Tensor, nn

from experts.network import NetworkSpec
from experts.stable_baselines.archive import export_model
from experts.stable_baselines.demonstrations import CriticFirst, MixedReplayBuffer, clone, demonstrate
from experts.stable_baselines.envs import make_vec_env
from experts.stable_baselines.recipes import OFF_POLICY, Recipe, recipe_of
from experts.store import StoredExpert, write_expert
from experts.training import TrainingMonitor, TrainJob
from pipeline.errors import UserError
from pipeline.files import digest_of, read_json, write_json
from pipeline.tasks import Task
from pipeline.versions import versions_of

log = logging.getLogger(__name__)

CLASSES: dict[str, Any] = {"ppo": PPO, "trpo": TRPO, "sac": SAC, "tqc": TQC, "crossq": CrossQ}
PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "envpool", "gymnasium", "mujoco", "numpy")
CHECKPOINT_SECONDS = 120.0


class NormReLU(nn.Module):
    """Layer normalisation without parameters, then ReLU: keeps critics stable at three times the usual rate."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.layer_norm(x, x.shape[-1:]))


def train(job: TrainJob, recipe: Recipe | None = None) -> StoredExpert:
    """Train by the task's recipe and put the best policy seen into the store.

    Raises:
        UserError: the checkpoint to resume cannot be read, or was made by another recipe.
    """
    torch.set_num_threads(1)  # layers this small only lose by waiting for other threads
    recipe = recipe or recipe_of(job.task, job.algorithm)
    env = _make_env(job, recipe)
    model = _make_model(job, recipe, env)
    steps = _resume(job, recipe, model, env)
    budget = job.budget(recipe.budget)
    monitor = TrainingMonitor(job, budget, steps)
    callback = _Progress(job, recipe, monitor, env)
    if steps:
        callback.best = _load_best(job)
    if recipe.algorithm in OFF_POLICY:
        _speed_up(model)
        _fill(job, recipe, model, resumed=steps > 0)
    elif recipe.demonstration_steps and not steps:
        clone(job.task, cast("PPO", model), recipe.demonstration_steps // recipe.num_envs, job.seed)
    if not monitor.report(steps, None):
        # Negative budgets count what is left, and Stable-Baselines3 counts on from the checkpoint's steps.
        callbacks: list[BaseCallback] = [callback]
        if recipe.demonstration_steps and recipe.algorithm not in OFF_POLICY:
            callbacks.append(CriticFirst(recipe.warmup_steps))
        model.learn(budget.steps - steps, callbacks, reset_num_timesteps=steps == 0)
    monitor.close()
    spec, arrays, score = callback.best or (*_export(model, job.task, env), None)
    training = {
        "recipe": recipe,
        "seed": job.seed,
        "steps": model.num_timesteps,
        "seconds": round(monitor.seconds, 1),
        "best_training_return": score,
    }
    origin = f"trained with {recipe.algorithm} over EnvPool, {model.num_timesteps:,} steps"
    expert = write_expert(
        job.out, job.task.name, recipe.algorithm, spec, arrays, origin, training, versions_of(PACKAGES), monitor.curve
    )
    shutil.rmtree(job.folder)
    return expert


def _make_env(job: TrainJob, recipe: Recipe) -> VecNormalize:
    env = VecMonitor(make_vec_env(job.task, recipe.num_envs, seed=job.seed * 1_000_003))
    off_policy = recipe.algorithm in OFF_POLICY
    return ScaledRewards(env, recipe.reward_scale) if off_policy else VecNormalize(env, gamma=recipe.gamma)


class ScaledRewards(VecNormalize):
    """Observations normalised, rewards multiplied by a constant when they are sampled from the replay buffer."""

    def __init__(self, venv: VecEnv, reward_scale: float) -> None:
        super().__init__(venv, norm_reward=False)
        self._reward_scale = reward_scale

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return reward * self._reward_scale


def _make_model(job: TrainJob, recipe: Recipe, env: VecNormalize) -> BaseAlgorithm:
    shared: dict[str, Any] = {
        "policy": "MlpPolicy",
        "env": env,
        "gamma": recipe.gamma,
        "batch_size": recipe.batch_size,
        "seed": job.seed,
        "device": "auto" if recipe.algorithm in OFF_POLICY else "cpu",
    }
    if recipe.algorithm in OFF_POLICY:
        shared |= {
            "learning_rate": recipe.learning_rate,
            "gradient_steps": recipe.gradient_steps,
            "replay_buffer_class": MixedReplayBuffer,
            "replay_buffer_kwargs": {"n_steps": recipe.n_steps, "gamma": recipe.gamma},
            "learning_starts": recipe.warmup_steps,
            "buffer_size": recipe.buffer_size,
            "ent_coef": f"auto_{recipe.initial_entropy_coefficient}",
            "policy_kwargs": {
                "net_arch": list(recipe.hidden),
                "activation_fn": NormReLU,
                "optimizer_kwargs": {"fused": True},
            },
        }
        if recipe.algorithm == "crossq":
            shared["policy_kwargs"]["activation_fn"] = nn.ReLU  # it has batch normalisation of its own
        else:
            shared["tau"] = recipe.tau
    else:
        shared |= {
            "learning_rate": _Linear(recipe.learning_rate),
            "n_steps": recipe.rollout_steps,
            "gae_lambda": recipe.gae_lambda,
            "policy_kwargs": {"net_arch": list(recipe.hidden), "log_std_init": math.log(recipe.initial_std)},
        }
        if recipe.algorithm == "ppo":
            shared["n_epochs"] = recipe.epochs
        else:
            shared["learning_rate"] = 1e-3  # TRPO's is the critic's alone; its policy steps by a trust region
    model: BaseAlgorithm = CLASSES[recipe.algorithm](**shared)
    return model


class _Linear:
    """Learning rate falling linearly to 0; a class, because a checkpoint pickles it."""

    def __init__(self, initial: float) -> None:
        self._initial = initial

    def __call__(self, progress_remaining: float) -> float:
        return self._initial * progress_remaining


def _speed_up(model: Any) -> None:
    """Compute hidden layers in bfloat16 where the processor has matrix units for it (1.3 to 2 times the speed)."""
    if model.device.type != "cpu" or not torch.cpu._is_amx_tile_supported():
        return
    networks = [model.actor.latent_pi, *_critics(model.critic), *_critics(getattr(model, "critic_target", None))]
    for network in networks:
        _in_bfloat16(network)


def _critics(critic: Any) -> list[nn.Module]:
    if critic is None:
        return []
    return list(getattr(critic, "q_networks", None) or critic.quantile_critics)


def _in_bfloat16(network: nn.Module) -> None:
    forward = network.forward

    def wrapped(x: Tensor) -> Tensor:
        if len(x) < 256:  # acting: small batches gain nothing
            return forward(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = forward(x)
        return y.float()

    network.forward = wrapped


def _export(model: BaseAlgorithm, task: Task, env: VecNormalize) -> tuple[NetworkSpec, dict[str, Tensor]]:
    spec, arrays = export_model(model, task, env)
    return dataclasses.replace(spec, sees_goal=task.domain == "metaworld"), arrays


# The best policy seen in a training, and the mean return of the training episodes that showed it.
Best = tuple[NetworkSpec, dict[str, Tensor], float]


class _Progress(BaseCallback):
    """Reports, saves checkpoints, keeps the best policy seen, and stops at the budget's end."""

    def __init__(self, job: TrainJob, recipe: Recipe, monitor: TrainingMonitor, env: VecNormalize) -> None:
        super().__init__()
        self._job, self._recipe, self._monitor, self._env = job, recipe, monitor, env
        self._saved = self._looked = time.monotonic()
        self._num_episodes = 0
        self.best: Best | None = None

    def _on_step(self) -> bool:
        now = time.monotonic()
        self._num_episodes += int(self.locals["dones"].sum())
        if now - self._looked < 1:
            return True
        self._looked = now
        recent = self.model.ep_info_buffer or collections.deque()
        mean_return = float(np.mean([info["r"] for info in recent])) if len(recent) >= 20 else None
        over = self._monitor.report(self.num_timesteps, mean_return)
        # A new best needs a window of episodes that are all new, or one lucky episode would count many times. The
        # last policy needs only to be better: it is what reached a target.
        if mean_return is not None and (over or self._num_episodes >= len(recent)):
            if self.best is None or mean_return > self.best[2]:
                self.best = (*_export(self.model, self._job.task, self._env), mean_return)
            self._num_episodes = 0
        if over or now - self._saved >= CHECKPOINT_SECONDS:
            self._saved = now
            _save(self._job, self._recipe, self.model, self._env, self.best)
        return not over


def _save(job: TrainJob, recipe: Recipe, model: BaseAlgorithm, env: VecNormalize, best: Best | None) -> None:
    """Write a checkpoint beside the last one, then take its place."""
    name = f"checkpoint-{model.num_timesteps:012d}"
    temporary = job.folder / f".{name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    model.save(temporary / "model.zip")
    env.save(str(temporary / "vec_normalize.pkl"))
    if best is not None:
        spec, arrays, mean_return = best
        torch.save(arrays, temporary / "best.pth")
        write_json(temporary / "best.json", {"spec": dataclasses.asdict(spec), "mean_return": mean_return})
    write_json(temporary / "recipe.json", {"digest": digest_of(recipe), "steps": model.num_timesteps})
    final = job.folder / name
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for other in job.folder.glob("checkpoint-*"):
        if other != final:
            shutil.rmtree(other)


def _resume(job: TrainJob, recipe: Recipe, model: BaseAlgorithm, env: VecNormalize) -> int:
    """Load the newest checkpoint into model and env; the steps it had done, 0 if there is none."""
    folder = _newest(job)
    if folder is None:
        return 0
    try:
        about = read_json(folder / "recipe.json")
        if about["digest"] != digest_of(recipe):
            raise UserError(
                f"{folder} was made by another recipe of {job.algorithm}; remove {job.folder} to start anew"
            )
        _, parameters, variables = load_from_zip_file(folder / "model.zip", device=model.device)
        model.set_parameters(parameters, device=model.device)
        for name, value in (variables or {}).items():  # SAC's entropy coefficient is in no state dict
            getattr(model, name).data = value.data
        saved = VecNormalize.load(str(folder / "vec_normalize.pkl"), env.venv)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder} cannot be resumed ({type(error).__name__}: {error}); remove {job.folder} to start anew"
        ) from error
    env.obs_rms, env.ret_rms = saved.obs_rms, saved.ret_rms
    model.num_timesteps = int(about["steps"])
    log.info("%s %s: going on from %s steps", job.task.name, job.algorithm, f"{model.num_timesteps:,}")
    return model.num_timesteps


def _fill(job: TrainJob, recipe: Recipe, model: Any, resumed: bool) -> None:
    """Put into the replay buffer what training starts on, besides random actions.

    Demonstrations where the recipe wants some, made again in a resumed run; a resumed run's own transitions.
    """
    if recipe.demonstration_steps:
        num_steps = recipe.demonstration_steps // recipe.num_envs
        demonstrate(job.task, model, num_steps, recipe.demonstration_share, job.seed)
    if resumed:
        _, callback = model._setup_learn(recipe.warmup_steps, None, reset_num_timesteps=False)
        steps = TrainFreq(recipe.warmup_steps // recipe.num_envs, TrainFrequencyUnit.STEP)
        model.collect_rollouts(model.env, callback, steps, model.replay_buffer, learning_starts=0)


def _newest(job: TrainJob) -> Path | None:
    """The newest checkpoint of a training, if any."""
    return max(job.folder.glob("checkpoint-*"), default=None)


def _load_best(job: TrainJob) -> Best | None:
    folder = _newest(job)
    if folder is None or not (folder / "best.json").exists():
        return None
    about = read_json(folder / "best.json")
    arrays = torch.load(folder / "best.pth", weights_only=True)
    return NetworkSpec.from_json(about["spec"]), arrays, about["mean_return"]
