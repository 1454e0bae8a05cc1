"""Train an expert with Stable-Baselines3 or sb3-contrib in EnvPool's environments; trainings are resumable.

A checkpoint is written every few minutes (``checkpoint.py``), and a restarted run resumes from it. It does not contain
the replay buffer: a resumed run first refills it with ten times ``warmup_steps`` transitions of its policy.
"""

from __future__ import annotations

import collections
import logging
import time
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from sb3_contrib import TQC, TRPO, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize
from torch import Tensor, nn

from experts.bfloat16 import is_fast
from experts.stable_baselines.checkpoint import AveragedActor, Best, TrainingState, read_best
from experts.stable_baselines.cloning import Exploration, clone
from experts.stable_baselines.demonstrations import MixedReplayBuffer, demonstrate
from experts.stable_baselines.envs import make_vec_env, pool_of
from experts.stable_baselines.recipes import (
    OFF_POLICY,
    StableBaselinesRecipe,
    check_settings,
    newest_checkpoint,
    recipe_of,
)
from experts.stable_baselines.teachers import Teacher, teacher_of
from experts.store import StoredExpert, write_expert
from experts.training import (
    CHECKPOINT_SECONDS,
    CURVE,
    MIN_EPISODES,
    TrainingMonitor,
    TrainJob,
    read_curve,
    read_progress,
)
from pipeline.errors import UserError
from pipeline.versions import versions_of

log = logging.getLogger(__name__)

CLASSES: dict[str, Any] = {"ppo": PPO, "trpo": TRPO, "sac": SAC, "tqc": TQC, "crossq": CrossQ}
PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "envpool", "gymnasium", "mujoco", "numpy")
# A checkpoint may be replaced while it is read.
EXPORT_ATTEMPTS = 5


