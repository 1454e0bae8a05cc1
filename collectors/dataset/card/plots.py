"""Plot the distributions of returns, lengths and successes of every task for the card, one picture per domain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collectors.dataset.card.rows import CardRow, DomainRow
from pipeline.envs.registry import domain_named
from pipeline.files import replacing
from pipeline.storage.statistics import Histogram

INK, FAINT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
RETURN_COLOUR, LENGTH_COLOUR, SUCCESS_COLOUR = "#2f6fb3", "#0e7490", "#16a34a"
ROW_HEIGHT, WIDTH = 0.24, 10.5  # inches
# The axis of scores is linear from 0 to LINEAR_UP_TO and logarithmic outside, so that it shows every return.
LINEAR_UP_TO, LINEAR_DOWN_TO = 1.25, 0.25
SHORTEST_AXIS = (-0.05, 1.25)
SCORE_TICKS = (-100, -10, -1, 0, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 1000)
MIN_TICK_SHARE = 0.08  # minimum distance between two ticks, as a share of the axis
LOG_RATIO = 20  # lengths with a larger ratio than this get a logarithmic axis
BOX = 0.84  # height of the highest bar of a histogram, in rows


def write_plot(path: Path, domain: DomainRow) -> None:
    """Write the picture of a domain as PNG; equal figures give equal bytes."""
    from matplotlib.figure import Figure

    rows = [row for row in domain.tasks if row.train.num_episodes]
    panels: list[tuple[float, Callable[[Any, list[CardRow]], None]]] = [(3.2, _draw_returns)]
    lengths = {length for row in rows for length in (row.train.lengths.low[0], row.train.lengths.high[0])}
    if len(lengths) > 1:
        panels.append((2.4, _draw_lengths))
    if any(row.train.num_judged for row in rows):
        panels.append((1.0, _draw_successes))
    widths = [width for width, _ in panels]
    height = 1.15 + ROW_HEIGHT * len(rows)
    figure = Figure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for ax in axes:
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=8, length=0)
        ax.set_axisbelow(True)
        ax.hlines(np.arange(len(rows)) + 0.5, 0, 1, transform=ax.get_yaxis_transform(), color=GRID, linewidth=0.6)
    for ax, (_, draw) in zip(axes, panels, strict=True):
        draw(ax, rows)
    names = [row.task.name.removeprefix(f"{domain.domain}-") for row in rows]
    axes[0].set_yticks(range(len(rows)), names)
    axes[0].set_ylim(len(rows) - 0.45, -0.6)
    constant = f", {lengths.pop():,.0f} steps each" if len(lengths) == 1 else ""
    title = f"{domain_named(domain.domain).title}: training episodes{constant}"
    figure.suptitle(title, fontsize=11, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_returns(ax: Any, rows: list[CardRow]) -> None:
    """Histograms of the returns on JAT's scale, with their means."""
    for value in (0, 1):
        ax.axvline(value, color=FAINT, linewidth=1, linestyle="--" if value else "-")
    ends = list(SHORTEST_AXIS)
    for position, row in enumerate(rows):
        if row.jat_range is None:
            mean_return = f"mean return {row.train.returns.mean[0]:,.2f}, no scale"
            ax.text(0.5, position, mean_return, color=INK, size=8, ha="center", va="center")
            continue
        random, expert = row.jat_range
        edges = place_score((np.array(row.train.return_histogram.edges) - random) / (expert - random))
        ends += [edges[0], edges[-1]]
        _draw_histogram(ax, position, edges, row.train.return_histogram, RETURN_COLOUR, 0.012)
        mean = row.on_jat_scale or 0.0
        ax.plot(place_score(np.array(mean)), position, marker="D", markersize=3.5, color=INK, clip_on=False)
        ax.text(1.01, position, f"{mean:.2f}", transform=ax.get_yaxis_transform(), size=8, va="center", color=INK)
    low, high = min(ends), max(ends)
    margin = 0.02 * (high - low)
    ax.set_xlim(low - margin, high + margin)
    ticks = _score_ticks(low, high)
    ax.set_xticks(place_score(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    ax.set_xlabel("return on JAT's scale (0: its random policy, 1: its expert), and mean", size=8, color=INK)


def place_score(scores: np.ndarray) -> np.ndarray:
    """Positions of scores on the axis: linear around 0 to 1, logarithmic outside, with a continuous slope."""
    above = LINEAR_UP_TO * (1 + np.log(np.maximum(scores, LINEAR_UP_TO) / LINEAR_UP_TO))
    below = -LINEAR_DOWN_TO * np.log1p(np.maximum(-scores, 0) / LINEAR_DOWN_TO)
    placed: np.ndarray = np.where(scores > LINEAR_UP_TO, above, np.where(scores < 0, below, scores))
    return placed


def _score_ticks(low: float, high: float) -> list[float]:
    """Ticks on the axis with room for their labels; 0 and 1 first."""
    taken: list[float] = []
    for tick in sorted(SCORE_TICKS, key=lambda value: (value not in (0, 1), abs(value))):
        at = float(place_score(np.array(tick)))
        room = MIN_TICK_SHARE * (high - low)
        if low <= at <= high and all(abs(at - place_score(np.array(other))) >= room for other in taken):
            taken.append(tick)
    return sorted(taken)


def _draw_lengths(ax: Any, rows: list[CardRow]) -> None:
    shortest = min(row.train.lengths.low[0] for row in rows)
    longest = max(row.train.lengths.high[0] for row in rows)
    is_log = longest > LOG_RATIO * shortest
    for position, row in enumerate(rows):
        edges = np.array(row.train.length_histogram.edges)
        if is_log:
            edges = np.log10(np.maximum(edges, 1))
        span = (np.log10(longest) if is_log else longest) or 1.0
        _draw_histogram(ax, position, edges, row.train.length_histogram, LENGTH_COLOUR, 0.008 * span)
    if is_log:
        powers = np.arange(0, np.ceil(np.log10(longest)) + 1)
        ax.set_xticks(powers, [f"{10**power:,.0f}" for power in powers])
    else:
        ax.set_xlim(0, longest * 1.05)
    ax.set_xlabel("steps of an episode", size=8, color=INK)


def _draw_histogram(
    ax: Any, position: int, edges: np.ndarray, histogram: Histogram, colour: str, min_width: float
) -> None:
    """Draw bars on the line of a row; bins too narrow to be visible are widened."""
    from matplotlib.collections import PolyCollection

    counts = np.array(histogram.counts, np.float64)
    shown = counts > 0
    left, width = edges[:-1][shown], np.diff(edges)[shown]
    extra = np.maximum(min_width - width, 0)
    heights = counts[shown] / counts.max() * BOX
    x0, x1, y0 = left - extra / 2, left + width + extra / 2, np.full(len(left), position + 0.45)
    corners = [(x0, y0), (x0, y0 - heights), (x1, y0 - heights), (x1, y0)]
    ax.add_collection(PolyCollection(list(np.moveaxis(np.array(corners), 2, 0)), facecolors=colour, linewidths=0))
    ax.update_datalim([(x0.min(), y0[0]), (x1.max(), y0[0])])


def _draw_successes(ax: Any, rows: list[CardRow]) -> None:
    for position, row in enumerate(rows):
        rate = row.train.success_rate
        if rate is None:
            continue
        ax.barh(position, 1, 0.55, color=GRID)
        ax.barh(position, rate, 0.55, color=SUCCESS_COLOUR)
        ax.text(1.04, position, f"{rate:.2f}", size=8, va="center", color=INK)
    ax.set_xlim(0, 1.3)
    ax.set_xticks([0, 1], ["0", "1"])
    ax.set_xlabel("success", size=8, color=INK)
