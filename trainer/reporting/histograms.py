"""Draws the returns of the agent, the expert and the random policy in one task as small histograms on one axis.

There is one for each of up to 157 tasks, so they are drawn as short SVG paths instead of by Matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.evaluation.results import TaskScore

NUM_BINS = 40
BIN_WIDTH, ROW_HEIGHT, GAP = 5, 20, 4  # in the figure's user units


@dataclass(frozen=True)
class Row:
    """The returns of one policy.

    Attributes:
        who: ``agent``, ``expert`` or ``random``.
        path: the bars, as the attribute ``d`` of an SVG path.
        top: vertical position of the row's top.
        mean_at: horizontal position of the mean.
        mean: the mean return.
        num_episodes: number of episodes in it.
    """

    who: str
    path: str
    top: int
    mean_at: float
    mean: float
    num_episodes: int


@dataclass(frozen=True)
class ReturnHistogram:
    """The rows of a task, and the returns at both ends of their axis."""

    rows: tuple[Row, ...]
    low: float
    high: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return NUM_BINS * BIN_WIDTH, len(self.rows) * (ROW_HEIGHT + GAP)


def returns_histogram(score: TaskScore) -> ReturnHistogram | None:
    """Return the figure of a task; None if it has no known returns.

    The bar heights of one policy are proportional to shares of its episodes; the highest bar of each policy fills its
    row.
    """
    returns = {"agent": score.returns, "expert": score.expert_returns, "random": score.random_returns}
    known = {who: np.array(values, np.float64) for who, values in returns.items() if values}
    if not known:
        return None
    low, high = min(values.min() for values in known.values()), max(values.max() for values in known.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    rows = []
    for index, (who, values) in enumerate(known.items()):
        top = index * (ROW_HEIGHT + GAP)
        counts, _ = np.histogram(values, NUM_BINS, (low, high))
        mean = float(values.mean())
        mean_at = round((mean - low) / (high - low) * NUM_BINS * BIN_WIDTH, 1)
        rows.append(Row(who, _bars(counts, top + ROW_HEIGHT), top, mean_at, mean, len(values)))
    return ReturnHistogram(tuple(rows), float(low), float(high))


def _bars(counts: np.ndarray, bottom: int) -> str:
    """Draw adjacent bars as one outline; every non-empty bar is visible."""
    heights = np.where(counts > 0, np.maximum(np.round(counts / counts.max() * ROW_HEIGHT), 1), 0).astype(int)
    path, before = [], 0
    for index, height in enumerate([*heights.tolist(), 0]):
        if height != before:
            path.append(f"M{index * BIN_WIDTH},{bottom}v{-height}" if before == 0 else f"V{bottom - height}")
        if height:
            path.append(f"h{BIN_WIDTH}")
        before = height
    return "".join(path)
