"""Demonstrations of another expert in the replay buffer (as in RLPD, Ball et al. 2023, arXiv 2302.02948).

A share of its episodes in every batch shows the critics the way from the first gradient step on, and the dense reward
makes the learner better than its teacher. In Meta-World that is the scripted policy, which solves its task, slowly;
cloning it into the actor first was tried and gained nothing: off-policy the clone was forgotten within a few hundred
gradient steps, and on-policy the slow clone was the worse start (button-press: return 93 after 97,000 steps, 536
without it). Elsewhere it may be an expert that another algorithm has trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from experts.stable_baselines.teachers import Teacher


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


def demonstrate(model: SAC, teacher: Teacher, num_steps: int, share: float, noise: Sequence[float], seed: int) -> None:
    """Let a teacher play ``num_steps`` in every environment of the model, and mix them into its replay buffer.

    Args:
        model: not yet trained.
        teacher: who plays.
        num_steps: of each environment.
        share: of every batch.
        noise: standard deviations of the noise on its actions, as shares of half their range, one for each environment
            in turn: some episodes show the way as it is, the others what surrounds it.
        seed: of the noise.
    """
    env: Any = model.get_env()
    buffer = model.replay_buffer
    assert isinstance(env, VecNormalize) and isinstance(buffer, MixedReplayBuffer)
    generator = np.random.default_rng(seed)
    deviations = np.resize(noise, env.num_envs)[:, None]
    size = num_steps * env.num_envs
    shown = NStepReplayBuffer(
        size, buffer.observation_space, buffer.action_space, model.device,
        n_envs=env.num_envs, n_steps=buffer.n_steps, gamma=buffer.gamma,
    )  # fmt: skip
    unnormalised: Callable[[], Any] = env.get_original_obs
    env.reset()
    observations = unnormalised()
    for _ in range(num_steps):
        actions = model.policy.scale_action(teacher.act(observations)).clip(-1, 1)
        actions = (actions + deviations * generator.standard_normal(actions.shape)).clip(-1, 1).astype(np.float32)
        _, _, dones, infos = env.step(model.policy.unscale_action(actions))
        following = unnormalised()
        ends = following.copy()
        for index in np.flatnonzero(dones):
            ends[index] = env.unnormalize_obs(infos[index]["terminal_observation"])
        shown.add(observations, ends, actions, env.get_original_reward(), dones, infos)
        observations = following
    buffer.demonstrations, buffer.share = shown, share
