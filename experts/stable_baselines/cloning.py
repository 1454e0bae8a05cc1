"""Initialise on-policy training by cloning another expert, then explore around it with decreasing noise.

On-policy algorithms cannot learn from another policy's episodes, but they can start from a clone of it. The actor
imitates the teacher by DAgger (Ross et al. 2011, arXiv 1011.0686), which labels the states that the student visits with
the teacher's actions. With plain behaviour cloning of a half-cheetah, the clone falls as soon as it leaves the
teacher's states. Then only the critic is trained for a while, because the gradients of an untrained critic would
destroy the actor.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from experts.stable_baselines.recipes import StableBaselinesRecipe
from experts.stable_baselines.teachers import Teacher

log = logging.getLogger(__name__)

ROUNDS = 40
# Steps per environment and round. The first round contains whole episodes of the teacher, for accurate observation
# statistics.
FIRST_STEPS, STEPS = 1000, 100
FIRST_UPDATES, UPDATES, LAST_UPDATES = 2000, 300, 3000
BATCH_SIZE = 1024
LEARNING_RATE = 1e-3


def clone(model: Any, teacher: Teacher, deviation: float, seed: int) -> None:
    """Train the mean action of an untrained on-policy model to equal a teacher's action.

    Args:
        model: model with a :class:`VecNormalize`, whose statistics are initialised here, too.
        teacher: the policy to imitate.
        deviation: standard deviation of the noise on the actions played, as a share of half their range; every third
            environment has no noise.
        seed: seed of the noise.
    """
    env, policy = model.get_env(), model.policy
    low, high = env.action_space.low, env.action_space.high
    half_range = (high - low) / 2
    scale = torch.as_tensor(half_range)
    generator = np.random.default_rng(seed)
    indices = np.arange(env.num_envs)
    deviations = (deviation * half_range) * (indices % 3 != 0)[:, None]
    optimizer = torch.optim.Adam(_actor_parameters(policy), LEARNING_RATE)
    seen, answers = [], []
    loss = torch.zeros(())
    observations = env.reset()
    for number in range(ROUNDS):
        first, last = number == 0, number == ROUNDS - 1
        # The teacher keeps playing in some environments: a student that falls early never reaches later states.
        teacher_plays = (indices % 8 == 0)[:, None] | first
        for _ in range(FIRST_STEPS if first else STEPS):
            seen.append(env.get_original_obs())
            answers.append(teacher.act(seen[-1]).clip(low, high).astype(np.float32))
            with torch.no_grad():
                means = _mean_actions(policy, torch.as_tensor(observations)).numpy()
            noise = deviations * generator.standard_normal(means.shape)
            actions = np.where(teacher_plays, answers[-1], means) + noise
            observations, _, _, _ = env.step(actions.clip(low, high).astype(np.float32))
        inputs = torch.as_tensor(env.normalize_obs(np.concatenate(seen)).astype(np.float32))
        targets = torch.as_tensor(np.concatenate(answers)) / scale
        num_updates = FIRST_UPDATES if first else LAST_UPDATES if last else UPDATES
        for update in range(num_updates):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / num_updates if last else 1)
            batch = torch.randint(len(inputs), (BATCH_SIZE,))
            loss = F.mse_loss(_mean_actions(policy, inputs[batch]) / scale, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    log.info("cloned %s: mean squared error %.4f of half the actions' range", teacher.revision, loss.item())


def _mean_actions(policy: Any, observations: Tensor) -> Tensor:
    actions: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(observations))
    return actions


def _actor_parameters(policy: Any) -> list[Tensor]:
    return [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]


class Exploration(BaseCallback):
    """Freezes a cloned actor while its critic is trained, and decreases the action noise on a schedule.

    Learned noise decreases until exploration stops. The half-cheetah's return plateaued from then on, and rose again
    with more noise.
    """

    def __init__(self, recipe: StableBaselinesRecipe, total_steps: int) -> None:
        super().__init__()
        self._recipe, self._total_steps = recipe, total_steps

    def _on_rollout_start(self) -> None:
        policy: Any = self.model.policy
        for parameter in _actor_parameters(policy):
            parameter.requires_grad_(self.num_timesteps >= self._recipe.critic_steps)
        initial, final = np.log(self._recipe.exploration)
        space: Any = self.model.action_space
        done = min(1.0, self.num_timesteps / self._total_steps)
        deviation = np.exp(initial + (final - initial) * done) * (space.high - space.low) / 2
        policy.log_std.requires_grad_(False)
        policy.log_std.copy_(torch.as_tensor(np.log(deviation)))

    def _on_step(self) -> bool:
        return True