class NormReLU(nn.Module):
    """Layer normalisation without parameters, then ReLU; critics stay stable at three times the usual learning rate."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.layer_norm(x, x.shape[-1:]))


def train(job: TrainJob, recipe: StableBaselinesRecipe | None = None) -> StoredExpert:
    """Train with the task's recipe and write the best policy to the store.

    Raises:
        UserError: the checkpoint to resume cannot be read or was made with another recipe, or the teacher is missing.
    """
    torch.set_num_threads(1)  # for such small layers, synchronising threads costs more than it gains
    recipe = recipe or recipe_of(job.task, job.algorithm)
    teacher = teacher_of(recipe.teacher, job.task, job.out) if recipe.teacher else None
    state = make_state(job, recipe)
    model: Any = state.model
    steps = state.resume(job, recipe)
    budget = job.budget(recipe.budget)
    monitor = TrainingMonitor(job, budget, steps)
    callbacks: list[BaseCallback] = [_Progress(job, recipe, monitor, state)]
    if recipe.algorithm in OFF_POLICY:
        _freeze_for_the_actor(model.critic)
        _speed_up(model)
        _fill(job, recipe, model, teacher, resumed=steps > 0)
    elif teacher:
        if steps == 0:
            clone(model, teacher, recipe.exploration[0], job.seed)
        callbacks.append(Exploration(recipe, budget.steps))
    try:
        if not monitor.report(steps, None):
            model.learn(budget.steps - steps, callbacks, reset_num_timesteps=steps == 0)
            state.save(job, recipe)
    finally:
        monitor.close()
    monitor.raise_if_stopped()
    best = state.best or Best(*state.export(), None)
    expert = _store(job, replace(recipe, budget=budget), best, model.num_timesteps, teacher)
    job.remove_state()
    return expert


def export(job: TrainJob) -> StoredExpert:
    """Write the best policy of the newest checkpoint to the store; the training may be running.

    Raises:
        UserError: there is no checkpoint, or it was written before the first mean return.
    """
    recipe = recipe_of(job.task, job.algorithm)
    for _ in range(EXPORT_ATTEMPTS):
        folder = newest_checkpoint(job.folder)
        if folder is None:
            break
        try:
            about = check_settings(job, folder, recipe)
            best = read_best(folder, about)
        except (UserError, FileNotFoundError):
            if folder.exists():
                raise
            continue  # the training has just replaced it by a newer one
        if best is None:
            raise UserError(
                f"{job.folder} holds no policy whose return is known; wait until {MIN_EPISODES} training episodes ended"
            )
        budget = read_progress(job.folder).budget or job.budget(recipe.budget)
        teacher = teacher_of(recipe.teacher, job.task, job.out) if recipe.teacher else None
        return _store(job, replace(recipe, budget=budget), best, about["steps"], teacher)
    raise UserError(f"{job.folder} holds no checkpoint to export; wait for the first, {CHECKPOINT_SECONDS:.0f} s in")


def _store(
    job: TrainJob, recipe: StableBaselinesRecipe, best: Best, steps: int, teacher: Teacher | None
) -> StoredExpert:
    progress = read_progress(job.folder)
    training = {
        "recipe": recipe,
        "seed": job.seed,
        "steps": steps,
        "seconds": round(progress.seconds, 1),
        "core_seconds": round(progress.core_seconds, 1),
        "best_score": best.score,
    }
    place = "over EnvPool" if pool_of(job.task) else "in the task's own environment"
    origin = f"trained with {recipe.algorithm} {place}, {steps:,} steps"
    if teacher:
        training["teacher"] = teacher.revision
        origin += f", {'shown episodes' if recipe.algorithm in OFF_POLICY else 'from a clone'} of {teacher.revision}"
    curve = [point for point in read_curve(job.folder / CURVE) if point.steps <= steps]
    return write_expert(
        job.out, job.task.name, recipe.algorithm, best.spec, best.arrays, origin, training, versions_of(PACKAGES), curve
    )


def make_state(job: TrainJob, recipe: StableBaselinesRecipe) -> TrainingState:
    """Make the state of a new training."""
    env = _make_env(job, recipe)
    model = _make_model(job, recipe, env)
    averaged = AveragedActor(cast(Any, model).actor) if recipe.algorithm in OFF_POLICY else None
    return TrainingState(job.task, model, env, averaged)


def _make_env(job: TrainJob, recipe: StableBaselinesRecipe) -> VecNormalize:
    env = VecMonitor(make_vec_env(job.task, recipe.num_envs, seed=job.seed * 1_000_003))
    off_policy = recipe.algorithm in OFF_POLICY
    return ScaledRewards(env, recipe.reward_scale) if off_policy else VecNormalize(env, gamma=recipe.gamma)


class ScaledRewards(VecNormalize):
    """Normalises observations, and multiplies rewards by a constant when they are sampled from the replay buffer."""

    def __init__(self, venv: VecEnv, reward_scale: float) -> None:
        super().__init__(venv, norm_reward=False)
        self._reward_scale = reward_scale

    def normalize_reward(self, reward: np.ndarray) -> np.ndarray:
        return reward * self._reward_scale


def _make_model(job: TrainJob, recipe: StableBaselinesRecipe, env: VecNormalize) -> BaseAlgorithm:
    shared: dict[str, Any] = {
        "learning_rate": _Linear(recipe.learning_rate, recipe.final_learning_rate),
        "policy": "MlpPolicy",
        "env": env,
        "gamma": recipe.gamma,
        "batch_size": recipe.batch_size,
        "seed": job.seed,
        "device": "auto" if recipe.algorithm in OFF_POLICY else "cpu",
    }
    if recipe.algorithm in OFF_POLICY:
        shared |= {
            "gradient_steps": recipe.gradient_steps,
            "replay_buffer_class": MixedReplayBuffer,
            "replay_buffer_kwargs": {"n_steps": recipe.n_steps, "gamma": recipe.gamma},
            "learning_starts": recipe.warmup_steps,
            "buffer_size": recipe.buffer_size,
            "ent_coef": f"auto_{recipe.initial_entropy_coefficient}",
            "target_entropy": recipe.target_entropy * job.task.action.size,
            "policy_kwargs": {
                "net_arch": list(recipe.hidden),
                "activation_fn": NormReLU,
                "optimizer_kwargs": {"fused": True},
            },
        }
        if recipe.algorithm == "crossq":
            shared["policy_kwargs"]["activation_fn"] = nn.ReLU  # CrossQ already uses batch normalisation
        else:
            shared["tau"] = recipe.tau
    else:
        shared |= {
            "n_steps": recipe.rollout_steps,
            "gae_lambda": recipe.gae_lambda,
            "policy_kwargs": {"net_arch": list(recipe.hidden)},
        }
        if recipe.algorithm == "ppo":
            shared |= {"n_epochs": recipe.epochs, "target_kl": recipe.target_kl}
        else:
            shared["learning_rate"] = 1e-3  # TRPO only uses it for the critic; the policy has a trust region
    model: BaseAlgorithm = CLASSES[recipe.algorithm](**shared)
    return model


class _Linear:
    """A linear learning rate schedule; a class rather than a closure, because checkpoints pickle it."""

    def __init__(self, initial: float, final: float) -> None:
        self._initial, self._final = initial, final

    def __call__(self, progress_remaining: float) -> float:
        return self._final + (self._initial - self._final) * progress_remaining


def _speed_up(model: Any) -> None:
    """Compute hidden layers in bfloat16 if the CPU has instructions for it (1.3 to 2 times the speed).

    A critic's last layer stays in float32: bfloat16 rounds values of 512 to 1024 to multiples of 4, which is as large
    as the difference between some actions' values.
    """
    if not is_fast(model.device):
        return
    _in_bfloat16(model.actor.latent_pi, model.actor.latent_pi, nn.Identity())
    for network in (*_critics(model.critic), *_critics(getattr(model, "critic_target", None))):
        _in_bfloat16(network, network[:-1], network[-1])


def _freeze_for_the_actor(critic: Any) -> None:
    """Skip the gradients of the critic's weights in the actor's loss.

    Stable-Baselines3 computes and discards them, which takes a tenth of the time of a gradient step.
    """
    forward, weights = critic.forward, list(critic.parameters())

    def wrapped(observations: Tensor, actions: Tensor) -> Any:
        if not actions.requires_grad:
            return forward(observations, actions)
        for weight in weights:
            weight.requires_grad_(False)
        values = forward(observations, actions)
        for weight in weights:
            weight.requires_grad_(True)
        return values

    critic.forward = wrapped


def _critics(critic: Any) -> list[nn.Sequential]:
    if critic is None:
        return []
    return list(getattr(critic, "q_networks", None) or critic.quantile_critics)


def _in_bfloat16(network: nn.Module, hidden: nn.Module, output: nn.Module) -> None:
    """Compute the part ``hidden`` of a network in bfloat16 and the rest, ``output``, in float32."""
    forward = hidden.forward

    def wrapped(x: Tensor) -> Tensor:
        if len(x) < 256:  # acting: bfloat16 is not faster for small batches
            return cast(Tensor, output(forward(x)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = forward(x)
        return cast(Tensor, output(y.float()))

    network.forward = wrapped


class _Progress(BaseCallback):
    """Updates the averaged actor, reports, saves checkpoints, keeps the best policy, and stops at the budget's end."""

    def __init__(
        self, job: TrainJob, recipe: StableBaselinesRecipe, monitor: TrainingMonitor, state: TrainingState
    ) -> None:
        super().__init__()
        self._job, self._recipe, self._monitor, self._state = job, recipe, monitor, state
        self._saved = self._looked = time.monotonic()
        self._num_episodes = 0
        self._succeeds = np.zeros(recipe.num_envs, bool)
        self._successes: collections.deque[bool] = collections.deque(maxlen=100)

    def _on_step(self) -> bool:
        if self._state.averaged:
            self._state.averaged.update()
        self._note_episodes(self.locals["dones"], self.locals["infos"])
        now = time.monotonic()
        if now - self._looked < 1:
            return True
        self._looked = now
        recent = self.model.ep_info_buffer or collections.deque()
        mean_return = float(np.mean([info["r"] for info in recent])) if len(recent) >= MIN_EPISODES else None
        success_rate = float(np.mean(self._successes)) if self._successes else None
        over = self._monitor.report(self.num_timesteps, mean_return, success_rate=success_rate)
        # A new best needs a window with new episodes only, or one lucky episode would be counted several times. The
        # last policy may reuse episodes, because it may be the one that reached the target.
        if mean_return is not None and (over or self._num_episodes >= len(recent)):
            self._state.note(mean_return * (1 if success_rate is None else 0.1 + success_rate))
            self._num_episodes = 0
        if now - self._saved >= CHECKPOINT_SECONDS:
            self._saved = now
            self._state.save(self._job, self._recipe)
        return not over

    def _note_episodes(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        self._num_episodes += int(dones.sum())
        if "success" in infos[0]:
            self._succeeds |= [bool(info["success"]) for info in infos]
            self._successes.extend(self._succeeds[dones])
            self._succeeds &= ~dones


def _fill(job: TrainJob, recipe: StableBaselinesRecipe, model: Any, teacher: Teacher | None, resumed: bool) -> None:
    """Prefill the replay buffer with more than random actions.

    With a teacher, add its demonstrations, which a resumed run plays again. A resumed run also adds transitions of its
    own policy.
    """
    if teacher:
        num_steps = recipe.demonstration_steps // recipe.num_envs
        demonstrate(model, teacher, num_steps, recipe.demonstration_share, recipe.demonstration_noise, job.seed)
    if resumed:
        _, callback = model._setup_learn(10 * recipe.warmup_steps, None, reset_num_timesteps=False)
        steps = TrainFreq(10 * recipe.warmup_steps // recipe.num_envs, TrainFrequencyUnit.STEP)
        model.collect_rollouts(model.env, callback, steps, model.replay_buffer, learning_starts=0)
