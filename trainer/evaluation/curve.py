"""Evaluates several checkpoints of a training on the same tasks and seeds, and plots their scores.

    jat agent curve --checkpoints all --out runs/default

Writes each checkpoint's results to ``OUT/evaluation/<checkpoint>/``, as ``trainer.evaluation.evaluate`` does, then
``OUT/evaluation/curve.json`` (``trainer/evaluation/results.py``) and ``curve.png``: the first figure of JAT's
announcement, the aggregate score of each domain with its interval, against optimiser steps, time steps processed,
compute and time. Finished episodes are kept, so the command may run during a training and again after it; a checkpoint
that training has deleted since stays in the curve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import DEMO_TASKS
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import replacing, update_json
from pipeline.run_layout import RunLayout
from pipeline.tables import Column, Table, interval_cell, print_table
from pipeline.text import format_count
from trainer.config import RECIPES as TRAIN_RECIPES
from trainer.config import BaseModelConfig, Counts, ModelConfig
from trainer.evaluation.evaluate import EvaluateConfig, jat_contexts, plan, play, write_scores
from trainer.evaluation.results import OVERALL, CheckpointPoint, Curve, load_curve
from trainer.evaluation.scoring import evaluation_of

log = logging.getLogger(__name__)

COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:purple", "tab:red", "tab:brown")


@dataclass(frozen=True)
class CurveConfig:
    """Evaluate checkpoints along a training."""

    task: str = "*"
    """Tasks to evaluate: task name, domain, glob, or comma list of these, among the tasks of the checkpoints."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    checkpoints: str = "all"
    """Checkpoints to evaluate: `all` in OUT/train/checkpoints, or a comma list of their steps or names."""
    every: int = 1
    """Evaluate every N-th of these checkpoints, counting back from the last."""
    episodes: int = 20
    """Number of episodes per task and checkpoint."""
    temperature: float = 1.0
    """Softmax temperature for sampling discrete actions; 0 takes the mode."""
    contexts: Counts = field(default_factory=dict)
    """Context length in time steps, by task or domain name; the checkpoint's own for tasks not listed."""
    replace: bool = False
    """Delete existing results of other checkpoints of the same names, or of other settings."""
    workers: int = 2
    """Number of worker processes; each plays several tasks of the same layout at a time."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "every", "episodes", "workers")
        self.of(Path())

    def of(self, checkpoint: Path) -> EvaluateConfig:
        """Return the config for evaluating one checkpoint."""
        return EvaluateConfig(
            task=self.task,
            out=self.out,
            checkpoint=checkpoint,
            name=checkpoint.name,
            replace=self.replace,
            episodes=self.episodes,
            temperature=self.temperature,
            contexts=self.contexts,
            workers=self.workers,
            video_episodes=0,
        )


def demo() -> CurveConfig:
    """The demo's six tasks."""
    return CurveConfig(task=DEMO_TASKS)


def jat() -> CurveConfig:
    """JAT's evaluation settings: sampled actions, context of 128 time steps, 16 in Atari."""
    return CurveConfig(contexts=jat_contexts())


RECIPES = {**dict.fromkeys(TRAIN_RECIPES, CurveConfig), "demo": demo, "jat": jat}


def evaluate_checkpoints(config: CurveConfig, tasks: Sequence[Task] | None = None, is_worker: bool = False) -> Curve:
    """Play the missing episodes of each checkpoint and write the curve; see ``trainer.evaluation.evaluate.evaluate``.

    Raises:
        UserError: a checkpoint does not exist or cannot be evaluated; raised before any episode is played.
        JobsFailedError: some tasks failed; the others are evaluated.
    """
    folders = choose_checkpoints(config)
    from trainer.pretrained.load import agent_config

    plans = [plan(config.of(folder), tasks) for folder in folders]
    play(plans, config.workers, is_worker)
    points, names = [], []
    for folder, planned in zip(folders, plans, strict=True):
        scores = [score for score in write_scores(planned, tasks) if score.task in planned.tasks]
        names = [score.task for score in scores if score.scores is not None]
        evaluation = evaluation_of(planned.settings, scores)
        domains = {d.domain: d.expert for d in (*evaluation.domains, evaluation.overall) if d.expert is not None}
        points.append(make_point(folder, agent_config(folder).model, domains))
    before = load_curve(config.out)
    if before and (before.tasks, before.episodes, before.settings) == (names, config.episodes, plans[0].settings.how):
        gone = [point for point in before.points if point.name not in {new.name for new in points}]
        points = sorted([*gone, *points], key=lambda point: point.step)
    curve = Curve(names, config.episodes, plans[0].settings.how, points)
    update_json(RunLayout(config.out).curve, asdict(curve))
    plot(curve, RunLayout(config.out).curve.with_suffix(".png"))
    return curve


