"""The observation statistics of Stable-Baselines3's ``VecNormalize``, read from its pickle as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """What normalises observations: ``clip((x - mean) / sqrt(var + epsilon), +-clip)``.

    Attributes:
        mean, var: float64, of the observation's shape.
    """

    mean: np.ndarray
    var: np.ndarray
    epsilon: float
    clip: float
