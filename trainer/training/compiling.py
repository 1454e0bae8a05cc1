"""Compiles a network's blocks with torch.compile.

Only the blocks are compiled, since they share one code: it is compiled once for any number and length of windows, and a
second time where blocks differ (JAT's global and local attention). Encoders and heads differ by task and would each
need a compilation. Validation and acting are not compiled.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable

import torch

from pipeline.errors import UserError
from trainer.networks.model import Model

log = logging.getLogger(__name__)

# Compiled variants of one block's code: two kinds of blocks, times sizes of 1, which torch always specialises, times
# masks.
MOST_VARIANTS = 16


def check_compiler(device: torch.device) -> None:
    """Fail early if torch.compile does not work, by compiling a small function.

    Raises:
        UserError: no C++ compiler, or one that does not work.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"--compile needs a C++ compiler, and there is no {compiler}: install one (Debian: apt-get install g++), "
            f"name one in CXX, or leave --compile out"
        )
    log.info("compiling the network's blocks, which takes about a minute before the first step")
    started = time.monotonic()
    try:
        torch.compile(_small)(torch.ones(8, device=device))
    # Compiler errors are raised as either type.
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.CppCompileError) as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"--compile: {compiler} does not work here ({last}); leave --compile out") from error
    log.info("%s works (%.0f s)", compiler, time.monotonic() - started)


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).sum()


def compile_blocks(model: Model) -> None:
    """Compile the forward and backward pass of the blocks at their first use; exceeding the recompile limit is an
    error."""
    # Without this, torch would silently fall back to uncompiled code at the limit.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    # Sizes that are equal in the first batch by chance may differ in the next.
    torch.fx.experimental._config.use_duck_shape = False
    for block in model.blocks:
        # Not block.compile(), which would also compile validation, with its own sizes.
        setattr(block, "forward", _compile_with_gradients(block.forward))  # noqa: B010


def _compile_with_gradients(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    compiled = torch.compile(forward, dynamic=True)

    def choose(*inputs: torch.Tensor | None) -> torch.Tensor:
        return (compiled if torch.is_grad_enabled() else forward)(*inputs)

    return choose
