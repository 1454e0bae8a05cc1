"""The validation loss on a small fixed part of the test split, measured at every checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainer.data.sources import TrainingData, sampling_shares
from trainer.training.group import Group
from trainer.training.sharding import Shards, idle_batches


@torch.no_grad()
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
    measured = [
        (source, source.validation, share)
        for source, share in zip(data.sources, sampling_shares(data.sources), strict=True)
        if source.validation is not None
    ]
    if not measured:
        return None
    own = measured[group.rank :: group.world_size]
    idle: list[Any] = []
    if shards:
        parts = [part for _, micro_batch, _ in own for part in micro_batch.parts]
        idle = idle_batches(group, parts, other=measured[0][1].parts[0])
    total = weight = 0.0
    for source, micro_batch, share in own:
        losses = [loss_of(part.batch).item() for part in micro_batch.parts]
        mean = sum(loss * part.num_steps for loss, part in zip(losses, micro_batch.parts, strict=True))
        total += share * source.loss_weight * mean / micro_batch.num_steps
        weight += share
    for batch in idle:
        loss_of(batch)
    if shards:
        shards.let_go()
    total, weight = group.sum([total, weight])
    return total / weight
