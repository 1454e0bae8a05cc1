"""What a worker adds up over an optimiser step, and what all workers' sums say."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trainer.data.loader import MicroBatch
from trainer.data.sources import TrainingSource
from trainer.training.group import Group


@dataclass(frozen=True)
class StepSums:
    """An optimiser step over all workers: summed loss of the micro-batches, time steps, and columns of the log."""

    loss: float
    num_steps: int
    padded_steps: int
    by_domain: dict[str, float]


@dataclass
class StepTotals:
    """Totals of one worker over an optimiser step; losses stay on the device until its end."""

    micro_batches: list[MicroBatch] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    action_losses: list[torch.Tensor] = field(default_factory=list)
    num_steps: int = 0
    padded_steps: int = 0

    def sum_up(self, group: Group, sources: Sequence[TrainingSource]) -> StepSums:
        """Add up all workers' totals; the losses by domain are averaged over the micro-batches."""
        domains = sorted({source.domain for source in sources})
        sums: dict[str, float] = defaultdict(float)
        values = torch.stack([*self.losses, *self.action_losses]).tolist()
        for micro_batch, action_loss in zip(self.micro_batches, values[len(self.losses) :], strict=True):
            domain = sources[micro_batch.source].domain
            sums[domain] += action_loss
            sums[f"{domain} count"] += 1
        own = [sum(values[: len(self.losses)]), self.num_steps, self.padded_steps]
        own += [sums[name] for domain in domains for name in (domain, f"{domain} count")]
        loss, num_steps, padded_steps, *rest = group.sum(own)
        pairs = zip(domains, rest[::2], rest[1::2], strict=True)
        by_domain = {f"action_loss/{domain}": total / count for domain, total, count in pairs if count}
        return StepSums(loss, int(num_steps), int(padded_steps), by_domain)

    def not_finite(self, group: Group, sources: Sequence[TrainingSource]) -> str:
        """Describe the batches of all workers whose loss is not finite; empty if all are finite."""
        own = [
            sources[m.source].batches.describe(m.index)
            for m, loss in zip(self.micro_batches, self.losses, strict=True)
            if not math.isfinite(loss.item())
        ]
        return "; ".join(text for texts in group.gather(own) for text in texts)
