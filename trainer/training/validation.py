"""The losses on a small fixed part of the test split, measured at every checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.data.sources import TrainingData, sampling_shares
from trainer.training.group import Group
from trainer.training.sharding import Shards, idle_batches


def validation_loss(
    data: TrainingData, group: Group, loss_of: Callable[[Any], torch.Tensor], shards: Shards | None
) -> float | None:
    """Return the training objective averaged over all workers; None if the run has no validation.

    Args:
        data: the sources, which the workers share.
        group: the workers; all must call this.
        loss_of: computes the total loss of a batch, in evaluation mode.
        shards: set if the network is sharded over the workers.
    """
    total = weight = 0.0
    found = losses_by_source(data, group, loss_of, shards)
    for source, share, loss in zip(data.sources, sampling_shares(data.sources), found, strict=True):
        if loss is not None:
            total += share * source.loss_weight * loss
            weight += share
    return total / weight if weight else None


@torch.no_grad()
def losses_by_source(
    data: TrainingData, group: Group, loss_of: Callable[[Any], torch.Tensor], shards: Shards | None
) -> list[float | None]:
    """Return the mean loss of each source, without its weight; None for a source without validation. See
    ``validation_loss``."""
    measured = [(i, source.validation) for i, source in enumerate(data.sources) if source.validation is not None]
    found: list[float | None] = [None] * len(data.sources)
    if not measured:
        return found
    own = measured[group.rank :: group.world_size]
    idle: list[Any] = []
    if shards:
        parts = [part for _, micro_batch in own for part in micro_batch.parts]
        idle = idle_batches(group, parts, other=measured[0][1].parts[0])
    means = [0.0] * len(data.sources)
    for index, micro_batch in own:
        losses = [loss_of(part.batch).item() for part in micro_batch.parts]
        total = sum(loss * part.num_steps for loss, part in zip(losses, micro_batch.parts, strict=True))
        means[index] = total / micro_batch.num_steps
    for batch in idle:
        loss_of(batch)
    if shards:
        shards.let_go()
    means = group.sum(means)
    for index, _ in measured:
        found[index] = means[index]
    return found
