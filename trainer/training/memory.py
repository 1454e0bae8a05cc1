"""Memory use of a worker's network, and advice for out-of-memory errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.errors import UserError
from trainer.config import TrainConfig


def bytes_held(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the bytes of parameters, gradients and optimiser state in this process."""
    parameters = list(model.parameters())
    states = [value for p in parameters for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor)]
    return {
        "parameters": _bytes_of(parameters),
        "gradients": _bytes_of([p.grad for p in parameters if p.grad is not None]),
        "optimiser state": _bytes_of(states),
    }


def describe_bytes(held: Mapping[str, int]) -> str:
    return ", ".join(f"{number / 1e6:.1f} MB of {name}" for name, number in held.items())


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    """Sum the bytes by storage: a small view keeps the whole storage allocated."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


@contextlib.contextmanager
def explaining_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn an allocation failure, on a GPU or a CPU, into an error that names the settings to change.

    Raises:
        UserError: out of memory.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_explicit = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_explicit and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory ({str(error).splitlines()[0]}); lower --batch-steps ({config.batch_steps}) and raise "
            f"--micro-batches ({config.micro_batches}) by the same factor, which keeps what a step is made of; "
            f"else lower --context-steps ({config.context_steps}) or the size of the network"
            f"{'' if config.shard else ', or spread it over --workers with --shard'}"
        ) from error