def choose_checkpoints(config: CurveConfig) -> list[Path]:
    """Return the folders of the chosen checkpoints, ordered by step.

    Raises:
        UserError: there are no checkpoints, or a chosen one is missing.
    """
    directory = RunLayout(config.out).checkpoints
    found = {path.name: path for path in sorted(directory.glob("step-*"))}
    if not found:
        raise UserError(f"no checkpoints in {directory}; run `jat train` with the same --out first")
    if config.checkpoints == "all":
        chosen = list(found.values())
    else:
        words = [word.strip() for word in config.checkpoints.split(",")]
        names = [f"step-{int(word):08d}" if word.isdecimal() else word for word in words]
        if unknown := [name for name in names if name not in found]:
            raise UserError(f"no checkpoint {', '.join(unknown)} in {directory}; there are: {', '.join(found)}")
        chosen = [path for name, path in found.items() if name in names]
    return chosen[::-1][:: config.every][::-1]


def make_point(folder: Path, model: ModelConfig | BaseModelConfig, domains: Mapping[str, Any]) -> CheckpointPoint:
    """Return the training cost of a checkpoint and its scores."""
    from trainer.checkpoint import load_progress

    progress = load_progress(folder)
    return CheckpointPoint(
        name=folder.name,
        step=progress.step,
        timesteps=progress.timesteps,
        seconds=progress.seconds,
        flops=training_flops(model, progress.padded_timesteps),
        domains=dict(domains),
    )


def training_flops(model: ModelConfig | BaseModelConfig, padded_timesteps: int) -> float:
    """Estimate the compute of training: 6 FLOPs per block weight and position (arXiv 2001.08361).

    In both networks a block has 12 times its width squared weights. Encoders, decoders and attention scores are not
    counted.
    """
    positions = 1 if isinstance(model, BaseModelConfig) else 2
    return 6.0 * 12 * model.num_layers * model.hidden_size**2 * positions * padded_timesteps


def plot(curve: Curve, path: Path) -> None:
    """Plot the mean score by domain with its interval, against four measures of training cost."""
    from matplotlib.figure import Figure

    scales = {
        "optimiser steps": [float(point.step) for point in curve.points],
        "time steps seen, millions": [point.timesteps / 1e6 for point in curve.points],
        "compute, TFLOP (estimate)": [point.flops / 1e12 for point in curve.points],
        "seconds of training": [point.seconds for point in curve.points],
    }
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    names = [name for name in curve.names if name != OVERALL]
    for axes, (label, places) in zip(panels.flat, scales.items(), strict=True):
        for index, name in enumerate(names):
            pairs = [(x, p.domains[name].mean) for x, p in zip(places, curve.points, strict=True) if name in p.domains]
            x, colour = [pair[0] for pair in pairs], COLOURS[index % len(COLOURS)]
            axes.plot(x, [interval.mean for _, interval in pairs], marker="o", color=colour, label=name)
            low, high = [interval.low for _, interval in pairs], [interval.high for _, interval in pairs]
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(1, color="0.6", linestyle="--", linewidth=1)
        axes.set_xlabel(label)
    for axes in panels[:, 0]:
        axes.set_ylabel("mean score, 95 % interval")
    if names:
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(names), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main() -> None:
    config = parse(CurveConfig, RECIPES, prints_tables=True)
    curve = evaluate_checkpoints(config)
    title = f"Mean score of {format_count(len(curve.tasks), 'task')}"
    costs = ("step", Column("M time steps", ".1f"), Column("TFLOP", ",.1f"), Column("seconds", ".0f"))
    table = Table(*costs, *(Column(name, ".2f", missing="-") for name in curve.names), title=title)
    for point in curve.points:
        found = [point.domains.get(name) for name in curve.names]
        scores = [interval_cell(domain.mean) if domain else None for domain in found]
        table.add_row(point.step, point.timesteps / 1e6, point.flops / 1e12, point.seconds, *scores)
    print_table(table)
    log.info("wrote %s and the plot beside it", RunLayout(config.out).curve)


if __name__ == "__main__":
    run("trainer.evaluation.curve")
