"""Fit one transformer to a dataset.

    jat train --out runs/default

Reads ``OUT/dataset`` and writes ``OUT/train``: checkpoints, ``log.jsonl`` with the training curve, and
``manifest.json`` after the last step. Ctrl-C and SIGTERM save a checkpoint first; a kill loses a few minutes at most.
The same command resumes from the checkpoint with the same batches, so the curve equals that of an uninterrupted run.

A single worker is this process. Several workers, or one on the cluster of ``RAY_ADDRESS``, are processes that Ray
starts and restarts after a failure; all of them need access to the folder OUT.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import UserError
from pipeline.files import digest_of, exclusive, write_json
from pipeline.records import read_values
from pipeline.run_layout import CHECKPOINTS, CONFIG, IDENTITY, TRAIN_LOG, RunLayout
from pipeline.runtime.hardware import this_machine
from pipeline.runtime.stage import current_stage, reported
from pipeline.stopping import raise_stop
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import describe_missing
from trainer.config import RECIPES, TrainConfig
from trainer.data.adaptive import check_sampling
from trainer.data.corpora import choose_corpora
from trainer.data.returns import with_parts
from trainer.evaluation.references import load_references
from trainer.evaluation.results import weights_of
from trainer.networks.build import check_model_fits
from trainer.pretrained.folders import locate
from trainer.training.budget import TrainingBudget
from trainer.training.logs import TrainManifest, check_identity, last_row, stop_path
from trainer.training.tracking import check_trackers

log = logging.getLogger(__name__)

# Settings that may change when a run is resumed, because they do not affect its result.
FREE_TO_CHANGE = (
    "out", "dataset", "threads", "keep_checkpoints", "checkpoint_every", "checkpoint_minutes", "workers",
    "loader_threads", "track", "validation_steps", "compile", "shard", "start",
)  # fmt: skip
# Settings that older runs do not have, with the values that these ran with. At these values they are no part of the
# identity.
ADDED = {"sampling": "uniform", "objective": "clone"}


@dataclass(frozen=True)
class AgentTrainJob:
    """Everything that a worker of a run needs."""

    config: TrainConfig
    tasks: tuple[Task, ...]
    directory: Path
    identity: dict[str, Any]


def train(config: TrainConfig, tasks: Sequence[Task] | None = None, is_worker: bool = False) -> None:
    """Train to the end of ``config``'s budget, resuming from the last checkpoint if there is one.

    Args:
        config: settings of the run.
        tasks: the task table that ``config.task`` chooses from; all 157 tasks if None.
        is_worker: whether this process is itself a worker, and so must not start others.

    Raises:
        UserError: no dataset, a task or corpus that is not in it, another run in the output folder, a loss that is not
            finite, or out of memory.
        JobsFailedError: workers failed repeatedly before the next checkpoint.
    """
    check_trackers(config.trackers)
    config = with_parts(deal_out(config))
    chosen = choose_tasks(config, tasks)
    check_sampling(config, chosen, len(choose_corpora(config)))
    if config.sampling == "adaptive":
        load_references(config.out, chosen, config.task)
    _tell_missing(config, chosen, tasks)
    identity = make_identity(config, chosen)
    if config.start is not None:
        config = dataclasses.replace(config, start=locate(config.start))
        identity |= _check_start(config, chosen)
    directory = RunLayout(config.out.absolute()).train
    if (directory / IDENTITY).exists():
        fix = f"move {directory} away to train anew"
        before = read_values(directory / IDENTITY, dict[str, Any], "the identity of a training", fix)
        check_identity(directory, {**ADDED, **before}, {**ADDED, **identity})
    if RunLayout(config.out).train_manifest.exists():
        log.info("already trained: %s", RunLayout(config.out).train_manifest)
        return
    with exclusive(directory / "lock", "wait for it, or train in another OUT"):
        write_json(directory / IDENTITY, identity)
        write_json(directory / CONFIG, config)
        job = AgentTrainJob(_absolute(config), chosen, directory, identity)
        _finish(config, directory, identity, train_worker(job) if is_worker else _run(job))


def _run(job: AgentTrainJob) -> int:
    """Train in this process or in several; return the number of parameters."""
    config = job.config
    _lay_out_images(config, job.tasks)
    if config.workers == 1 and not os.environ.get("RAY_ADDRESS"):
        return train_worker(job)
    from pipeline.runtime.train_group import run_group
    from trainer.checkpoint import load_progress, newest_state

    before = newest_state(job.directory)
    budget = TrainingBudget.of(config)
    row = asdict(load_progress(before)) if before else dict.fromkeys(("step", "seconds"), 0)
    planned = math.ceil(budget.left(row))
    stage = current_stage()
    stage.begin(budget.label, planned)
    stage.ask = lambda: max(0, planned - math.ceil(budget.left(last_row(job.directory / TRAIN_LOG) or row)))
    stop = stop_path(job.directory)
    stop.parent.mkdir(parents=True, exist_ok=True)
    stop.unlink(missing_ok=True)
    return run_group(
        train_worker,
        job,
        config.workers,
        progress=lambda: newest_state(job.directory),
        scratch=stop.parent,
        on_stop=stop.touch,
    )


def train_worker(job: AgentTrainJob) -> int:
    """Run the whole training as one of the workers; return the number of parameters."""
    from trainer.evaluation.short import ShortEvaluation
    from trainer.pretrained.load import from_pretrained
    from trainer.training.run import TrainingRun

    config = job.config
    start = from_pretrained(config.start) if config.start is not None else None
    player = None
    if config.sampling == "adaptive":
        player = ShortEvaluation(job.tasks, load_references(config.out, job.tasks), config.sampling_episodes)
    training = TrainingRun(config, job.tasks, job.directory, job.identity, start, player)
    training.fit()
    return training.num_parameters


def _check_start(config: TrainConfig, tasks: Sequence[Task]) -> dict[str, str]:
    """Refuse a checkpoint that the run cannot start from; return what it adds to the identity of the run."""
    from trainer.pretrained.load import agent_config
    from trainer.training.start import check_start

    assert config.start is not None
    check_start(config.start, agent_config(config.start), config, tasks)
    return {"from": weights_of(config.start)}


def _lay_out_images(config: TrainConfig, tasks: Sequence[Task]) -> None:
    images = [task for task in tasks if task.observation == IMAGE]
    if images:
        from trainer.data.arrays import lay_out_images

        lay_out_images(config.dataset_dir, images, RunLayout(config.out).train_cache, config.threads)


def _finish(config: TrainConfig, directory: Path, identity: dict[str, Any], num_parameters: int) -> None:
    """Write the manifest if the last step is done; exit the command if it was asked to stop earlier."""
    import torch

    from trainer.checkpoint import best_checkpoint, latest_checkpoint, load_progress

    last = latest_checkpoint(directory / CHECKPOINTS)
    if last is None or TrainingBudget.of(config).left(asdict(load_progress(last))):
        raise_stop()
    best = best_checkpoint(directory / CHECKPOINTS) or last
    progress = load_progress(last)
    manifest = TrainManifest(
        checkpoint=str(last.relative_to(config.out.absolute())),
        digest=digest_of(identity),
        steps=progress.step,
        trained_timesteps=progress.timesteps,
        num_parameters=num_parameters,
        train_seconds=round(progress.seconds, 1),
        padding_share=1 - progress.timesteps / progress.padded_timesteps,
        best_checkpoint=str(best.relative_to(config.out.absolute())),
        validation_loss=progress.validation_loss,
        waiting_share=progress.waited_seconds / progress.seconds,
        hardware=this_machine(torch.cuda.get_device_name() if torch.cuda.is_available() else ""),
    )
    write_json(RunLayout(config.out).train_manifest, manifest)
    log.info(
        "trained in %.0f s, %.1f %% padding, %.1f %% waiting for data; best is %s",
        manifest.train_seconds, 100 * manifest.padding_share, 100 * manifest.waiting_share, manifest.best_checkpoint,
    )  # fmt: skip


def deal_out(config: TrainConfig) -> TrainConfig:
    """Return the config with a number of micro-batches that its workers can share evenly.

    If the number does not divide evenly, more and proportionally smaller micro-batches are used; the size of an
    optimiser step does not change.

    Raises:
        UserError: the micro-batches would become too small.
    """
    count = config.workers * math.ceil(config.micro_batches / config.workers)
    if count == config.micro_batches:
        return config
    batch_steps = config.batch_steps * config.micro_batches // count
    if batch_steps < config.longest_context:
        raise UserError(
            f"--workers {config.workers} would leave {batch_steps} time steps for a micro-batch, too few for a window "
            f"of {config.longest_context}; raise --batch-steps or take fewer workers"
        )
    log.info("%d micro-batches of %d time steps, to deal them out to %d workers", count, batch_steps, config.workers)
    return dataclasses.replace(config, micro_batches=count, batch_steps=batch_steps)


def _absolute(config: TrainConfig) -> TrainConfig:
    """Make the paths absolute, so that they are valid in other processes."""
    start = config.start.absolute() if config.start is not None else None
    return dataclasses.replace(config, out=config.out.absolute(), dataset=config.dataset_dir.absolute(), start=start)


def _manifest(config: TrainConfig) -> DatasetManifest:
    manifest = DatasetManifest.find(config.dataset_dir)
    if manifest is None:
        raise UserError(
            f"there is no dataset in {config.dataset_dir}; run `jat collect` and `jat dataset` with the same "
            f"--out first"
        )
    return manifest


def _tell_missing(config: TrainConfig, chosen: Sequence[Task], tasks: Sequence[Task] | None) -> None:
    """Warn about episodes that a collection had planned and that the dataset lacks."""
    missing = _manifest(config).missing
    matching = {task.name for task in select_tasks(config.task, tasks, missing)}
    concerned = {name: counts for name, counts in missing.items() if name in matching}
    if concerned:
        log.warning(
            "the dataset lacks what was planned: %s; this training goes on without. To have it, run "
            "`jat collect` and `jat dataset` first",
            describe_missing(concerned, {task.name for task in chosen}),
        )


def choose_tasks(config: TrainConfig, tasks: Sequence[Task] | None = None) -> tuple[Task, ...]:
    """Return the tasks that a run trains on: those of the dataset that match ``config.task``.

    Raises:
        UserError: no dataset, or a task given by its full name that is not in it.
    """
    manifest = _manifest(config)
    wanted = select_tasks(config.task, tasks, manifest.tasks)
    chosen = tuple(task for task in wanted if task.name in manifest.tasks)
    literal = [part.strip() for part in config.task.split(",")]
    absent = [task.name for task in wanted if task.name in literal and task.name not in manifest.tasks]
    if absent or not chosen:
        missing = ", ".join(absent) or config.task
        raise UserError(f"{missing} is not in {config.dataset_dir}; it has: {', '.join(manifest.tasks)}")
    check_model_fits(config.model, chosen, config.text_tokens)
    return chosen


def make_identity(config: TrainConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return everything that determines the result of a run, as JSON values."""
    free = {*FREE_TO_CHANGE, *(name for name, value in ADDED.items() if getattr(config, name) == value)}
    if config.sampling == "uniform":
        free |= {"sampling_every", "sampling_episodes"}
    if config.sampling == "adaptive-loss":
        free = free - {"validation_steps"} | {"sampling_episodes"}
    if config.objective != "filtered":
        free = {*free, "best_share"}
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in free}
    identity = {**settings, "task": [task.name for task in tasks], "dataset_digest": _manifest(config).digest}
    as_json: dict[str, Any] = json.loads(json.dumps(identity))
    as_json["model"].pop("returns", None)  # follows from the objective
    return as_json


def main() -> None:
    config = parse(TrainConfig, RECIPES)
    with reported("train", config.out, config.task, needs_disk=True):
        train(config)


if __name__ == "__main__":
    run("trainer.train")
