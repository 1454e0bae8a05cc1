"""The report's figures as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.reporting.facts import TITLES
from trainer.scores.results import OVERALL, Curve, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins in the drawing for colours of the page, which differ by light and dark: `--ink` and so on in report.css.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
DOMAIN_COLOURS = {"atari": "#040404", "babyai": "#050505", "metaworld": "#060606", "mujoco": "#070707"}
OTHER_COLOURS = ("#080808", "#090909", "#0a0a0a")
CSS_NAMES = {INK: "ink", SOFT: "soft", LINE: "line"} | {
    colour: name for name, colour in DOMAIN_COLOURS.items()
} | {colour: f"other{number}" for number, colour in enumerate(OTHER_COLOURS)}  # fmt: skip
STATISTICS = {"mean": "mean", "median": "median", "iqm": "IQM", "optimality_gap": "optimality gap"}
LOWEST, HIGHEST = -0.25, 1.75  # of scores in the comparison with JAT; what is beyond is drawn at the edge
SMOOTHED = 50  # the training curve is averaged over a fiftieth of the run, and over ten steps at least
FEW_TASKS = 5


def colour_of(name: str, names: Sequence[str]) -> str:
    """Of a domain, its own; of what else there is, the others in turn."""
    if name == OVERALL:
        return INK
    others = [other for other in names if other not in DOMAIN_COLOURS]
    return DOMAIN_COLOURS.get(name) or OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


def title(name: str) -> str:
    """Of a domain or corpus, as people write it."""
    return TITLES.get(name, name)


def aggregates(evaluation: Evaluation) -> str:
    """Four statistics of each domain, each with its 95 % interval."""
    domains = [domain for domain in evaluation.summaries if domain.expert]
    names = [domain.domain for domain in domains]
    figure, panels = _figure(4.4, 3.4, 2, 2, sharey=True)
    positions = np.arange(len(domains))[::-1]
    for axes, (key, label) in zip(panels, STATISTICS.items(), strict=True):
        for position, domain in zip(positions, domains, strict=True):
            value = getattr(domain.expert, key)
            colour = colour_of(domain.domain, names)
            axes.plot([value.low, value.high], [position, position], color=colour, linewidth=5, alpha=0.35)
            axes.plot(value.mean, position, "o", color=colour, markersize=5)
        axes.set_title(label, fontsize=9, color=INK)
        axes.set_yticks(positions, [title(name) for name in names])
        axes.set_ylim(-0.6, len(domains) - 0.4)
        axes.grid(axis="x", color=LINE, linewidth=0.8)
    return _svg(figure, "mean, median, IQM and optimality gap by domain with 95 % intervals")


def profile(evaluation: Evaluation) -> str | None:
    """Per domain, the share of tasks that reach a score, over all scores; None where there are few tasks of each."""
    if max(domain.num_tasks for domain in evaluation.domains) < FEW_TASKS:
        return None
    figure, axes = _one(3.6, 2.9)
    grid = np.linspace(0, 1.2, 241)
    names = [domain.domain for domain in evaluation.domains]
    for name in names:
        means = [task.score.mean for task in evaluation.tasks if task.domain == name and task.score]
        if means:
            share = (np.array(means)[:, None] >= grid).mean(axis=0)
            axes.plot(grid, share, color=colour_of(name, names), linewidth=1.8, label=title(name))
    axes.set_xlabel("normalised score")
    axes.set_ylabel("share of tasks that reach it")
    axes.set_ylim(-0.02, 1.02)
    _legend(axes)
    return _svg(figure, "share of tasks that reach a score, by domain")


def against_jat(evaluation: Evaluation) -> str:
    """Each task as a point: JAT's published score and ours, both on the scale of JAT's references."""
    figure, axes = _one(3.6, 2.9)
    names = [domain.domain for domain in evaluation.domains]
    axes.plot([LOWEST, HIGHEST], [LOWEST, HIGHEST], color=SOFT, linewidth=1, linestyle="--")
    for name in names:
        pairs = [
            (task.jat_score, task.score_on_jat_scale)
            for task in evaluation.tasks
            if task.domain == name and task.jat_score is not None and task.score_on_jat_scale is not None
        ]
        if pairs:
            x, y = np.clip(np.array(pairs), LOWEST, HIGHEST).T
            axes.plot(x, y, "o", color=colour_of(name, names), markersize=4, alpha=0.75, label=title(name))
    axes.set_xlim(LOWEST - 0.05, HIGHEST + 0.05)
    axes.set_ylim(LOWEST - 0.05, HIGHEST + 0.05)
    axes.set_xlabel("JAT's agent, as published")
    axes.set_ylabel("this agent")
    _legend(axes)
    return _svg(figure, "score of this agent against JAT's, task by task")


def training(log: Sequence[dict[str, Any]]) -> str:
    """Action loss by domain against real time steps seen, smoothed."""
    figure, axes = _one(3.6, 2.9)
    keys = sorted({key for row in log for key in row if key.startswith("action_loss/")})
    names = [key.removeprefix("action_loss/") for key in keys]
    for key, name in zip(keys, names, strict=True):
        timesteps, losses = _series(log, key)
        at, smooth = _smoothed(timesteps, losses)
        axes.plot(at, smooth, color=colour_of(name, names), linewidth=1.4, label=title(name))
    _log_scale(axes, np.concatenate([_series(log, key)[1] for key in keys]) if keys else np.empty(0))
    _count_axis(axes, "time steps trained on")
    axes.set_ylabel("action loss")
    _legend(axes)
    return _svg(figure, "action loss by domain during training")


def validation(log: Sequence[dict[str, Any]]) -> str | None:
    """Training objective on all data and on the test split; None if it was never measured on that."""
    timesteps, losses = _series(log, "validation_loss")
    if not len(losses):
        return None
    figure, axes = _one(3.6, 2.9)
    seen, training_losses = _series(log, "loss")
    at, smooth = _smoothed(seen, training_losses)
    axes.plot(at, smooth, color=SOFT, linewidth=1.2, label="training")
    axes.plot(timesteps, losses, "o-", color=INK, linewidth=1.4, markersize=3, label="validation")
    _log_scale(axes, np.concatenate([training_losses, losses]))
    _count_axis(axes, "time steps trained on")
    axes.set_ylabel("loss, as it is weighted")
    _legend(axes)
    return _svg(figure, "training and validation loss")


def learning_curve(curve: Curve, key: str, label: str) -> str:
    """IQM of each domain along training against ``key`` of the checkpoints, with intervals."""
    figure, axes = _one(3.6, 2.9)
    x = np.array([getattr(point, key) for point in curve.points], np.float64)
    names = curve.names
    for name in names:
        found = [
            (value, point.domains[name]) for value, point in zip(x, curve.points, strict=True) if name in point.domains
        ]
        at = np.array([value for value, _ in found])
        iqms = [aggregate.iqm for _, aggregate in found]
        colour = colour_of(name, names)
        axes.plot(at, [iqm.mean for iqm in iqms], "o-", color=colour, linewidth=1.5, markersize=3, label=title(name))
        axes.fill_between(
            at, [iqm.low for iqm in iqms], [iqm.high for iqm in iqms], color=colour, alpha=0.15, linewidth=0
        )
    _count_axis(axes, label)
    axes.set_ylabel("IQM of normalised scores")
    _legend(axes)
    return _svg(figure, f"IQM by domain against {label}")


def _series(log: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Time steps seen and values of ``key``, where it was logged."""
    points = [(row["timesteps"], row[key]) for row in log if key in row]
    return (np.array([p[0] for p in points], np.float64), np.array([p[1] for p in points], np.float64))


def _smoothed(timesteps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moving average of losses, and the time steps at its windows' ends."""
    window = min(len(losses), max(10, len(losses) // SMOOTHED))
    return timesteps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid")


def _count_axis(axes: Axes, label: str) -> None:
    """An axis of counts, few and short: 20k, 40k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis, which a loss below zero, as a likelihood's can be, does not have."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    figure, panels = _figure(width, height, 1, 1)
    panels[0].grid(color=LINE, linewidth=0.8)
    return figure, panels[0]


def _figure(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, **shared)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=8, which="both")
        axes.xaxis.label.set(color=INK, fontsize=9)
        axes.yaxis.label.set(color=INK, fontsize=9)
        axes.set_axisbelow(True)
    return figure, panels


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element of the page."""
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same numbers give the same page. Text stays text, in the page's font.
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them, and two figures have the same
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    for colour, name in CSS_NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
