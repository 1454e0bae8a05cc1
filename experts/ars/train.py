"""Train an expert by augmented random search, on one core; resume from the last checkpoint if there is one.

A resumed training goes on as if it had not been interrupted: the checkpoint has the state of the random numbers.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from experts.ars.recipes import ARSRecipe, check, recipe_of, settings_of
from experts.ars.search import Search
from experts.spec import NetworkSpec
from experts.store import StoredExpert
from experts.training import CHECKPOINT_SECONDS, TrainingMonitor, TrainJob
from experts.training_record import SETTINGS, store_trained
from pipeline.errors import UserError
from pipeline.files import replacing, write_json
from pipeline.foreign import MIB, check_file

log = logging.getLogger(__name__)

KIND = "ars"
CHECKPOINT = "checkpoint.npz"
MAX_CHECKPOINT = 16 * MIB


def train(job: TrainJob, recipe: ARSRecipe | None = None, save_every_s: float = CHECKPOINT_SECONDS) -> StoredExpert:
    """Train until the budget is used up or the target is reached, and store the best policy.

    Raises:
        UserError: the checkpoint to resume is damaged or was made with other settings, or the budget ended before the
            first check.
        TrainingStoppedError: this process was asked to stop; a last checkpoint has been written.
    """
    recipe = recipe or recipe_of(job.task)
    check(job, recipe)
    search = _resume(job, recipe)
    if search.steps:
        log.info("%s %s: resuming from %s steps", job.task.name, job.algorithm, f"{search.steps:,}")
    else:
        write_json(job.folder / SETTINGS, settings_of(job, recipe))
    monitor = TrainingMonitor(job, job.budget(recipe.budget), search.steps)
    saved = time.monotonic()
    try:
        while not monitor.report(search.steps, search.mean_return):
            search.iterate()
            if time.monotonic() - saved >= save_every_s:
                _save(search, job.folder / CHECKPOINT)
                saved = time.monotonic()
        _save(search, job.folder / CHECKPOINT)
    finally:
        monitor.close()
    monitor.raise_if_stopped()
    stored = _store(job, recipe, search)
    job.remove_state()
    return stored


def export(job: TrainJob, recipe: ARSRecipe | None = None) -> StoredExpert:
    """Write the best policy of the last checkpoint to the store; the training may be running.

    Raises:
        UserError: there is no checkpoint yet, or no policy has been checked.
    """
    recipe = recipe or recipe_of(job.task)
    check(job, recipe)
    return _store(job, recipe, _resume(job, recipe))


def _save(search: Search, path: Path) -> None:
    """Write the checkpoint; it replaces the previous one atomically."""
    with replacing(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, allow_pickle=False, **search.state())


def _resume(job: TrainJob, recipe: ARSRecipe) -> Search:
    """Load the search from its last checkpoint, or make a new one."""
    search = Search(job.task, recipe, job.seed)
    path = job.folder / CHECKPOINT
    if path.exists():
        check_file(path, MAX_CHECKPOINT)
        try:
            with np.load(path, allow_pickle=False) as state:
                search.load_state(state)
        except Exception as error:  # a damaged file can raise anything; restarting silently from zero would be worse
            raise UserError(
                f"{path} is damaged ({type(error).__name__}); remove {path.parent} to start anew"
            ) from error
    return search


def _store(job: TrainJob, recipe: ARSRecipe, search: Search) -> StoredExpert:
    import torch

    if search.best is None:
        raise UserError(
            f"{job.folder} holds no policy whose return is known; the first check comes after "
            f"{recipe.check_steps:,} steps"
        )
    action, (weights, offset) = job.task.action, search.best
    spec = NetworkSpec(
        observation_shape=job.task.observation_shape,
        hidden=(),
        activation="tanh",
        head="gaussian",
        action_size=action.size,
        action_low=action.low,
        action_high=action.high,
    )
    arrays = {
        "head.weight": torch.from_numpy(weights),
        "head.bias": torch.from_numpy(offset),
        "log_std": torch.full((action.size,), float(np.log(recipe.noise))),
    }
    return store_trained(
        job,
        KIND,
        (spec, arrays),
        f"trained by augmented random search, {search.steps:,} steps",
        search.steps,
        {"recipe": recipe, "best_return": search.best_return},
        ("numpy",),
    )
