"""Hyperparameters of Sample Factory's published recipes, with the budgets of JAT's experts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experts.training import Budget, TrainJob
from pipeline.envs.atari_game import FRAME_SKIP
from pipeline.envs.registry import domain_of
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError
from pipeline.records import read_values

DAY_S = 24 * 3600.0
# Folder of Sample Factory's state, below the folder of a training.
STATE = "state"
# File with the settings of the last run, in the folder of a training.
SETTINGS = "settings.json"
# Settings that a resumed training may change: where, how fast and how long it runs.
FREE_SETTINGS = (
    "train_dir", "seed", "device", "num_workers", "num_envs_per_worker", "train_for_env_steps", "save_every_sec",
    "save_best_every_sec", "default_niceness",
)  # fmt: skip
# Statistic with the return of whole episodes with raw rewards, as reported by ``envs.TrainingEnv``.
RETURN = "RecordEpisodeStatistics_reward"


@dataclass(frozen=True)
class Hyperparameters:
    """Sample Factory's arguments of the same names; all others have its defaults.

    Attributes:
        env_frameskip: emulator frames per action; environment steps are counted in frames.
        batch_size: transitions per minibatch.
        rollout: steps per environment and trajectory.
        lr_schedule: ``linear_decay`` decreases to 0 at the budget of environment steps. With a frame skip it decreases
            by only 1 / ``env_frameskip`` of its value, because Sample Factory counts frames as transitions there. The
            published runs had the same behaviour.
        exploration_loss_coeff: coefficient of the entropy bonus.
        worker_num_splits: with 2, a worker steps half of its environments while the other half waits for actions.
    """

    nonlinearity: str
    learning_rate: float
    batch_size: int
    num_batches_per_epoch: int
    num_epochs: int
    rollout: int
    ppo_clip_ratio: float
    value_loss_coeff: float
    exploration_loss_coeff: float
    kl_loss_coeff: float
    max_grad_norm: float
    worker_num_splits: int
    encoder_mlp_layers: tuple[int, ...] = (512, 512)
    encoder_conv_architecture: str = "convnet_simple"
    policy_initialization: str = "orthogonal"
    adam_eps: float = 1e-6
    obs_scale: float = 1.0
    env_frameskip: int = 1
    value_bootstrap: bool = False
    lr_schedule: str = "linear_decay"
    gamma: float = 0.99
    gae_lambda: float = 0.95
    normalize_input: bool = True
    normalize_returns: bool = True
    adaptive_stddev: bool = False
    use_rnn: bool = False
    recurrence: int = 1
    async_rl: bool = False


@dataclass(frozen=True)
class SampleFactoryRecipe:
    """Training recipe of the experts of one domain.

    Attributes:
        num_envs: total number of environments; times ``rollout`` it is the number of transitions per iteration.
        sampled: whether the expert samples its actions, as in training; otherwise it acts greedily.
        save_every_s: seconds between checkpoints, the maximum loss after a kill.
    """

    hyperparameters: Hyperparameters
    budget: Budget
    num_envs: int
    sampled: bool
    save_every_s: int = 60


# sf_examples/atari/atari_params.py. Greedy play can get stuck in a loop of frames, so the expert samples.
ATARI = SampleFactoryRecipe(
    Hyperparameters(
        nonlinearity="relu",
        learning_rate=0.00025,
        batch_size=256,
        num_batches_per_epoch=4,
        num_epochs=4,
        rollout=128,
        ppo_clip_ratio=0.1,
        value_loss_coeff=0.5,
        exploration_loss_coeff=0.01,
        kl_loss_coeff=0.0,
        max_grad_norm=0.5,
        worker_num_splits=1,
        encoder_conv_architecture="convnet_atari",
        adam_eps=1e-5,
        obs_scale=255.0,
        env_frameskip=FRAME_SKIP,
    ),
    Budget(steps=2_000_000_000, seconds=7 * DAY_S),
    num_envs=8,
    sampled=True,
)

# sf_examples/mujoco/mujoco_params.py. The published scores are those of the mean action.
MUJOCO = SampleFactoryRecipe(
    Hyperparameters(
        nonlinearity="tanh",
        learning_rate=0.00295,
        batch_size=1024,
        num_batches_per_epoch=4,
        num_epochs=2,
        rollout=64,
        ppo_clip_ratio=0.2,
        value_loss_coeff=1.3,
        exploration_loss_coeff=0.0,
        kl_loss_coeff=0.1,
        max_grad_norm=3.5,
        worker_num_splits=2,
        encoder_mlp_layers=(64, 64),
        policy_initialization="torch_default",
        value_bootstrap=True,
    ),
    Budget(steps=100_000_000, seconds=7 * DAY_S),
    num_envs=64,
    sampled=False,
)


def recipe_of(task: Task) -> SampleFactoryRecipe:
    """Return the recipe for the kind of a task's observations and actions, with the budget of its domain.

    Raises:
        UserError: there is no Sample Factory recipe for such a task.
    """
    if not can_train(task):
        raise UserError(f"{task.name}: sample-factory has no recipe for it; allowed: {TRAINABLE}")
    recipe = ATARI if task.observation == IMAGE else MUJOCO
    steps = domain_of(task).training_steps
    return (
        recipe if steps is None else dataclasses.replace(recipe, budget=dataclasses.replace(recipe.budget, steps=steps))
    )


TRAINABLE = "images with discrete actions and vectors with continuous ones, without a text"


def can_train(task: Task) -> bool:
    """Whether the recipes are made for a task's observations and actions."""
    if task.has_text:
        return False
    return (task.observation, task.action.kind) in ((IMAGE, "discrete"), (CONTINUOUS, "continuous"))


