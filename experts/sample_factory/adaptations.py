"""Patch Sample Factory 2.1.1 so that it runs with numpy 2, gymnasium 1, and torch 2.6 and later.

Sample Factory pins numpy < 2, gymnasium < 1 and huggingface_hub < 1. Its training code needs few changes for newer
versions. Its Atari example (renamed gymnasium wrappers) and its uploads (``huggingface_hub.Repository``) are not used
here. The other patches fix bugs that would silently break a long training.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Sequence
from typing import Any

from experts.sample_factory.checkpoint import numpy_scalars


@functools.cache
def apply() -> None:
    """Patch Sample Factory in this process; idempotent.

    Call this at the top of the main module, which every process spawned by Sample Factory imports again.
    """
    _unwrap_single_numbers()
    _load_checkpoints_or_fail()
    _go_on_with_the_learning_rate()
    _fail_when_the_environment_fails()
    _end_processes_that_fail()


def speed_up() -> None:
    """Compute convolutional encoders in bfloat16 if the CPU has instructions for it: up to twice the speed.

    Heads, values and checkpoints stay in float32. Use this for training only, not for comparisons with Sample Factory.
    """
    import torch
    from sample_factory.model.encoder import ConvEncoder

    from experts.bfloat16 import is_fast

    original = ConvEncoder.forward

    def forward(self: Any, observations: torch.Tensor) -> Any:
        # Also for small batches: old and new policy must round the same way, or the initial ratio differs from 1.
        if not is_fast(observations.device):
            return original(self, observations)
        with torch.autocast("cpu", torch.bfloat16):
            return original(self, observations).float()

    ConvEncoder.forward = forward


def _unwrap_single_numbers() -> None:
    """Unwrap arrays with one element: numpy 2.4 raises when they are assigned to a scalar."""
    import numpy as np
    from sample_factory.algo.utils.tensor_dict import TensorDict

    original = TensorDict._set_data_func

    def set_data(self: Any, x: Any, index: Any, new_data: Any) -> None:
        if isinstance(x, np.ndarray) and not isinstance(new_data, dict) and np.ndim(x[index]) == 0:
            x[index] = new_data.item()
        else:
            original(self, x, index, new_data)

    TensorDict._set_data_func = set_data


def _load_checkpoints_or_fail() -> None:
    """Make checkpoints loadable with torch 2.6, and raise if one cannot be loaded.

    By default torch 2.6 loads weights only and rejects the numpy scalar in these checkpoints. Sample Factory would then
    log the error and start from scratch. This patch allows the scalar and does not catch errors.
    """
    import torch
    from sample_factory.algo.learning.learner import Learner

    torch.serialization.add_safe_globals(numpy_scalars())

    def load_checkpoint(checkpoints: Sequence[str], device: Any) -> Any:
        return torch.load(checkpoints[-1], map_location=device, weights_only=True) if checkpoints else None

    Learner.load_checkpoint = staticmethod(load_checkpoint)


def _go_on_with_the_learning_rate() -> None:
    """Resume the linear decay of the learning rate; it would restart from its highest value otherwise."""
    from sample_factory.algo.learning.learner import Learner, LinearDecayScheduler

    original = Learner.init

    def init(self: Any) -> Any:
        result = original(self)
        if isinstance(self.lr_scheduler, LinearDecayScheduler):
            self.lr_scheduler.step = self.train_step
        return result

    Learner.init = init


def _fail_when_the_environment_fails() -> None:
    """Inspect the environment in this process; Sample Factory uses another one and waits forever if that dies."""
    import sample_factory.algo.runners.runner as runner
    from sample_factory.algo.utils.env_info import extract_env_info
    from sample_factory.algo.utils.make_env import make_env_func_batched

    def env_info(cfg: Any) -> Any:
        env = make_env_func_batched(cfg, env_config=None)
        try:
            return extract_env_info(env, cfg)
        finally:
            env.close()

    runner.obtain_env_info_in_a_separate_process = env_info


def _end_processes_that_fail() -> None:
    """End a process that fails: a failed learner's batching thread would keep it alive, and the others would wait."""
    from signal_slot.signal_slot import EventLoopProcess

    original = EventLoopProcess._target

    @functools.wraps(original)  # it is pickled by name
    def target(self: Any) -> None:
        failed = True
        try:
            original(self)
            failed = False
        finally:
            if failed:
                traceback.print_exc()
                os._exit(1)

    EventLoopProcess._target = target
