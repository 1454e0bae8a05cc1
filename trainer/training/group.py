"""The workers of one training: the rank of this process and the collectives between workers.

A process that was not started as one of several is a group of one, and nothing is communicated. Several processes are
started by ``pipeline/runtime/train_group.py``, or by any launcher that sets up ``torch.distributed`` and
``LOCAL_RANK``, such as torchrun.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.batch import Losses
from trainer.networks.model import Model


@dataclass(frozen=True)
class Group:
    """This process among ``world_size`` workers, ``local_size`` of them on this machine, and its compute device."""

    rank: int
    world_size: int
    local_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this process has rank 0, which writes files for all workers."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum values elementwise over all workers; each worker must pass the same number of values."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, values: Sequence[float]) -> list[float]:
        """Return the elementwise maximum over all workers; each worker must pass the same number of values."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, ordered by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def share_gradients(self, module: nn.Module) -> nn.Module:
        """Wrap the module so that a backward pass leaves every worker with the mean of all workers' gradients.

        A pass need not use all parameters: a task uses one of several encoders, and workers may process different
        tasks.
        """
        if self.world_size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def sharing(self, module: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Context of one of several passes that accumulate gradients: the last pass shares the accumulated
        gradients."""
        if is_last or not isinstance(module, DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()


class LossModule(nn.Module):
    """Wraps a model's losses as a ``forward``, which gradient sharing requires."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses: Losses = self.model.losses(batch)
        return losses.total, losses.action.detach()


def current_group() -> Group:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        return Group(0, 1, 1, device)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(dist.get_world_size())))
    return Group(dist.get_rank(), dist.get_world_size(), local_size, device)
