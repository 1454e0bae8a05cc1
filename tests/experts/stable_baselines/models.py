"""Untrained models of the real libraries, with weights and statistics that are not trivial."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from sb3_contrib import ARS, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task

ALGORITHMS: dict[str, Any] = {
    "ppo": PPO, "trpo": TRPO, "a2c": A2C, "sac": SAC, "tqc": TQC, "crossq": CrossQ, "td3": TD3,
    "ars": ARS,
}  # fmt: skip


class NormReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.layer_norm(x, x.shape[-1:]))


class SpacesOnly(gym.Env[Any, Any]):
    """A task's spaces as Stable-Baselines3 wants them: one vector, no dict."""

    def __init__(self, task: Task) -> None:
        action = task.action
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, task.observation_shape)
        self.action_space = gym.spaces.Box(action.low, action.high, (action.size,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        return np.zeros(self.observation_space.shape, np.float32), {}


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


def make_model(algorithm: str, task: Task, **settings: Any) -> tuple[BaseAlgorithm, VecNormalize]:
    """A model with two layers of 8, and the statistics of its observations.

    Args:
        settings: of the algorithm; ``policy_kwargs`` are added to the two layers, ``policy`` is another one.
    """
    rng = np.random.default_rng(0)
    normaliser = VecNormalize(DummyVecEnv([lambda: SpacesOnly(task)]), clip_obs=4.0, epsilon=1e-3)
    normaliser.obs_rms.mean = rng.normal(0, 2, task.observation_shape)
    normaliser.obs_rms.var = rng.uniform(0.2, 4, task.observation_shape)
    policy = settings.pop("policy", "MlpPolicy")
    policy_kwargs = {**({} if policy == "LinearPolicy" else {"net_arch": [8, 8]}), **settings.pop("policy_kwargs", {})}
    if algorithm in ("sac", "tqc", "crossq", "td3"):
        settings["buffer_size"] = 10
    model = ALGORITHMS[algorithm](policy, normaliser, policy_kwargs=policy_kwargs, device="cpu", **settings)
    generator = torch.Generator().manual_seed(0)
    for name, array in model.policy.state_dict().items():
        if name.endswith("ra_var"):
            array.copy_(0.2 + 3 * torch.rand(array.shape, generator=generator))
        elif array.is_floating_point():
            fan_in = array.shape[-1] if array.dim() == 2 else 4
            array.copy_(torch.randn(array.shape, generator=generator) / fan_in**0.5)
    return model, normaliser


def predictions(model: BaseAlgorithm, normaliser: VecNormalize | None, observations: np.ndarray) -> np.ndarray:
    """What the library does, greedily."""
    shown = observations if normaliser is None else normaliser.normalize_obs(observations)
    actions, _ = model.predict(shown.astype(np.float32), deterministic=True)
    return actions


def some_observations(task: Task, num: int = 64) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (num, *task.observation_shape)).astype(np.float32)


def with_member(path: Path, name: str, content: bytes) -> Path:
    """A copy of a zip, beside it, with another content of one member."""
    changed = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return changed


class Bomb:
    """Whoever unpickles it creates ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def bomb(marker: Path, protocol: int = 4) -> bytes:
    raw = pickle.dumps(Bomb(marker), protocol)
    pickle.loads(raw)
    assert marker.exists(), "a bomb that does not go off proves nothing"
    marker.unlink()
    return raw
