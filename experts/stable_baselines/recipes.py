"""Stable-Baselines3 recipes of each task: the algorithm, its hyperparameters and its budget.

``docs/expert-results.md`` lists the return and the cost of each.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experts.training import Budget, TrainJob
from pipeline.envs.metaworld import NAMES
from pipeline.envs.task import CONTINUOUS, DISCRETE, Task
from pipeline.errors import UserError
from pipeline.files import digest_of
from pipeline.records import read_values
from pipeline.scoring.scores import jat_scores

# Metadata file of a checkpoint.
ABOUT = "about.json"


@dataclass(frozen=True)
class StableBaselinesRecipe:
    """Hyperparameters of one training.

    Attributes:
        num_envs: number of vectorised environments.
        hidden: widths of the hidden layers of actor and critics.
        batch_size: transitions per gradient step.
        gamma: discount per environment step.
        learning_rate: initial learning rate of Adam.
        final_learning_rate: learning rate at the end of the budget's steps; it changes linearly.

        rollout_steps: on-policy: steps per environment between two updates.
        epochs: on-policy: passes over a rollout.
        gae_lambda: on-policy: lambda of generalised advantage estimation.
        target_kl: on-policy: KL divergence between new and old policy at which an update stops early, in nats.
        critic_steps: on-policy with a teacher: steps after cloning in which only the critic is trained.
        exploration: on-policy with a teacher: standard deviations of the action noise at the beginning and at the end
            of the budget's steps, as shares of half the range; without a teacher the noise is learned.

        gradient_steps: off-policy: gradient steps after each vectorised step. Environment steps are cheap here, so
            there are many of them per gradient step.
        n_steps: off-policy: rewards summed before the value is bootstrapped.
        tau: off-policy: coefficient of the target critic's moving average per gradient step; CrossQ has no target.
        warmup_steps: off-policy: transitions in the replay buffer before training starts.
        buffer_size: off-policy: capacity of the replay buffer in transitions.
        reward_scale: off-policy: factor on rewards, so that values are of the order of 100.
        initial_entropy_coefficient: off-policy: initial value of the learned entropy coefficient.
        target_entropy: off-policy: target of the learned entropy coefficient, in nats per action dimension.
        teacher: kind of the expert to learn from, such as ``scripted``; none if empty. Off-policy, it provides
            demonstrations; on-policy, it is cloned first.
        demonstration_steps: off-policy: environment steps that the teacher plays.
        demonstration_share: off-policy: share of every batch drawn from the demonstrations.
        demonstration_noise: off-policy: standard deviations of the noise on the teacher's actions, as shares of half
            their range, cycled over the environments.
    """

    algorithm: str
    budget: Budget
    num_envs: int = 32
    hidden: tuple[int, ...] = (64, 64)
    batch_size: int = 512
    gamma: float = 0.99
    learning_rate: float = 3e-4
    final_learning_rate: float = 0.0

    rollout_steps: int = 128
    epochs: int = 8
    gae_lambda: float = 0.95
    target_kl: float | None = None
    critic_steps: int = 500_000
    exploration: tuple[float, float] = (0.2, 0.04)

    gradient_steps: int = 4
    n_steps: int = 5
    tau: float = 0.01
    warmup_steps: int = 10_000
    buffer_size: int = 1_000_000
    reward_scale: float = 1.0
    initial_entropy_coefficient: float = 1.0
    target_entropy: float = -1.0
    teacher: str = ""
    demonstration_steps: int = 25_600
    demonstration_share: float = 0.25
    demonstration_noise: tuple[float, ...] = (0.0, 0.1, 0.3)


_ppo = functools.partial(StableBaselinesRecipe, "ppo")
_sac = functools.partial(
    StableBaselinesRecipe, "sac", num_envs=128, hidden=(256, 256), learning_rate=1e-3, final_learning_rate=1e-3
)

HOUR = 3600.0
MUJOCO = {
    "mujoco-ant": _sac(Budget(20_000_000, 2 * HOUR, target=6500)),
    "mujoco-doublependulum": _ppo(Budget(4_000_000, HOUR, target=9345)),
    "mujoco-halfcheetah": _ppo(
        Budget(40_000_000, 2 * HOUR, target=11_000),
        num_envs=64,
        hidden=(128, 128),
        batch_size=2048,
        gamma=0.98,
        learning_rate=3e-4,
        final_learning_rate=2e-5,
        rollout_steps=256,
        epochs=5,
        gae_lambda=0.92,
        target_kl=0.03,
        teacher="sac",
        exploration=(0.25, 0.05),
    ),
    "mujoco-hopper": _ppo(Budget(6_000_000, HOUR, target=3650)),
    "mujoco-humanoid": _sac(Budget(20_000_000, 4 * HOUR, target=6800)),
    "mujoco-pendulum": _ppo(Budget(1_000_000, HOUR, target=999)),
    "mujoco-pusher": _sac(
        Budget(6_000_000, 2 * HOUR, target=-24.0),
        gamma=0.98,
        final_learning_rate=2e-5,
        n_steps=3,
        reward_scale=4.0,
        initial_entropy_coefficient=0.1,
        target_entropy=-2.0,
        teacher="ppo",
        demonstration_noise=(0.0, 0.05, 0.15),
    ),
    "mujoco-reacher": _ppo(Budget(1_500_000, HOUR, target=-4.2), gamma=0.97),
    "mujoco-standup": _sac(Budget(20_000_000, 4 * HOUR, target=300_000), reward_scale=0.02),
    "mujoco-swimmer": _ppo(Budget(3_000_000, HOUR, target=150), gamma=0.9995, gae_lambda=0.98),
    "mujoco-walker": _ppo(Budget(10_000_000, HOUR, target=5600)),
}

# Recipes of the experts that are teachers of those above, by task and algorithm.
TEACHERS = {
    ("mujoco-halfcheetah", "sac"): _sac(Budget(20_000_000, 2 * HOUR, target=11_000)),
    ("mujoco-pusher", "ppo"): _ppo(
        Budget(12_000_000, 2 * HOUR, target=-23.5), num_envs=64, hidden=(128, 128), batch_size=1024, gamma=0.97
    ),
}

# For pushing, pulling or turning something in place, the dense reward is sufficient.
METAWORLD = _ppo(Budget(1_000_000, HOUR, patience=200_000), gamma=0.98)
# For grasping or moving an object, random exploration fails, so the scripted policy provides demonstrations.
METAWORLD_SAC = _sac(
    Budget(200_000, HOUR, patience=70_000),
    num_envs=64,
    gamma=0.98,
    reward_scale=0.1,
    buffer_size=500_000,
    initial_entropy_coefficient=0.1,
    teacher="scripted",
)

# For tasks without a tuned recipe.
DEFAULT = _ppo(Budget(1_000_000, HOUR, patience=300_000))
NEEDS = "vectors of numbers or integers, without a text, and off-policy algorithms need continuous actions"

STEERED = (
    "assembly", "basketball", "bin-picking", "box-close", "coffee-pull", "coffee-push", "dial-turn", "disassemble",
    "door-open", "drawer-open", "faucet-open", "hammer", "hand-insert", "handle-pull", "handle-pull-side",
    "lever-pull", "peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place", "pick-place-wall",
    "plate-slide", "push", "push-back", "push-wall", "shelf-place", "soccer", "stick-pull", "stick-push", "sweep",
    "sweep-into",
)  # fmt: skip


# Tuned recipes by task.
TUNED = MUJOCO | {f"metaworld-{name}": METAWORLD_SAC if name in STEERED else METAWORLD for name in NAMES}


def can_train(task: Task, algorithm: str) -> bool:
    """Whether an algorithm of Stable-Baselines3 trains on a task's observations and actions."""
    is_vector = task.observation == CONTINUOUS or (task.observation == DISCRETE and bool(task.observation_values))
    return is_vector and not task.has_text and (task.action.kind == "continuous" or algorithm not in OFF_POLICY)


