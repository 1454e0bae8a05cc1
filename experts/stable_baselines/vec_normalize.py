"""Read the observation statistics of Stable-Baselines3's ``VecNormalize`` from its pickle as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experts.importing.pickles import DAMAGED, Inert, array_of, number_of, read_pickle
from pipeline.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Parameters of the observation normalisation ``clip((x - mean) / sqrt(var + epsilon), +-clip)``.

    Attributes:
        mean, var: float64, with the observation's shape.
        origin: name of the source in messages.
    """

    mean: np.ndarray
    var: np.ndarray
    epsilon: float
    clip: float
    origin: str


def read_statistics(path: Path) -> Statistics | None:
    """Read a file written by ``VecNormalize.save``; return None if only rewards were normalised.

    Raises:
        UserError: the file is missing, truncated, another pickle, or from an environment with dict observations.
    """
    root = read_pickle(path, "what VecNormalize.save wrote")
    state = root.state if isinstance(root, Inert) else None
    if not isinstance(state, dict) or not {"norm_obs", "epsilon", "clip_obs"} <= state.keys():
        raise UserError(f"{path} is a pickle of something else; expected what VecNormalize.save wrote")
    if not state["norm_obs"]:
        return None
    if isinstance(state.get("obs_rms"), dict):
        raise UserError(f"{path} has statistics of a dict of observations; give those of a vector of observations")
    try:
        moments = state["obs_rms"].state
        mean, var = array_of(moments["mean"]), array_of(moments["var"])
        found = Statistics(mean, var, number_of(state["epsilon"]), number_of(state["clip_obs"]), str(path))
    except DAMAGED as error:
        raise UserError(f"{path} has no readable mean and variance of observations ({error})") from error
    if mean.shape != var.shape or not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all()):
        raise UserError(f"{path} is damaged: mean and variance differ in shape, are not finite, or below 0")
    return found
