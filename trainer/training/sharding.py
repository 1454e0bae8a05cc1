"""Sharding of a network over the workers with FSDP2: each holds a part of every parameter, its gradient and optimiser
state.

A block's parameters are gathered when it is used, forward and backward, and freed afterwards; all others (encoders,
decoders, embeddings) are gathered as one group for a whole pass. Every pass is therefore a fixed sequence of
collectives, so all workers must run equally many passes, whatever they compute: see ``idle_batches``. In bfloat16 a
pass also keeps the rounded copies of all weights it has used until its backward pass is done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainer.data.loader import SourceShare
from trainer.networks.model import Model
from trainer.training.group import Group

# A first dimension of this many times the number of workers is cut into parts that differ by less than a sixteenth.
EVEN_ENOUGH = 16


class Shards:
    """The additional work of a run with ``--shard``.

    Args:
        losses: the module that is called for every pass, forward and backward, and for validation. It is sharded in
            place, from the CPU to the group's device block by block, so that no device ever holds the whole network.
        model: the network in it. Parameters that a batch may leave unused must not be in its blocks.
        group: the workers, at least two.
    """

    def __init__(self, losses: nn.Module, model: Model, group: Group) -> None:
        assert is_initialized() and group.world_size > 1, "one worker has nobody to share with"
        self._model, self._group = model, group
        mesh = init_device_mesh(group.device.type, (group.world_size,))
        place = partial(_placement, world_size=group.world_size)
        # Parameters in blocks are always used, so they need no check.
        in_blocks = {id(p) for block in model.blocks for p in block.parameters()}
        self._optional = [name for name, p in model.named_parameters() if id(p) not in in_blocks]
        for block in model.blocks:
            fully_shard(block, mesh=mesh, shard_placement_fn=place)
        self._root = fully_shard(losses, mesh=mesh, shard_placement_fn=place)
        # Workers may process different tasks, which use different parameters.
        self._root.set_reduce_scatter_unused_params(True)
        self._watched: dict[str, Tensor] = {}
        self._used: set[str] = set()
        losses.register_forward_pre_hook(self._watch)

    def _watch(self, module: nn.Module, inputs: Any) -> None:
        """Track from now on which parameters get a gradient from this worker's batches; they are not sharded at this
        point."""
        if not torch.is_grad_enabled():
            return
        for name in self._optional:
            parameter = self._model.get_parameter(name)
            if self._watched.get(name) is not parameter:
                self._watched[name] = parameter
                parameter.register_hook(partial(self._note, name))

    def _note(self, name: str, gradient: Tensor) -> None:
        self._used.add(name)

    def drop_unused(self) -> None:
        """Remove the gradients (zeros) of parameters that no worker has used since the last call.

        The optimiser then skips these parameters, as it does for an unsharded network: no decay, no momentum.
        """
        used = self._group.max([float(name in self._used) for name in self._optional])
        for name, is_used in zip(self._optional, used, strict=True):
            if not is_used:
                self._model.get_parameter(name).grad = None
        self._used.clear()

    def let_go(self) -> None:
        """Free the parameters gathered by the last pass; FSDP does not free them after a pass without backward."""
        self._root.reshard()

    def weights(self) -> dict[str, Tensor]:
        """Return the whole network's parameters on the CPU of rank 0; all workers must call this."""
        return self._whole(self._model.state_dict().items())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimiser state of the whole network on rank 0; all workers must call this."""
        found = optimizer.state_dict()
        return {**found, "state": {index: self._whole(values.items()) for index, values in found["state"].items()}}

    def _whole(self, values: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gather one tensor at a time, since a device has no memory for all of them."""
        whole = {}
        for name, value in values:
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self._group.is_main_process:
                # Copy, because the gathered tensor of uneven parts has spare storage behind it that would be saved,
                # too.
                whole[name] = full.to("cpu", copy=True, memory_format=torch.contiguous_format)
        return whole

    @staticmethod
    def own_part(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this worker's part of the optimiser state of a whole network, as a copy that it can load."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]

        def part(value: Any, parameter: DTensor) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.shape != parameter.shape:
                return value.clone()  # the number of steps
            mesh, placements = parameter.device_mesh, parameter.placements
            cut = distribute_tensor(value, mesh, placements, src_data_rank=None)
            # Copy, or the view would keep the whole tensor allocated.
            return DTensor.from_local(
                cut.to_local().clone(), mesh, placements, run_check=False, shape=value.shape, stride=value.stride()
            )

        return {
            **state,
            "state": {
                index: {name: part(value, parameters[index]) for name, value in values.items()}
                for index, values in state["state"].items()
            },
        }


def idle_batches(group: Group, parts: Sequence[SourceShare], other: SourceShare | None = None) -> list[Any]:
    """Return the dummy batches that this worker must run, without counting them, to match the other workers' number of
    passes.

    All workers must call this together, before they compute.

    Args:
        group: the workers.
        parts: the batches that this worker computes itself.
        other: a batch to take a row from if ``parts`` is empty.
    """
    missing = int(group.max([len(parts)])[0]) - len(parts)
    if not missing:
        return []
    part = parts[-1] if parts else other
    assert part is not None
    return [_first_row(part.batch)] * missing


def _placement(parameter: nn.Parameter, world_size: int) -> Shard | None:
    """Choose the dimension to shard: the first, unless a later one gives more even parts."""
    first = parameter.shape[0]
    if first % world_size and first < EVEN_ENOUGH * world_size:
        for dimension, size in enumerate(parameter.shape):
            if size % world_size == 0:
                return Shard(dimension)
    return None


def _first_row(batch: Any) -> Any:
    tensors = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(
        batch, **{name: value[:1] for name, value in tensors.items() if isinstance(value, Tensor)}
    )
