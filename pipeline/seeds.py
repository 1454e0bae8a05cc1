"""Which seeds serve what. The ranges are disjoint, so no episode is ever in two of these sets."""

from __future__ import annotations

import numpy as np

# Seeds stay below 2**31 because ALE takes a signed 32-bit integer.
FIRST_SEED = {
    "train": 0,
    "test": 1_000_000_000,
    "measure": 1_500_000_000,
    "evaluate": 1_800_000_000,
}
SPLITS = ("train", "test")


def seed_range(purpose: str) -> range:
    """All seeds of a purpose."""
    first = FIRST_SEED[purpose]
    return range(first, min(value for value in (*FIRST_SEED.values(), 2**31) if value > first))


def seeds_of(purpose: str, num_episodes: int) -> list[int]:
    """The first ``num_episodes`` seeds of ``train``, ``test``, ``measure`` (experts) or ``evaluate`` (the agent)."""
    first = FIRST_SEED[purpose]
    return list(range(first, first + num_episodes))


def policy_generator(seed: int) -> np.random.Generator:
    """The random numbers of a policy in the episode of a seed.

    Not ``default_rng(seed)``: gymnasium gives the environment that very stream, and a policy drawing the same numbers
    would act in step with the environment's reset noise.
    """
    return np.random.default_rng((seed, 1))
