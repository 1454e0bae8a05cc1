"""Assigns disjoint ranges of seeds to purposes, so that no episode belongs to two of them."""

from __future__ import annotations

import numpy as np

# Seeds are below 2**31 because ALE takes a signed 32-bit integer.
FIRST_SEED = {
    "train": 0,
    "test": 1_000_000_000,
    "measure": 1_500_000_000,
    "evaluate": 1_800_000_000,
    "sampling": 2_000_000_000,
}
SPLITS = ("train", "test")


def seed_range(purpose: str) -> range:
    """Return all seeds of a purpose."""
    first = FIRST_SEED[purpose]
    return range(first, min(value for value in (*FIRST_SEED.values(), 2**31) if value > first))


def seeds_of(purpose: str, num_episodes: int) -> list[int]:
    """Return the first ``num_episodes`` seeds of a purpose.

    The purposes are ``train``, ``test``, ``measure`` (experts), ``evaluate`` (the agent) and ``sampling``
    (the agent during its training, to choose what to train on).
    """
    first = FIRST_SEED[purpose]
    return list(range(first, first + num_episodes))


def policy_generator(seed: int) -> np.random.Generator:
    """Create the random number generator of a policy for the episode of a seed.

    ``default_rng(seed)`` is not used: gymnasium gives the environment the same stream, so the policy's actions would be
    correlated with the environment's reset noise.
    """
    return np.random.default_rng((seed, 1))
