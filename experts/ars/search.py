"""Augmented random search (arXiv 1803.07055): finite differences of whole episodes' returns, along random directions.

The policy is one linear map of the observation. An update plays two episodes per direction, one with the direction
added to the weights and one with it subtracted, and moves the weights along the directions by the differences of their
returns. A discount plays no part, which is why it finds the gait of a swimmer, whose good strokes pay late.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np

from experts.ars.recipes import ARSRecipe
from pipeline.envs.episode import Episode
from pipeline.envs.policy import Observations
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.seeds import seed_range
from pipeline.storage.statistics import Moments


class LinearPolicies:
    """A policy that plays every seed with weights and an offset of its own.

    Args:
        maps: weights ``(actions, observations)`` and offset ``(actions,)`` by seed.
    """

    def __init__(self, maps: Mapping[int, tuple[np.ndarray, np.ndarray]]) -> None:
        self._maps = maps
        self._slots: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._slots.update((slot, self._maps[seed]) for slot, seed in zip(slots, seeds, strict=True))

    def act(self, slots: Sequence[int], observations: Observations) -> Iterable[Any]:
        values = observations.values.astype(np.float64)
        weights, offsets = zip(*(self._slots[slot] for slot in slots), strict=True)
        return (np.stack(weights) @ values[:, :, None])[:, :, 0] + np.stack(offsets)


class Search:
    """The weights of a training, and what moves them.

    Attributes:
        steps: environment steps so far, checks included.
        weights: ``(actions, observations)``, of normalised observations if the recipe has them.
        returns: of the episodes of the last check.
        best, best_return: weights and offset of the best policy by its check, and its mean return there.
    """

    def __init__(self, task: Task, recipe: ARSRecipe, seed: int) -> None:
        self._task, self._recipe = task, recipe
        self._generator = np.random.default_rng(seed)
        self._moments = Moments()
        self._next_check = recipe.check_steps
        self.steps = 0
        self.weights = np.zeros((task.action.size, *task.observation_shape))
        self.returns: list[float] = []
        self.best: tuple[np.ndarray, np.ndarray] | None = None
        self.best_return: float | None = None

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last check; None before the first."""
        return float(np.mean(self.returns)) if self.returns else None

    def policy(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights and offset for raw observations."""
        if not self._moments.count:
            return weights, np.zeros(len(weights))
        deviation = np.array(self._moments.std)
        scaled = weights / np.where(deviation > 0, deviation, 1.0)
        return scaled, -scaled @ np.array(self._moments.mean)

    def iterate(self) -> None:
        """Make one update, and a check if one is due."""
        recipe = self._recipe
        directions = self._generator.standard_normal((recipe.directions, *self.weights.shape))
        changes = recipe.noise * np.concatenate([directions, -directions])
        episodes = self._play([self.policy(self.weights + change) for change in changes], recipe.normalise)
        added, subtracted = np.array([episode.total_reward for episode in episodes]).reshape(2, -1)
        top = np.argsort(-np.maximum(added, subtracted))[: recipe.top]
        deviation = np.concatenate([added[top], subtracted[top]]).std()
        if deviation > 0:
            slope = np.tensordot(added[top] - subtracted[top], directions[top], 1)
            self.weights = self.weights + recipe.step_size / (len(top) * deviation) * slope
        if self.steps >= self._next_check:
            self._check()

    def _check(self) -> None:
        """Measure the unperturbed policy, and keep it if it is the best so far."""
        policy = self.policy(self.weights)
        self.returns = [episode.total_reward for episode in self._play([policy] * self._recipe.check_episodes)]
        self._next_check = self.steps + self._recipe.check_steps
        if self.best_return is None or np.mean(self.returns) > self.best_return:
            self.best, self.best_return = policy, float(np.mean(self.returns))

    def _play(self, policies: Sequence[tuple[np.ndarray, np.ndarray]], adds_to_moments: bool = False) -> list[Episode]:
        """Play one training seed, drawn at random, with each policy."""
        seeds = seed_range("train")
        first = int(self._generator.integers(len(seeds) - len(policies)))
        maps = dict(zip(seeds[first : first + len(policies)], policies, strict=True))
        episodes = list(rollout(self._task, LinearPolicies(maps), list(maps), keep_observations=adds_to_moments))
        self.steps += sum(map(len, episodes))
        if adds_to_moments:
            self._moments = self._moments.merge(Moments.of(np.concatenate([e.observations for e in episodes])))
        return episodes

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that a resumed training needs."""
        best = self.best or (np.zeros(0), np.zeros(0))
        return {
            "weights": self.weights,
            "moments": np.array(json.dumps(asdict(self._moments))),
            "steps": np.array([self.steps, self._next_check]),
            "returns": np.array(self.returns),
            "best_weights": best[0],
            "best_offset": best[1],
            "best_return": np.array(np.nan if self.best_return is None else self.best_return),
            "generator": np.array(json.dumps(self._generator.bit_generator.state)),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Load what ``state`` returned.

        Raises:
            KeyError, ValueError, TypeError: it is of something else.
        """
        self.weights = state["weights"].reshape(self.weights.shape)
        moments = json.loads(str(state["moments"]))
        count = moments.pop("count")
        self._moments = Moments(count, **{name: tuple(values) for name, values in moments.items()})
        self.steps, self._next_check = map(int, state["steps"])
        self.returns = state["returns"].tolist()
        if not np.isnan(state["best_return"]):
            self.best_return = float(state["best_return"])
            self.best = state["best_weights"].reshape(self.weights.shape), state["best_offset"]
        self._generator.bit_generator.state = json.loads(str(state["generator"]))
