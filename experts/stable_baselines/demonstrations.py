"""Add demonstrations of another expert to the replay buffer (as in RLPD, Ball et al. 2023, arXiv 2302.02948).

A share of every batch comes from the teacher's episodes, so the critics see successful behaviour from the first
gradient step on. The dense reward then makes the learner better than its teacher. In Meta-World the teacher is the
scripted policy, which solves its task slowly. Elsewhere it may be an expert trained with another algorithm.

Cloning the scripted policy into the actor first did not help: off-policy, the clone was forgotten within a few hundred
gradient steps; on-policy, the slow clone was a worse initialisation (button-press: return 93 after 97,000 steps, 536
without it).
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
    """A replay buffer that draws a share of every batch from demonstrations, if there are any."""

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
    """Play ``num_steps`` with the teacher in every environment of the model, and add them to its replay buffer.

    Args:
        model: an untrained model.
        teacher: the demonstrating policy.
        num_steps: steps per environment.
        share: share of every batch that is drawn from the demonstrations.
        noise: standard deviations of the noise on the teacher's actions, as shares of half their range, cycled over the
            environments: some episodes show the teacher's own path, the others the states around it.
        seed: seed of the noise.
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
