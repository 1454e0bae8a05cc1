"""Machine code made for a network's blocks (torch.compile), in place of torch's kernels one after another.

Only the blocks, since all have the same code: it is compiled once, for any number and length of windows, and a second
time where blocks differ (JAT's global and local attention). Encoders and heads differ by task and would be compiled for
each. Validation and acting do without.
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

# Of one block's code: two kinds of blocks, times sizes of one, which torch always treats apart, times masks.
MOST_VARIANTS = 16


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where that cannot work, by compiling something small.

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
    # What the compiler says comes as either.
    except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.CppCompileError) as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"--compile: {compiler} does not work here ({last}); leave --compile out") from error
    log.info("%s works (%.0f s)", compiler, time.monotonic() - started)


def _small(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).sum()


def compile_blocks(model: Model) -> None:
    """Compile the forward and backward pass of the blocks at their first use; a variant too many is an error."""
    # Without this the network would silently be slow from there on.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    # Sizes that happen to be the same in the first batch are not in the next.
    torch.fx.experimental._config.use_duck_shape = False
    for block in model.blocks:
        # Not block.compile(), which would compile validation, too, at sizes of its own.
        setattr(block, "forward", _compile_with_gradients(block.forward))  # noqa: B010


def _compile_with_gradients(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    compiled = torch.compile(forward, dynamic=True)

    def choose(*inputs: torch.Tensor | None) -> torch.Tensor:
        return (compiled if torch.is_grad_enabled() else forward)(*inputs)

    return choose
