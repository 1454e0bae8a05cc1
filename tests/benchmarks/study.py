"""Studies: trainings that differ in one setting, on the same data and compute, with several seeds and confidence
intervals.

Every training is one job in its own folder, ``OUT/<study>/<variant>/seed-<n>``, and is complete once its
``evaluation/scores.json`` exists. A repeated study runs only what is missing and resumes interrupted trainings. Compute
is measured in processor seconds: each variant is timed first and gets as many optimiser steps as fit. The timings are
cached in ``OUT/<study>/speeds.json``, so later runs use the same numbers of steps. A study whose trainings do more than
optimiser steps lets them run for their time instead, by a clock that counts processor seconds (``by_clock``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from pipeline.cli import check_at_least_one
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.pool import run_jobs
from pipeline.runtime.progress import Progress
from pipeline.scoring.scores import NUM_RESAMPLES, Interval, interval_of, resampled_means
from pipeline.text import format_count
from trainer.config import RECIPES, TrainConfig

if TYPE_CHECKING:
    from trainer.training.run import TrainingRun

log = logging.getLogger(__name__)

# Optimiser steps per timing, and timings per variant; the fastest is used, since it was disturbed least.
TIMED_STEPS, TIMINGS = 3, 5
WARMUP_SHARE = 10  # seconds of a training by the clock for each step of its warm-up, at least; a step takes about one


@dataclass(frozen=True)
class StudyConfig:
    """Train variants of a recipe and compare their scores."""

    task: str = (
        "metaworld-button-press,metaworld-coffee-button,metaworld-door-open,metaworld-drawer-open,"
        "metaworld-handle-pull,metaworld-peg-unplug-side,metaworld-push,metaworld-reach,metaworld-sweep-into,"
        "metaworld-window-open"
    )
    """Tasks that every variant is trained and evaluated on: task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run; its dataset and expert measurements are used."""
    dataset: Path | None = None
    """Dataset directory; default OUT/dataset."""
    training: str = "base"
    """Training recipe that all variants are derived from."""
    seconds: int = 300
    """Processor seconds of each training, converted to optimiser steps by the measured speed."""
    seeds: int = 3
    """Number of trainings (seeds) of each variant."""
    episodes: int = 20
    """Number of evaluation episodes per task and training."""
    variants: str = "*"
    """Comma list of variants to train; default all. Reports include all completed variants."""
    workers: int = 2
    """Number of concurrent trainings, each on one processor."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "seconds", "seeds", "episodes", "workers")
        if self.training not in RECIPES:
            raise UserError(f"--training {self.training!r} is unknown; allowed: {', '.join(sorted(RECIPES))}")


@dataclass(frozen=True)
class Variant:
    """One change to the training.

    Attributes:
        name: name of its folder and in reports.
        changes: training options by flag name; network options as ``model.NAME``; ``model`` alone replaces the whole
            network.
        about: description in a few words.
    """

    name: str
    changes: Mapping[str, Any]
    about: str

    def apply(self, config: TrainConfig) -> TrainConfig:
        """Return the training config with the changes applied.

        Raises:
            UserError: the training has no such option.
        """
        whole = {key: value for key, value in self.changes.items() if not key.startswith("model.")}
        parts = {key.removeprefix("model."): v for key, v in self.changes.items() if key.startswith("model.")}
        try:
            config = dataclasses.replace(config, **whole)
            model: Any = dataclasses.replace(config.model, **parts)
        except TypeError as error:
            raise UserError(f"variant {self.name}: {config.model.architecture} networks differ: {error}") from error
        return dataclasses.replace(config, model=model)


@dataclass(frozen=True)
class StudyJob:
    """One training and its evaluation."""

    variant: str
    seed: int
    config: TrainConfig
    tasks: tuple[Task, ...]
    episodes: int
    by_clock: bool = False


@dataclass(frozen=True)
class Result:
    """Aggregated results of a variant's trainings.

    Attributes:
        score: mean expert-normalised score over tasks, episodes and seeds, with a 95 % interval over seeds and
            episodes.
        difference: score minus that of the first variant, with the same kind of interval; None for the first variant.
        tasks: score by task.
        validation_loss: mean over the last checkpoints; comparable only between variants with the same heads and
            losses.
        timesteps, steps: of each training.
        rate: time steps per processor second.
    """

    variant: str
    about: str
    seeds: int
    score: Interval
    difference: Interval | None
    tasks: dict[str, Interval]
    validation_loss: float
    timesteps: int
    steps: int
    rate: float
    num_parameters: int