def own_algorithm(task: Task) -> str:
    """Return the default algorithm of a task that can be trained."""
    return TUNED[task.name].algorithm if task.name in TUNED else DEFAULT.algorithm


def recipe_of(task: Task, algorithm: str) -> StableBaselinesRecipe:
    """Return the recipe of ``algorithm`` for a task.

    If the task has a tuned recipe of the algorithm's family (on-policy or off-policy), that recipe is used. Otherwise
    its budget, discounts and reward scale are combined with the family's default widths and learning rate.

    Raises:
        UserError: the algorithm does not train on such observations or actions.
    """
    if (task.name, algorithm) in TEACHERS:
        return TEACHERS[task.name, algorithm]
    if not can_train(task, algorithm):
        raise UserError(f"no Stable-Baselines3 recipe of {algorithm} for {task.name}; it needs {NEEDS}")
    own = TUNED.get(task.name, DEFAULT)
    if own in (METAWORLD, METAWORLD_SAC):
        own = METAWORLD_SAC if algorithm in OFF_POLICY else METAWORLD
        own = replace(own, budget=replace(own.budget, target=_metaworld_target(task)))
    if (algorithm in OFF_POLICY) == (own.algorithm in OFF_POLICY):
        # TRPO's step needs the gradients of all parameters, but cloning freezes the actor.
        return replace(own, algorithm=algorithm, teacher="" if algorithm == "trpo" else own.teacher)
    usual = _sac if algorithm in OFF_POLICY else _ppo
    return replace(
        usual(own.budget, gamma=own.gamma, gae_lambda=own.gae_lambda, reward_scale=own.reward_scale),
        algorithm=algorithm,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that a training resumes from; None if there is none."""
    return max(folder.glob("checkpoint-*"), default=None)


def check(job: TrainJob) -> None:
    """Raise if the newest checkpoint was made with another recipe or for another task.

    Raises:
        UserError: names the checkpoint and the fix.
    """
    folder = newest_checkpoint(job.folder)
    if folder is not None:
        check_settings(job, folder, recipe_of(job.task, job.algorithm))


def check_settings(job: TrainJob, folder: Path, recipe: StableBaselinesRecipe) -> dict[str, Any]:
    """Return the metadata of a checkpoint.

    Raises:
        UserError: it was made with another recipe or for another task, or it cannot be read.
    """
    fix = f"remove {job.folder} to start anew"
    try:
        about: dict[str, Any] = read_values(folder / ABOUT, dict[str, Any], "the record of a checkpoint", fix)
    except OSError as error:
        raise UserError(f"{folder} cannot be resumed ({error}); {fix}") from error
    if about.get("task", job.task.name) != job.task.name:
        raise UserError(f"{folder} is of {about['task']}, not of {job.task.name}; {fix}")
    if about.get("digest") != digest_of(recipe):
        raise UserError(f"{folder} was made by another recipe of {job.algorithm}; {fix}")
    return about


def _metaworld_target(task: Task) -> float | None:
    """The target return of a training: 1.15 on JAT's scale; None if JAT's expert is less than 10 above random.

    Training episodes include exploration noise, so the greedy policy exceeds the target by then.
    """
    scores = jat_scores()[task.name]
    gain = scores["expert"] - scores["random"]
    return None if gain < 10 else scores["random"] + 1.15 * gain


OFF_POLICY = ("sac", "tqc", "crossq")
