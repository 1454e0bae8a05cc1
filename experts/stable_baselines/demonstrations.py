"""Learning from the scripted policy of a Meta-World task, which solves it slowly.

The dense reward then makes the learner faster than its teacher. Off-policy, a share of the script's episodes in every
batch shows the critics the way to success from the first gradient step on (as in RLPD, Ball et al. 2023, arXiv
2302.02948); cloning the script into that actor first was tried and forgotten within a few hundred gradient steps.
On-policy, the policy starts as a clone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from pipeline.tasks import Task

# Standard deviations of the noise on the script's actions, one for each environment in turn: some episodes show the
# way as it is, the others what surrounds it.
NOISE = (0.0, 0.1, 0.3)
CLONING_STEPS = 3000


class MixedReplayBuffer(NStepReplayBuffer):
    """A replay buffer of which every batch takes a share from demonstrations, once there are some."""

    demonstrations: NStepReplayBuffer | None = None
    share: float = 0.0

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        shown = round(batch_size * self.share) if self.demonstrations is not None else 0
        if not shown:
            return super().sample(batch_size, env)
        assert self.demonstrations is not None
        if self.size() == 0:
            return self.demonstrations.sample(batch_size, env)
        own, demonstrated = super().sample(batch_size - shown, env), self.demonstrations.sample(shown, env)
        pairs: Any = zip(own, demonstrated, strict=True)
        return ReplayBufferSamples(*(torch.cat(pair) for pair in pairs))


@dataclass(frozen=True)
class _ScriptStep:
    """A step of every environment: ``clean`` is what the script wants, ``actions`` what was done."""

    observations: np.ndarray
    clean: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]
    following: np.ndarray


def _play_script(task: Task, env: Any, num_steps: int, seed: int) -> Iterator[_ScriptStep]:
    from metaworld.policies import ENV_POLICY_MAP

    script = ENV_POLICY_MAP[task.env_id]()
    generator = np.random.default_rng(seed)
    noise = np.resize(NOISE, env.num_envs)[:, None]
    env.reset()
    observations = env.get_original_obs()
    for _ in range(num_steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions exceed [-1, 1]
            clean = np.array([script.get_action(o) for o in observations.astype(np.float64)]).clip(-1, 1)
        actions = (clean + noise * generator.standard_normal(clean.shape)).clip(-1, 1).astype(np.float32)
        _, _, dones, infos = env.step(actions)
        following = env.get_original_obs()
        ends = following.copy()
        for index in np.flatnonzero(dones):
            ends[index] = env.unnormalize_obs(infos[index]["terminal_observation"])
        yield _ScriptStep(observations, clean, actions, env.get_original_reward(), dones, infos, ends)
        observations = following


def demonstrate(task: Task, model: SAC, num_steps: int, share: float, seed: int) -> None:
    """Let the script play ``num_steps`` in every environment of the model, and mix them into its replay buffer."""
    env, buffer = model.get_env(), model.replay_buffer
    assert isinstance(env, VecNormalize) and isinstance(buffer, MixedReplayBuffer)
    size = num_steps * env.num_envs
    shown = NStepReplayBuffer(
        size, buffer.observation_space, buffer.action_space, model.device,
        n_envs=env.num_envs, n_steps=buffer.n_steps, gamma=buffer.gamma,
    )  # fmt: skip
    for step in _play_script(task, env, num_steps, seed):
        shown.add(step.observations, step.following, step.actions, step.rewards, step.dones, step.infos)
    buffer.demonstrations, buffer.share = shown, share


def clone(task: Task, model: PPO, num_steps: int, seed: int) -> float:
    """Fit the policy's mean to what the script does in ``num_steps`` of every environment.

    Returns:
        The mean squared error of the last tenth of the fit.
    """
    env = model.get_env()
    assert isinstance(env, VecNormalize)
    steps = list(_play_script(task, env, num_steps, seed))
    observations = torch.as_tensor(env.normalize_obs(np.concatenate([step.observations for step in steps])))
    targets = torch.as_tensor(np.concatenate([step.clean for step in steps]).astype(np.float32))
    policy: Any = model.policy
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    errors = []
    for _ in range(CLONING_STEPS):
        rows = torch.randint(len(targets), (512,), generator=generator)
        mean = policy.get_distribution(observations[rows]).distribution.mean
        # Beyond the bounds every action is the same, so only what is short of them is an error.
        loss = F.mse_loss(mean.clamp(-1, 1), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    return float(np.mean(errors[-CLONING_STEPS // 10 :]))


class CriticFirst(BaseCallback):
    """Holds the policy still for ``num_steps``, while the critic learns what the clone is worth.

    Without that the first advantages, of an untrained critic, would undo the clone.
    """

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.model.policy
        learns = self.num_timesteps > self._num_steps
        policy.log_std.requires_grad_(learns)
        for module in (policy.mlp_extractor.policy_net, policy.action_net):
            module.requires_grad_(learns)
