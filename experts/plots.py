"""Figures of experts: their scores and their training curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experts.ranking import ExpertResult
from experts.registry import experts_of
from experts.store import CURVE, TrainingPoint
from experts.training import read_curve
from pipeline.envs.task import Task
from pipeline.pages.figures import INK, LINE, PAGE, colour_of, new_figure, series_colours
from pipeline.pages.page import title
from pipeline.scoring.scores import jat_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SCORE, MAX_SCORE = -1.0, 3.0  # limits at which bars are cut off
OVERVIEW_COLUMNS = 5


@dataclass(frozen=True)
class Plot:
    """A figure, its file name and its caption."""

    name: str
    figure: Figure
    caption: str


def draw_bars(found: Sequence[Sequence[ExpertResult]]) -> list[Plot]:
    """Draw the normalised score of every expert with its interval, one figure per domain.

    Bars are cut off at the limits, their labels show the exact values.
    """
    plots = []
    for domain in dict.fromkeys(ranked[0].task.domain for ranked in found):
        bars = [
            (standing, score)
            for ranked in found
            for standing in ranked
            if standing.task.domain == domain and not standing.is_random and (score := standing.on_jat_scale)
        ]
        if not bars:
            continue
        limit = min(MAX_SCORE, 1.1 * max(1.0, *(score.high for _, score in bars)))
        figure, (ax,) = new_figure(9, 1.2 + 0.3 * len(bars), 1, 1)
        for position, (_, score) in enumerate(bars):
            errors = np.array([[score.mean - score.low], [score.high - score.mean]])
            ax.barh(position, score.mean, 0.7, color=colour_of(domain, [domain]), alpha=0.85)
            ax.errorbar(score.mean, position, xerr=errors, color=INK, capsize=2, linewidth=1)
            end = min(max(score.high, 0.0), limit)
            label = f"{score.mean:.2f}"
            behind = {"facecolor": PAGE, "edgecolor": "none", "pad": 0.8}
            ax.annotate(
                label, (end, position), (4, 0), textcoords="offset points", va="center", size=8, color=INK, bbox=behind
            )
        ax.axvline(0, color=INK, linewidth=1)
        ax.axvline(1, color=INK, linewidth=1, linestyle="--")
        ax.set_yticks(range(len(bars)), [f"{s.task.name}  {s.revision}" for s, _ in bars], fontsize=8)
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(max(MIN_SCORE, min(-0.05, *(score.low for _, score in bars))), limit)
        ax.set_xlabel("normalised score: 0 = JAT's random policy, 1 = JAT's expert, 95 % interval")
        plots.append(Plot(f"scores-{domain}", figure, f"{title(domain)}: every expert on JAT's scale"))
    return plots


def draw_curves(out: Path, tasks: Sequence[Task]) -> list[Plot]:
    """Draw training returns against steps and against time, one figure per task that has a training curve."""
    plots = []
    for task in tasks:
        curves = _curves_of(out, task)
        if not curves:
            continue
        figure, axes = new_figure(10, 3.4, 1, 2)
        for (revision, points), colour in zip(curves.items(), itertools.cycle(series_colours()), strict=False):
            returns = [point.mean_return for point in points]
            marker = "." if len(points) < 3 else ""
            axes[0].plot([p.steps / 1e6 for p in points], returns, color=colour, label=revision, marker=marker)
            axes[1].plot([p.seconds / 60 for p in points], returns, color=colour, marker=marker)
        _draw_jat(axes, task)
        axes[0].set_xlabel("environment steps, millions")
        axes[1].set_xlabel("minutes of training")
        axes[0].set_ylabel("mean return in training")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside right center", frameon=False, fontsize=8, labelcolor=INK)
        plots.append(Plot(f"curve-{task.name}", figure, task.name))
    return plots


def draw_overviews(out: Path, tasks: Sequence[Task]) -> list[Plot]:
    """Draw the training curves of all tasks as small multiples, one figure per domain with several of them."""
    plots = []
    for domain in dict.fromkeys(task.domain for task in tasks):
        curves = {t: found for t in tasks if t.domain == domain and (found := _curves_of(out, t))}
        if len(curves) < 2:
            continue
        rows = math.ceil(len(curves) / OVERVIEW_COLUMNS)
        figure, axes = new_figure(2.2 * OVERVIEW_COLUMNS, 1.7 * rows + 0.4, rows, OVERVIEW_COLUMNS)
        for ax in axes[len(curves) :]:
            ax.set_visible(False)
        for ax, (task, of_task) in zip(axes, curves.items(), strict=False):
            for points, colour in zip(of_task.values(), itertools.cycle(series_colours()), strict=False):
                ax.plot([p.steps / 1e6 for p in points], [p.mean_return for p in points], color=colour, linewidth=1.3)
            _draw_jat([ax], task)
            ax.grid(color=LINE, linewidth=0.6)
            ax.set_title(task.name.removeprefix(f"{domain}-"), fontsize=8, color=INK)
            ax.tick_params(labelsize=6)
            ax.locator_params(nbins=4)
        figure.supxlabel("environment steps, millions", fontsize=8, color=INK)
        figure.supylabel("mean return in training; dashed: JAT's expert, dotted: random", fontsize=8, color=INK)
        plots.append(Plot(f"curves-{domain}", figure, f"{title(domain)}: return in training"))
    return plots


def _curves_of(out: Path, task: Task) -> dict[str, list[TrainingPoint]]:
    """Read the training curves of a task's experts, by revision; experts without a curve are left out."""
    found = {expert.record.revision: read_curve(expert.folder / CURVE) for expert in experts_of(out, task)}
    return {revision: points for revision, points in found.items() if points}


def _draw_jat(axes: Sequence[Any], task: Task) -> None:
    jat = jat_scores().get(task.name, {})
    for name, style in (("expert", "--"), ("random", ":")):
        for ax in axes if name in jat else ():
            ax.axhline(jat[name], color=INK, linestyle=style, linewidth=1, label=f"JAT's {name}")
