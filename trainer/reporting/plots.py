"""The report's figures as inline SVG that inherits its colours from the page's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.pages.figures import INK, LINE, SOFT, add_legend, colour_of, new_axes, new_figure, to_svg
from pipeline.pages.page import title
from pipeline.scoring.rounds import Round
from trainer.evaluation.results import Curve, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATISTICS = {"mean": "mean", "median": "median", "iqm": "IQM", "optimality_gap": "optimality gap"}
LOWEST, HIGHEST = -0.25, 1.75  # of scores in the comparison with JAT; values outside are drawn at the edge
SMOOTHED = 50  # smoothing window of the training curve: a fiftieth of the run, at least ten steps
FEW_TASKS = 5
MOST_DRAWN = 2  # tasks named in the plot of the sampling


def aggregates(evaluation: Evaluation) -> str:
    """Plot four statistics of each domain, each with its 95 % interval."""
    domains = [domain for domain in evaluation.summaries if domain.expert]
    names = [domain.domain for domain in domains]
    figure, panels = new_figure(4.4, 3.4, 2, 2, sharey=True)
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
    return to_svg(figure, "mean, median, IQM and optimality gap by domain with 95 % intervals")


def profile(evaluation: Evaluation) -> str | None:
    """Plot, per domain, the share of tasks that reach each score; None if the domains have too few tasks."""
    if max(domain.num_tasks for domain in evaluation.domains) < FEW_TASKS:
        return None
    figure, axes = new_axes(3.6, 2.9)
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
    add_legend(axes)
    return to_svg(figure, "share of tasks that reach a score, by domain")


def against_jat(evaluation: Evaluation) -> str:
    """Plot each task as a point: JAT's published score and ours, both on the scale of JAT's references."""
    figure, axes = new_axes(3.6, 2.9)
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
    add_legend(axes)
    return to_svg(figure, "score of this agent against JAT's, task by task")


def training(log: Sequence[dict[str, Any]]) -> str:
    """Plot the smoothed action loss by domain against real time steps processed."""
    figure, axes = new_axes(3.6, 2.9)
    keys = sorted({key for row in log for key in row if key.startswith("action_loss/")})
    names = [key.removeprefix("action_loss/") for key in keys]
    for key, name in zip(keys, names, strict=True):
        timesteps, losses = _series(log, key)
        at, smooth = _smoothed(timesteps, losses)
        axes.plot(at, smooth, color=colour_of(name, names), linewidth=1.4, label=title(name))
    _log_scale(axes, np.concatenate([_series(log, key)[1] for key in keys]) if keys else np.empty(0))
    _count_axis(axes, "time steps trained on")
    axes.set_ylabel("action loss")
    add_legend(axes)
    return to_svg(figure, "action loss by domain during training")


def validation(log: Sequence[dict[str, Any]]) -> str | None:
    """Plot the training objective on the training data and on the test split; None if validation loss was never
    measured."""
    timesteps, losses = _series(log, "validation_loss")
    if not len(losses):
        return None
    figure, axes = new_axes(3.6, 2.9)
    seen, training_losses = _series(log, "loss")
    at, smooth = _smoothed(seen, training_losses)
    axes.plot(at, smooth, color=SOFT, linewidth=1.2, label="training")
    axes.plot(timesteps, losses, "o-", color=INK, linewidth=1.4, markersize=3, label="validation")
    _log_scale(axes, np.concatenate([training_losses, losses]))
    _count_axis(axes, "time steps trained on")
    axes.set_ylabel("loss, as it is weighted")
    add_legend(axes)
    return to_svg(figure, "training and validation loss")


def sampling(log: Sequence[dict[str, Any]]) -> str | None:
    """Plot each source's share of the draws against time steps processed; None if the sampling was uniform.

    The first point is the first update; until then the draws were uniform.
    """
    rows = [row for row in log if any(key.startswith("share/") for key in row)]
    if not rows:
        return None
    figure, axes = new_axes(3.6, 2.9)
    names = sorted(key.removeprefix("share/") for key in rows[-1] if key.startswith("share/"))
    domains = list(dict.fromkeys(name.partition("-")[0] for name in names))
    shares = {name: _series(rows, f"share/{name}") for name in names}
    end = log[-1]["timesteps"]
    for name, (timesteps, values) in shares.items():
        domain = name.partition("-")[0]
        is_first = name == next(other for other in names if other.partition("-")[0] == domain)
        at, drawn = np.append(timesteps, end), 100 * np.append(values, values[-1:])
        axes.step(
            at, drawn, where="post", color=colour_of(domain, domains), linewidth=1.1, alpha=0.8,
            label=title(domain) if is_first else None,
        )  # fmt: skip
    most = sorted(names, key=lambda name: -shares[name][1][-1])[:MOST_DRAWN]
    axes.set_title("most drawn at the end: " + ", ".join(most), fontsize=7, color=SOFT, wrap=True)
    _count_axis(axes, "time steps trained on")
    axes.set_ylabel("share of the draws, %")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    return to_svg(figure, "share of the draws of each task during training")


def learning_curve(curve: Curve, key: str, label: str) -> str:
    """Plot the mean over tasks of each domain along training against ``key`` of the checkpoints, with intervals."""
    figure, axes = new_axes(3.6, 2.9)
    x = np.array([getattr(point, key) for point in curve.points], np.float64)
    names = curve.names
    for name in names:
        found = [
            (value, point.domains[name]) for value, point in zip(x, curve.points, strict=True) if name in point.domains
        ]
        at = np.array([value for value, _ in found])
        means = [aggregate.mean for _, aggregate in found]
        colour = colour_of(name, names)
        axes.plot(at, [mean.mean for mean in means], "o-", color=colour, linewidth=1.5, markersize=3, label=title(name))
        low, high = [mean.low for mean in means], [mean.high for mean in means]
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    _count_axis(axes, label)
    axes.set_ylabel("mean normalised score")
    add_legend(axes)
    return to_svg(figure, f"mean score by domain against {label}")


def rounds(found: Sequence[Round], key: Literal["number", "queries"], label: str) -> str:
    """Plot each task's score, and their mean, over the rounds of a relabelling or the expert queries they took."""
    figure, axes = new_axes(3.6, 2.9)
    x = [getattr(each, key) for each in found]
    for name in found[0].scores:
        scores = [each.scores.get(name) for each in found]
        axes.plot(x, [np.nan if score is None else score for score in scores], color=SOFT, linewidth=1.0)
    means = [np.nan if each.mean is None else each.mean for each in found]
    axes.plot(x, means, "o-", color=INK, linewidth=1.6, markersize=3)
    if key == "number":
        axes.set_xticks(x)
        axes.set_xlabel(label)
    else:
        _count_axis(axes, label)
    axes.set_ylabel("normalised score")
    return to_svg(figure, f"score of each task and their mean against {label}")


def _series(log: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return time steps processed and values of ``key``, for the rows that have it."""
    points = [(row["timesteps"], row[key]) for row in log if key in row]
    return (np.array([p[0] for p in points], np.float64), np.array([p[1] for p in points], np.float64))


def _smoothed(timesteps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a moving average of losses, and the time steps at its windows' ends."""
    window = min(len(losses), max(10, len(losses) // SMOOTHED))
    return timesteps[window - 1 :], np.convolve(losses, np.ones(window) / window, mode="valid")


def _count_axis(axes: Axes, label: str) -> None:
    """Format an axis of counts with few, short labels: 20k, 40k."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(label)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Use a logarithmic axis, unless a loss is negative, as a negative log-likelihood can be."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if len(values) and values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
