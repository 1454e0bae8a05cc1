"""A few processes that form a group over gloo, without Ray."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

TIMEOUT_S = 120


def run_group(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(*arguments)``, of a module's top level, returns in each process, by rank."""
    with tempfile.TemporaryDirectory() as directory:
        multiprocessing.spawn(_run, (Path(directory), world_size, function, arguments), nprocs=world_size)
        return [torch.load(Path(directory, f"{rank}.pt"), weights_only=False) for rank in range(world_size)]


def _run(rank: int, directory: Path, world_size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    # A worker that waits for ever for another is a test that fails.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    try:
        torch.save(function(*arguments), directory / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