def settings_of(
    recipe: SampleFactoryRecipe,
    task: Task,
    folder: Path,
    seed: int,
    steps: int,
    num_cpus: int,
    gpu: bool,
    niceness: int,
) -> dict[str, Any]:
    """Return all arguments of Sample Factory that differ from its defaults, as JSON values.

    Args:
        folder: folder of the training; the state is written to ``folder / STATE``.
        steps: budget of environment steps, which is also the end of the learning rate schedule.
        num_cpus: cores to use; the number of worker processes is the largest divisor of ``num_envs`` up to it.
        niceness: niceness of its processes; its rollout workers add 10.
    """
    hyperparameters = dataclasses.asdict(recipe.hyperparameters)
    splits = recipe.hyperparameters.worker_num_splits
    num_workers = max(n for n in range(1, max(1, num_cpus) + 1) if recipe.num_envs % (n * splits) == 0)
    return hyperparameters | {
        "env": task.name,
        "train_dir": str(folder.absolute()),
        "experiment": STATE,
        "seed": seed,
        "device": "gpu" if gpu else "cpu",
        "num_workers": num_workers,
        "num_envs_per_worker": recipe.num_envs // num_workers,
        "train_for_env_steps": steps,
        "save_every_sec": recipe.save_every_s,
        "save_best_every_sec": 15,
        "save_best_metric": RETURN,
        "default_niceness": niceness,
        # With affinity, several trainings on one machine would all use its first cores.
        "set_workers_cpu_affinity": False,
        "log_to_file": False,
        "shows_goal": task.hidden_goal is not None,
    }


def check(job: TrainJob) -> None:
    """Raise if the checkpoint was made with other settings or for another task.

    Raises:
        UserError: names the setting, both values and the fix.
    """
    recipe = recipe_of(job.task)
    check_settings(job, settings_of(recipe, job.task, job.folder, job.seed, recipe.budget.steps, 1, False, 0))


def read_settings(job: TrainJob) -> dict[str, Any]:
    """Read the settings that a training was begun with.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[str, Any] = read_values(
        job.folder / SETTINGS, dict[str, Any], "the settings of a training", f"remove {job.folder} to start anew"
    )
    return found


def check_settings(job: TrainJob, settings: Mapping[str, Any]) -> None:
    """Like ``check``, with the given settings."""
    path = job.folder / SETTINGS
    if not path.exists() or not any(job.folder.glob(f"{STATE}/checkpoint_p0/*.pth")):
        return
    before, now = read_settings(job), json.loads(json.dumps(settings))
    different = [name for name in now if name not in FREE_SETTINGS and before.get(name) != now[name]]
    if different:
        name = different[0]
        raise UserError(
            f"{job.folder} was trained with {name} = {before.get(name)!r}, not {now[name]!r}; remove it to start anew"
        )
