"""Pictures of experts: how good they are, and how they were trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experts.ranking import Standing
from experts.registry import experts_of
from experts.store import CURVE, CurvePoint
from experts.training import read_curve
from pipeline.files import replacing
from pipeline.scores import jat_scores
from pipeline.tasks import Task

INK = "#1f2933"
MIN_SCORE, MAX_SCORE = -1.0, 3.0  # at which bars are cut
OVERVIEW_COLUMNS = 5
COLOURS = ("#2f6fb3", "#d97706", "#16a34a", "#9333ea", "#be123c", "#0e7490")


def write_bars(directory: Path, found: Sequence[Sequence[Standing]]) -> list[str]:
    """Normalised score of every expert with its interval, one picture per domain.

    Bars are cut, their numbers beside them are not: where JAT's expert is hardly better than random, as in
    disassemble, a score says little and would leave no room for the others.
    """
    names = []
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
        kinds = sorted({standing.expert.record.kind for standing, _ in bars})
        figure, (ax,) = _figure(9, 1.2 + 0.3 * len(bars))
        for position, (standing, score) in enumerate(bars):
            colour = COLOURS[kinds.index(standing.expert.record.kind) % len(COLOURS)]
            errors = np.array([[score.mean - score.low], [score.high - score.mean]])
            ax.barh(position, score.mean, 0.7, color=colour, alpha=0.85)
            ax.errorbar(score.mean, position, xerr=errors, color=INK, capsize=2, linewidth=1)
            end = min(max(score.high, 0.0), limit)
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            label = f"{score.mean:.2f}"
            ax.annotate(label, (end, position), (4, 0), textcoords="offset points", va="center", size=8, bbox=behind)
        ax.axvline(0, color=INK, linewidth=1)
        ax.axvline(1, color=INK, linewidth=1, linestyle="--")
        ax.set_yticks(range(len(bars)), [f"{s.task.name}  {s.revision}" for s, _ in bars], fontsize=8)
        ax.set_ylim(len(bars) - 0.4, -0.6)
        ax.set_xlim(max(MIN_SCORE, min(-0.05, *(score.low for _, score in bars))), limit)
        ax.set_xlabel("normalised score: 0 = JAT's random policy, 1 = JAT's expert, 95 % interval")
        names.append(_save(figure, directory / f"scores-{domain}.png"))
    return names


def write_curves(directory: Path, out: Path, task: Task) -> list[str]:
    """Return in training against steps and against time, of every expert of the task that has a curve."""
    curves = _curves_of(out, task)
    if not curves:
        return []
    figure, axes = _figure(10, 3.4, columns=2)
    for (revision, points), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        returns = [point.mean_return for point in points]
        marker = "." if len(points) < 3 else ""
        axes[0].plot([p.steps / 1e6 for p in points], returns, color=colour, label=revision, marker=marker)
        axes[1].plot([p.seconds / 60 for p in points], returns, color=colour, marker=marker)
    _draw_jat(axes, task)
    axes[0].set_xlabel("environment steps, millions")
    axes[1].set_xlabel("minutes of training")
    axes[0].set_ylabel("mean return in training")
    figure.suptitle(task.name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return [_save(figure, directory / f"curve-{task.name}.png")]


def write_overviews(directory: Path, out: Path, tasks: Sequence[Task]) -> list[str]:
    """How every task's experts were trained, small and side by side, one picture per domain with several of them."""
    names = []
    for domain in dict.fromkeys(task.domain for task in tasks):
        curves = {t: found for t in tasks if t.domain == domain and (found := _curves_of(out, t))}
        if len(curves) < 2:
            continue
        rows = math.ceil(len(curves) / OVERVIEW_COLUMNS)
        figure, axes = _figure(2.2 * OVERVIEW_COLUMNS, 1.7 * rows + 0.4, rows, OVERVIEW_COLUMNS)
        for ax in axes[len(curves) :]:
            ax.set_visible(False)
        for ax, (task, of_task) in zip(axes, curves.items(), strict=False):
            for points, colour in zip(of_task.values(), itertools.cycle(COLOURS), strict=False):
                ax.plot([p.steps / 1e6 for p in points], [p.mean_return for p in points], color=colour, linewidth=1.3)
            _draw_jat([ax], task)
            ax.set_title(task.name.removeprefix(f"{domain}-"), fontsize=8)
            ax.tick_params(labelsize=6)
            ax.locator_params(nbins=4)
        figure.supxlabel("environment steps, millions", fontsize=8)
        figure.supylabel("mean return in training; dashed: JAT's expert, dotted: random", fontsize=8)
        names.append(_save(figure, directory / f"curves-{domain}.png"))
    return names


def _curves_of(out: Path, task: Task) -> dict[str, list[CurvePoint]]:
    """Training curves of the experts of a task that have one, by revision."""
    found = {expert.record.revision: read_curve(expert.folder / CURVE) for expert in experts_of(out, task)}
    return {revision: points for revision, points in found.items() if points}


def _draw_jat(axes: Sequence[Any], task: Task) -> None:
    jat = jat_scores().get(task.name, {})
    for name, style in (("expert", "--"), ("random", ":")):
        for ax in axes if name in jat else ():
            ax.axhline(jat[name], color=INK, linestyle=style, linewidth=1, label=f"JAT's {name}")


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> str:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path.name
