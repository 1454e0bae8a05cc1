"""Draws tasks by need and progress: what adaptive sampling knows, and the share of the draws that follows from it.

The need of a task is 1 where nothing is learned and 0 where nothing is left to learn; who measures it is no matter
here. A task gets draws in proportion to its need times its progress, which is how fast its need falls. ``FLOOR`` is
added to the progress, so a task that stands still keeps some, and ``UNIFORM`` of all draws stays as without adaptation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.seeds import seed_range
from trainer.config import TrainConfig

UNIFORM = 0.25  # of the draws, by sampling weight alone
FLOOR = 0.1  # progress that every task is given
SMOOTHING = 0.7  # weight of the newest measurement, of need and of progress


def check_sampling(config: TrainConfig, tasks: Sequence[Task], num_corpora: int) -> None:
    """Refuse adaptive sampling that has nothing to choose from or nothing to go by.

    Raises:
        UserError: one task only, no held-out losses, or too few seeds for the episodes.
    """
    if config.sampling == "uniform":
        return
    if len(tasks) < 2:
        also = " beside corpora, which keep their share" if num_corpora else ""
        raise UserError(f"--sampling {config.sampling} chooses between tasks, and there is one{also}: {tasks[0].name}")
    if config.sampling == "adaptive-loss" and not config.validation_steps:
        raise UserError("--sampling adaptive-loss goes by the validation loss; --validation-steps is 0, raise it")
    num_seeds = len(seed_range("sampling"))
    num_updates = 1 if config.seconds is not None else max(1, config.steps // config.sampling_every)
    if config.sampling == "adaptive" and num_updates * config.sampling_episodes > num_seeds:
        raise UserError(
            f"--sampling-episodes {config.sampling_episodes} in {num_updates:,} measurements are more than the "
            f"{num_seeds:,} seeds set aside for them; lower it, or raise --sampling-every ({config.sampling_every})"
        )


@dataclass(frozen=True)
class SamplingState:
    """Adaptive sampling after its last update; a checkpoint has it. Lists have a value per source of the training.

    Attributes:
        step: optimiser step of the update.
        updates: number of updates so far.
        drawn: batches drawn before the update.
        shares: of the draws since the update; they sum to 1.
        needs: smoothed, from 0 to 1; None if never measured, such as that of a corpus.
        progress: smoothed decrease of the need between updates, at least 0.
        first: the first measurement; a held-out loss only says something beside it.
        seconds: spent on measuring so far.
    """

    step: int
    updates: int
    drawn: list[int]
    shares: list[float]
    needs: list[float | None]
    progress: list[float]
    first: list[float | None] = field(default_factory=list)
    seconds: float = 0.0


def updated(
    before: SamplingState | None,
    measured: Sequence[float | None],
    base: np.ndarray,
    step: int,
    drawn: Sequence[int],
    seconds: float,
    first: Sequence[float | None] = (),
) -> SamplingState:
    """Return the state after a measurement.

    Args:
        before: the state so far; None at the first measurement. If that is not at step 0, needs were 1 before it.
        measured: need of each source, from 0 to 1; None if it could not be measured.
        base: ``(sources,)`` shares by sampling weight alone; they sum to 1.
        step: optimiser steps done.
        drawn: batches drawn of each source so far.
        seconds: what this measurement took.
        first: as in ``SamplingState``.
    """
    old_needs = before.needs if before else [1.0 if step and now is not None else None for now in measured]
    old_progress = before.progress if before else [0.0] * len(measured)
    needs: list[float | None] = []
    progress: list[float] = []
    for now, old, gain in zip(measured, old_needs, old_progress, strict=True):
        need = old if now is None else now if old is None else old + SMOOTHING * (now - old)
        fell = max(0.0, old - need) if old is not None and need is not None else 0.0
        needs.append(need)
        progress.append(gain + SMOOTHING * (fell - gain))
    return SamplingState(
        step=step,
        updates=before.updates + 1 if before else 1,
        drawn=list(drawn),
        shares=shares_of(needs, progress, base).tolist(),
        needs=needs,
        progress=progress,
        first=list(first),
        seconds=seconds + (before.seconds if before else 0.0),
    )


def shares_of(needs: Sequence[float | None], progress: Sequence[float], base: np.ndarray) -> np.ndarray:
    """Return each source's share of the draws ``(sources,)``; those whose need is unknown keep their base share."""
    known = np.array([need is not None for need in needs])
    priority = base * np.array([need or 0.0 for need in needs]) * (FLOOR + np.array(progress))
    if not priority.sum() > 0:  # nothing is known, or nothing is left to learn
        return base
    wanted: np.ndarray = np.where(known, priority / priority.sum() * base[known].sum(), base)
    return UNIFORM * base + (1 - UNIFORM) * wanted