def run_study(
    name: str,
    variants: Sequence[Variant],
    config: StudyConfig,
    tasks: Sequence[Task] | None = None,
    by_clock: bool = False,
) -> list[Result]:
    """Train and evaluate what is missing; return the results of all completed variants, in order, also written to
    ``results.json``.

    Args:
        name: name of the study and its folder.
        variants: what to compare; differences are relative to the first.
        config: settings of the study.
        tasks: the task table to choose from; all 157 tasks if None.
        by_clock: give each training ``config.seconds`` of processor time, not the steps that fit into them.

    Raises:
        UserError: an unknown variant, or an error of training or evaluation.
    """
    from trainer.train import choose_tasks

    config = dataclasses.replace(
        config, out=config.out.absolute(), dataset=(config.dataset or RunLayout(config.out).dataset).absolute()
    )
    chosen = _select(variants, config.variants)
    folder = config.out / name
    base = dataclasses.replace(
        RECIPES[config.training](), task=config.task, dataset=config.dataset, out=config.out, threads=1, workers=1
    )
    configs = {variant.name: variant.apply(base) for variant in variants}
    by_name = {variant: choose_tasks(configs[variant], tasks) for variant in configs}
    _check_same_study(folder / "study.json", config)
    seconds: dict[str, float] = {}
    if not by_clock:
        seconds = _measure_speeds(folder / "speeds.json", {v.name: configs[v.name] for v in chosen}, by_name)
    jobs = []
    for seed in range(config.seeds):
        for variant in chosen:
            out = folder / variant.name / f"seed-{seed}"
            training = dataclasses.replace(configs[variant.name], out=out, seed=seed)
            if by_clock:
                # The number of steps is not known before, and a warm-up must not outlast the training.
                warmup = min(training.warmup_steps, max(1, config.seconds // WARMUP_SHARE))
                training = dataclasses.replace(training, seconds=float(config.seconds), warmup_steps=warmup)
            else:
                steps = max(1, round(config.seconds / seconds[variant.name]))
                training = dataclasses.replace(
                    training, steps=steps, checkpoint_every=max(1, math.ceil(steps / 4)),
                    warmup_steps=min(training.warmup_steps, math.ceil(steps / 10)),
                )  # fmt: skip
            if not _is_done(out):
                _link_references(config, out)
                jobs.append(StudyJob(variant.name, seed, training, by_name[variant.name], config.episodes, by_clock))
    log.info("%s of about %d s, %d at once", format_count(len(jobs), "training"), config.seconds, config.workers)
    progress = Progress("trainings", len(jobs), interval_s=0)
    for job, score in run_jobs(run_training, jobs, config.workers):
        progress.advance(1, f"{job.variant}, seed {job.seed}: score {score:.3f}")
    results = _collect(folder, variants, config.seeds)
    write_json(folder / "results.json", [asdict(result) for result in results])
    return results


def run_training(job: StudyJob) -> float:
    """Train and evaluate in this process; return the mean score."""
    from trainer.evaluation.evaluate import EvaluateConfig, evaluate
    from trainer.train import train

    with _processor_clock() if job.by_clock else contextlib.nullcontext():
        train(job.config, job.tasks, is_worker=True)
    settings = EvaluateConfig(
        task=job.config.task, out=job.config.out, episodes=job.episodes, workers=os.cpu_count() or 1, video_episodes=0
    )
    scores = evaluate(settings, job.tasks, is_worker=True)
    return float(np.mean([np.mean(score.scores) for score in scores if score.scores is not None]))


@contextlib.contextmanager
def _processor_clock() -> Iterator[None]:
    """Let trainings in this process count processor seconds in place of time."""
    from trainer.training import run

    with mock.patch.object(run, "time", SimpleNamespace(monotonic=time.process_time)):
        yield


def write_between(path: Path, marker: str, text: str) -> None:
    """Replace the text between ``<!-- marker -->`` and ``<!-- end -->`` in a document.

    Raises:
        UserError: the document has no such markers.
    """
    before = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {marker} -->\n", "<!-- end -->"
    if begin not in before or end not in before.split(begin, 1)[1]:
        raise UserError(f"{path} has no lines <!-- {marker} --> and {end} to write between")
    head, rest = before.split(begin, 1)
    path.write_text(head + begin + text + end + rest.split(end, 1)[1], encoding="utf-8")


def bootstrap(runs: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Return bootstrapped means over tasks, shape ``(NUM_RESAMPLES,)``: seeds are resampled first, then the episodes of
    each task within a seed.

    Args:
        runs: per seed and task, the scores of its episodes.
    """
    generator = np.random.default_rng(0)
    by_run = np.stack([resampled_means(run, generator) for run in runs])
    drawn = generator.integers(len(runs), size=(len(runs), NUM_RESAMPLES))
    means: np.ndarray = by_run[drawn, np.arange(NUM_RESAMPLES)].mean(axis=0)
    return means


def _mean(runs: Sequence[Sequence[np.ndarray]]) -> float:
    return float(np.mean([[np.mean(scores) for scores in run] for run in runs]))


def _select(variants: Sequence[Variant], pattern: str) -> list[Variant]:
    names = [variant.name for variant in variants]
    wanted = [part.strip() for part in pattern.split(",") if part.strip()]
    if unknown := [part for part in wanted if part != "*" and part not in names]:
        raise UserError(f"no variant {', '.join(unknown)}; there are: {', '.join(names)}")
    return [variant for variant in variants if "*" in wanted or variant.name in wanted]


def _check_same_study(path: Path, config: StudyConfig) -> None:
    """Fail if the existing trainings have other settings."""
    now = {name: str(getattr(config, name)) for name in ("task", "dataset", "training", "seconds", "episodes")}
    if not path.exists():
        write_json(path, now)
    before = read_json(path)
    if differ := [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]:
        raise UserError(f"{path.parent} holds another study: {'; '.join(differ)}. Move it away, or pass its settings")


def _measure_speeds(
    path: Path, configs: Mapping[str, TrainConfig], tasks: Mapping[str, tuple[Task, ...]]
) -> dict[str, float]:
    """Return processor seconds per optimiser step of each variant; cached timings are reused."""
    speeds: dict[str, float] = read_json(path) if path.exists() else {}
    missing = [name for name in configs if name not in speeds]
    if not missing:
        return speeds
    from trainer.training.run import TrainingRun

    out = path.parent / "timing"
    for name in missing:
        config = dataclasses.replace(configs[name], out=out, steps=1_000, validation_steps=0)
        RunLayout(out).train.mkdir(parents=True, exist_ok=True)
        timed = TrainingRun(config, tasks[name], RunLayout(out).train, {})
        timed.one_step()  # allocations and kernel selection
        speeds[name] = min(_time_steps(timed) for _ in range(TIMINGS))
        timed.close()
        log.info("%s: %.3f s per optimiser step", name, speeds[name])
        write_json(path, speeds)
    return speeds


def _time_steps(run: TrainingRun) -> float:
    """Return processor seconds per optimiser step, including data loading."""
    begun = time.process_time()
    for _ in range(TIMED_STEPS):
        run.one_step()
    return (time.process_time() - begun) / TIMED_STEPS


def _link_references(config: StudyConfig, out: Path) -> None:
    """Link the files of the study's root that evaluation reads into the training's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name, target in (("experts", RunLayout(config.out).experts), ("dataset", config.dataset)):
        if not (out / name).exists():
            (out / name).symlink_to(str(target))


def _is_done(out: Path) -> bool:
    return RunLayout(out).scores().exists()


def _collect(folder: Path, variants: Sequence[Variant], num_seeds: int) -> list[Result]:
    """Collect the results of the variants with all seeds completed."""
    from trainer.evaluation.results import load_scores
    from trainer.training.logs import TrainManifest

    results: list[Result] = []
    first: tuple[float, np.ndarray] | None = None
    path = folder / "speeds.json"
    speeds: dict[str, float] = read_json(path) if path.exists() else {}
    for variant in variants:
        outs = [folder / variant.name / f"seed-{seed}" for seed in range(num_seeds)]
        if not all(_is_done(out) for out in outs):
            continue
        scores = [{s.task: np.array(s.scores) for s in load_scores(out) if s.scores is not None} for out in outs]
        runs = [list(by_task.values()) for by_task in scores]
        manifests = [TrainManifest.read(RunLayout(out).train_manifest) for out in outs]
        mean, resampled = _mean(runs), bootstrap(runs)
        difference = None if first is None else interval_of(mean - first[0], resampled - first[1])
        if variant is variants[0]:
            first = mean, resampled
        own = {task: [[by_task[task]] for by_task in scores] for task in scores[0]}
        losses = [m.validation_loss for m in manifests if m.validation_loss is not None]
        results.append(
            Result(
                variant=variant.name,
                about=variant.about,
                seeds=num_seeds,
                score=interval_of(mean, resampled),
                difference=difference,
                tasks={task: interval_of(_mean(values), bootstrap(values)) for task, values in own.items()},
                validation_loss=float(np.mean(losses)) if losses else math.nan,
                timesteps=manifests[0].trained_timesteps,
                steps=manifests[0].steps,
                rate=manifests[0].trained_timesteps
                / (manifests[0].steps * speeds[variant.name] if variant.name in speeds else manifests[0].train_seconds),
                num_parameters=manifests[0].num_parameters,
            )
        )
    return results
