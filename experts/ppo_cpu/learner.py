"""Proximal policy optimisation: collect a rollout, train on it for a few epochs, discard it."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from experts.ppo_cpu.games import TrainingGames
from experts.ppo_cpu.network import EPSILON, MAX_PIXEL, ActorCritic
from experts.ppo_cpu.recipes import PPORecipe

# Pixel moments are updated every so many steps, because successive frames are similar.
MOMENTS_EVERY = 8


class Learner:
    """The network, its optimiser and the rollout buffer of one iteration.

    Args:
        recipe: hyperparameters.
        num_actions: number of discrete actions.
        seed: seed of the initial weights, the sampled actions and the order of minibatches.
        use_bfloat16: compute layers in bfloat16; weights, values and losses stay in float32.
    """

    def __init__(self, recipe: PPORecipe, num_actions: int, seed: int, use_bfloat16: bool) -> None:
        self._recipe, self._use_bfloat16 = recipe, use_bfloat16
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = ActorCritic(recipe, num_actions)
        self.optimizer = torch.optim.Adam(self.network.parameters(), recipe.learning_rate, eps=1e-5, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self._observations: Tensor | None = None

    def iterate(self, games: TrainingGames, learning_rate: float) -> list[float]:
        """Collect ``num_envs * rollout_steps`` steps and train on them; return the raw returns of games that ended."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        observations, actions, log_probs, advantages, targets, game_returns = self._collect(games)
        num_decisions = len(actions)
        for _ in range(self._recipe.epochs):
            order = torch.randperm(num_decisions, generator=self.generator)
            for rows in order.split(self._recipe.batch_size):
                self._update(observations[rows], actions[rows], log_probs[rows], advantages[rows], targets[rows])
        return game_returns

    def _collect(self, games: TrainingGames) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[float]]:
        """Collect one rollout.

        Returns:
            Observations, actions, log probabilities, advantages and value targets, all flat, and the returns of the
            games that ended.
        """
        steps, num_envs = self._recipe.rollout_steps, self._recipe.num_envs
        network = self.network
        if self._observations is None:
            dtype = torch.bfloat16 if self._use_bfloat16 else torch.float32
            self._observations = torch.empty(steps, *games.observations.shape, dtype=dtype)
        observations = self._observations
        actions = torch.empty(steps, num_envs, dtype=torch.int64)
        log_probs = torch.empty(steps, num_envs)
        values = torch.empty(steps + 1, num_envs)
        rewards, ends = np.empty((steps, num_envs), np.float32), np.empty((steps, num_envs), bool)
        game_returns: list[float] = []
        for t in range(steps):
            shown = torch.from_numpy(games.observations)
            if t % MOMENTS_EVERY == 0:
                network.pixels.update(shown.float() / MAX_PIXEL)
            observations[t] = network.normalise(shown)
            logits, values[t] = self._act(observations[t])
            log_p = logits.log_softmax(1)
            actions[t] = torch.multinomial(log_p.exp(), 1, generator=self.generator).squeeze(1)
            log_probs[t] = log_p.gather(1, actions[t, :, None]).squeeze(1)
            result = games.step(actions[t].numpy())
            rewards[t], ends[t] = result.rewards, result.ends
            game_returns += result.returns
        last = network.normalise(torch.from_numpy(games.observations)).to(observations.dtype)
        values[steps] = self._act(last)[1]
        moments = network.returns
        values = values * torch.sqrt(moments.var + EPSILON) + moments.mean
        advantages = torch.from_numpy(
            advantages_of(rewards, ends, values.numpy(), self._recipe.gamma, self._recipe.gae_lambda)
        ).flatten()
        returns = advantages + values[:-1].flatten()
        moments.update(returns)
        targets = (returns - moments.mean) / torch.sqrt(moments.var + EPSILON)
        return observations.flatten(0, 1), actions.flatten(), log_probs.flatten(), advantages, targets, game_returns

    def _act(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), self._precision():
            logits, values = self.network(observations)
        return logits, values

    def _update(
        self, observations: Tensor, actions: Tensor, old_log_probs: Tensor, advantages: Tensor, targets: Tensor
    ) -> None:
        recipe = self._recipe
        with self._precision():
            logits, values = self.network(observations)
        log_p = logits.log_softmax(1)
        ratio = (log_p.gather(1, actions[:, None]).squeeze(1) - old_log_probs).exp()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - recipe.clip_range, 1 + recipe.clip_range)
        policy_loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        value_loss = F.mse_loss(values, targets)
        loss = policy_loss - recipe.entropy_coefficient * entropy + recipe.value_coefficient * value_loss
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.max_grad_norm)
        self.optimizer.step()

    def _precision(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast("cpu", torch.bfloat16) if self._use_bfloat16 else contextlib.nullcontext()


def advantages_of(
    rewards: np.ndarray, ends: np.ndarray, values: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Compute generalised advantage estimates (arXiv 1506.02438, equation 16).

    Args:
        rewards, ends: ``(steps, n)``; ``ends[t]`` is True if step t was the last of its episode.
        values: ``(steps + 1, n)``; the last row is the value after the last step.

    Returns:
        ``(steps, n)`` float32.
    """
    advantages = np.empty_like(rewards)
    following = np.zeros(rewards.shape[1], np.float32)
    for t in reversed(range(len(rewards))):
        goes_on = 1.0 - ends[t].astype(np.float32)
        error = rewards[t] + gamma * goes_on * values[t + 1] - values[t]
        following = error + gamma * gae_lambda * goes_on * following
        advantages[t] = following
    return advantages
