"""An episode over time as panels of one SVG: rewards, actions and observations, each with its own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collectors.stored import StoredEpisode
from pipeline.envs.task import IMAGE

WIDTH, HEIGHT, MARGIN = 1000, 64, 6  # of a panel, in the units of the SVG; browser.css has the height, too
MAX_POINTS = 2000  # of a curve; a longer one is drawn as the range of each bin
MAX_STEPS = 30_000  # shown; Atari's longest episodes have 27,000
MAX_PANELS = 40
SHOWN = "0-3"  # dimensions shown by default


@dataclass(frozen=True)
class Panel:
    """One curve.

    Attributes:
        name: such as ``observation 3``.
        kind: ``reward``, ``action`` or ``observation``.
        path: of the curve, as the ``d`` of an SVG path.
        values: of every step shown.
    """

    name: str
    kind: str
    path: str
    values: list[float | None]
    low: float
    high: float


def panels_of(episode: StoredEpisode, actions: Sequence[int], observations: Sequence[int]) -> list[Panel]:
    """Panels of an episode, of its first ``MAX_STEPS`` steps and of at most ``MAX_PANELS`` curves.

    Args:
        episode: its steps.
        actions: dimensions of continuous actions.
        observations: dimensions of an observation that is no image.
    """
    steps, task = episode.steps, episode.task
    curves = [("reward", "reward", steps.rewards)]
    if task.action.kind == "discrete":
        curves.append(("action", "action", steps.actions))
    else:
        curves += [(f"action {i}", "action", steps.actions[:, i]) for i in actions if i < steps.actions.shape[1]]
    if task.observation != IMAGE:
        flat = steps.observations.reshape(len(steps.rewards), -1)
        curves += [(f"observation {i}", "observation", flat[:, i]) for i in observations if i < flat.shape[1]]
    return [_panel(i, *curve) for i, curve in enumerate(curves[:MAX_PANELS])]


def _panel(place: int, name: str, kind: str, column: np.ndarray) -> Panel:
    values = column[:MAX_STEPS].astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    told = [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]
    return Panel(name, kind, _path(values, low, high, place * HEIGHT), told, low, high)


def _path(values: np.ndarray, low: float, high: float, top: float) -> str:
    """Curve of the values within a panel whose upper edge is at ``top``."""
    x = np.linspace(0, WIDTH, len(values)) if len(values) > 1 else np.array([0.0])
    span = high - low
    share = np.nan_to_num((values - low) / span, nan=0.5) if span > 0 else np.full(len(values), 0.5)
    y = top + HEIGHT - MARGIN - np.clip(share, 0, 1) * (HEIGHT - 2 * MARGIN)
    if len(values) > MAX_POINTS:
        starts = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS // 2).astype(int))
        lowest, highest = np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
        x, y = np.repeat(x[starts], 2), np.stack([lowest, highest], axis=1).ravel()
    if len(x) == 1:
        return f"M0 {y[0]:.1f}H{WIDTH}"
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))
