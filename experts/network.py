"""The network format of all learned experts: a specification, weights, and a policy with batched inference.

Experts of every training library (Sample Factory, Stable-Baselines3) are stored as a ``NetworkSpec`` and named arrays,
so acting does not need the training libraries, and stored files contain no executable code.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.spec import NetworkSpec as NetworkSpec
from experts.spec import dims
from pipeline.envs.policy import Observations
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.seeds import policy_generator

log = logging.getLogger(__name__)

# Batch size for images: larger ones are hardly faster per image, and a single image costs as much as a full batch.
IMAGE_ROWS = 8


def _tanh(x: Tensor) -> Tensor:
    """Tanh; for small float64 layers NumPy takes 4 us and torch 11. In place, to keep torch's memory alignment."""
    if x.dtype != torch.float64:
        return torch.tanh(x)
    np.tanh(x.numpy(), out=x.numpy())
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": _tanh,
    "relu": F.relu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,  # slope 0.01 below zero
    # Layer normalisation without parameters before the ReLU.
    "norm_relu": lambda x: F.relu(F.layer_norm(x, x.shape[-1:])),
}

# (output channels, kernel, stride) of Sample Factory's encoders of these names.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mlp": (),
    "convnet_atari": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    "convnet_simple": ((32, 8, 4), (64, 4, 2), (128, 3, 2)),
    "convnet_half": ((16, 8, 4), (32, 4, 2), (32, 3, 1)),
    "convnet_impala": ((16, 8, 4), (32, 4, 2)),
}

# Range of log standard deviations in SAC and its successors.
SQUASHED_LOG_STD = (-20.0, 2.0)


class PolicyNetwork(nn.Module):
    """Forward pass of a ``NetworkSpec``.

    Array names: ``mean``, ``var`` (if normalised), ``conv.<i>.weight|bias``, ``hidden.<i>.weight|bias``,
    ``head.weight|bias``, and ``log_std`` (``(action_size,)``, unless categorical or state-dependent).
    """

    mean: Tensor
    var: Tensor
    log_std: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self._activate = ACTIVATIONS[spec.activation]
        if spec.normalise:
            self.register_buffer("mean", torch.zeros(spec.observation_shape))
            self.register_buffer("var", torch.ones(spec.observation_shape))
        channels = spec.observation_shape[0]
        self.conv = nn.ModuleList()
        for out, kernel, stride in CONVOLUTIONS[spec.encoder]:
            self.conv.append(nn.Conv2d(channels, out, kernel, stride))
            channels = out
        with torch.no_grad():
            size = self._convolve(torch.zeros(1, *spec.observation_shape)).shape[1]
        sizes = (size, *spec.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        # Computed on first use, because the arrays are loaded later: offset and factor of the observations, and the
        # layers as plain tensors, because torch's calls of modules take as long as a small layer.
        self._linear: tuple[Tensor, Tensor] | None = None
        self._layers: tuple[tuple[Tensor, Tensor], ...] = ()
        outputs = spec.action_size * (2 if spec.state_dependent_std else 1)
        self.head = nn.Linear(sizes[-1], outputs)
        if spec.head != "categorical" and not spec.state_dependent_std:
            self.register_buffer("log_std", torch.zeros(spec.action_size))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``(n, *observation_shape)`` to ``(n, action_size)`` logits or means, and log standard deviations."""
        spec, activate = self.spec, self._activate
        if not self._layers:
            self._layers = tuple((layer.weight, layer.bias) for layer in (*self.hidden, self.head))
        x = self._convolve(self._scale(observations))
        *hidden, head = self._layers
        for weight, bias in hidden:
            x = activate(F.linear(x, weight, bias))
        out = F.linear(x, *head)
        if spec.head == "categorical":
            return out, None
        means, log_std = out.chunk(2, -1) if spec.state_dependent_std else (out, self.log_std.expand_as(out))
        if spec.head == "squashed":
            log_std = log_std.clamp(*SQUASHED_LOG_STD)
        if spec.tanh_scale > 0:
            means = torch.tanh(means / spec.tanh_scale) * spec.tanh_scale
        return means, log_std

    def _scale(self, observations: Tensor) -> Tensor:
        """Scale and normalise observations with a single multiply-add, then clip them."""
        spec, dtype = self.spec, self._layers[0][0].dtype
        if self._linear is None:
            std = torch.sqrt(self.var + spec.epsilon) if spec.normalise else torch.ones(spec.observation_shape)
            mean = self.mean if spec.normalise else torch.zeros(spec.observation_shape)
            factor = 1 / (spec.scale * std.double())
            self._linear = (-spec.subtract * factor - mean / std).to(dtype), factor.to(dtype)
        x = torch.addcmul(self._linear[0], observations.to(dtype), self._linear[1])
        return x.clamp_(-spec.clip, spec.clip) if spec.normalise else x

    def _convolve(self, x: Tensor) -> Tensor:
        for layer in self.conv:
            x = self._activate(layer(x))
        return x.flatten(1)


class _Rows:
    """Rows of random numbers, drawn in blocks to save calls; the values equal those of one draw per row."""

    BLOCK = 64

    def __init__(self, draw: Callable[[tuple[int, int]], np.ndarray], size: int) -> None:
        self._draw, self._size = draw, size
        self._block, self._next = np.empty((0, size)), 0

    def next(self) -> np.ndarray:
        if self._next == len(self._block):
            self._block, self._next = self._draw((self.BLOCK, self._size)), 0
        row: np.ndarray = self._block[self._next]
        self._next += 1
        return row


class NetworkPolicy:
    """Batched inference of a ``PolicyNetwork`` over the running slots.

    Actions are batch-invariant: bit for bit, an action does not depend on how many environments share the batch. Rows
    are computed in blocks of one fixed shape, with padding in the last one, so that the libraries use the same kernels
    for every row. When the policy is built, it checks on this CPU that a row's result depends neither on its position
    in the block nor on the other rows. If it does, the block size is 1. Vectors are computed in float64, convolutions
    in float32.

    Args:
        task: task it acts in; sizes are checked.
        spec: specification of the network.
        arrays: weights by name.
        origin: name of the source in messages.

    Raises:
        UserError: sizes differ from the task's, or arrays are missing, have another shape or are not finite.
    """

    def __init__(self, task: Task, spec: NetworkSpec, arrays: Mapping[str, Tensor], origin: str) -> None:
        spec.check_fits(task, origin)
        self._spec, self._hidden_goal = spec, task.hidden_goal
        self._network = build_network(spec, arrays, origin)
        self._is_image = len(spec.observation_shape) == 3
        if not self._network.conv:
            self._network.double()
        # The usual number of environments, so that padding is rare; larger blocks of images are not faster.
        self._new_block(min(task.lockstep, IMAGE_ROWS) if self._is_image else task.lockstep)
        if not self._is_steady():
            log.info("%s: a row's numbers depend on its place here, so rows are computed one by one", origin)
            self._new_block(1)
        self._noise: dict[int, _Rows] = {}
        self._goals: dict[int, np.ndarray] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed, env in zip(slots, seeds, envs, strict=True):
            if self._spec.sampled:
                generator = policy_generator(seed)
                draw: Any = generator.standard_normal
                if self._spec.head == "categorical":
                    draw = partial(generator.gumbel, 0, 1)
                self._noise[slot] = _Rows(draw, self._spec.action_size)
            if self._spec.sees_goal:
                assert self._hidden_goal is not None  # checked with the specification
                self._goals[slot] = self._hidden_goal(env)

    def act(self, slots: Sequence[int], observations: Observations) -> np.ndarray:
        values = observations.values
        if self._is_image:
            values = values.transpose(0, 3, 1, 2)
        if self._spec.one_hot:
            values = one_hot(values, self._spec.one_hot)
        if self._spec.sees_goal:
            values = values.copy()
            goals = np.array([self._goals[slot] for slot in slots])
            values[:, -goals.shape[1] :] = goals
        noise = np.array([self._noise[slot].next() for slot in slots]) if self._spec.sampled else None
        decided = self._decide(values, noise)
        return decided.argmax(axis=1) if self._spec.head == "categorical" else decided.astype(np.float32)

    def _new_block(self, rows: int) -> None:
        # Torch aligns memory to 64 bytes; results of its libraries may depend on the alignment.
        dtype = torch.uint8 if self._is_image else torch.float64
        self._block = torch.zeros((rows, *self._spec.observation_shape), dtype=dtype)

    def _decide(self, values: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Compute logits or actions ``(n, action_size)``, before rounding, for ``(n, *observation_shape)``."""
        rows = len(self._block)
        decided = np.empty((len(values), self._spec.action_size))
        for first in range(0, len(values), rows):
            count = min(rows, len(values) - first)
            self._block[:count] = torch.from_numpy(values[first : first + count])
            padded = None
            if noise is not None:
                padded = np.zeros((rows, self._spec.action_size))
                padded[:count] = noise[first : first + count]
            decided[first : first + count] = self._decide_block(padded)[:count]
        return decided

    def _decide_block(self, noise: np.ndarray | None) -> np.ndarray:
        """Compute logits or actions of the whole block."""
        with torch.inference_mode():
            out, log_std = self._network.forward(self._block)  # without torch's hooks
        decided: np.ndarray = out.numpy()
        if noise is not None:
            decided = decided + (noise if log_std is None else noise * np.exp(log_std.numpy()))
        if self._spec.head == "squashed":
            low, high = self._spec.action_low, self._spec.action_high
            decided = low + (np.tanh(decided) + 1) / 2 * (high - low)
        return decided

    def _is_steady(self) -> bool:
        """Whether a row's result is the same at every position of the block, with other rows and alone."""
        rows, generator = len(self._block), np.random.default_rng(0)
        shape = (rows, *self._spec.observation_shape)
        values = generator.integers(0, 256, shape, np.uint8) if self._is_image else generator.standard_normal(shape)
        noise = generator.standard_normal((rows, self._spec.action_size)) if self._spec.sampled else None
        expected = self._decide(values, noise)
        for shift in range(rows):
            shifted = None if noise is None else np.roll(noise, shift, 0)
            if not np.array_equal(self._decide(np.roll(values, shift, 0), shifted), np.roll(expected, shift, 0)):
                return False
            self._block.zero_()
            if not np.array_equal(
                self._decide(values[shift:][:1], None if noise is None else noise[shift:][:1]), expected[shift:][:1]
            ):
                return False
        return True


def one_hot(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Convert integers ``(n, len(sizes))`` to ones and zeros ``(n, sum(sizes))``.

    Raises:
        ValueError: an integer is not below its size.
    """
    if not ((values >= 0) & (values < np.asarray(sizes))).all():
        raise ValueError(f"integers {values.min(axis=0)} to {values.max(axis=0)} are not below {tuple(sizes)}")
    found = np.zeros((len(values), sum(sizes)), np.float32)
    starts = np.cumsum([0, *sizes[:-1]])
    np.put_along_axis(found, values + starts, 1.0, axis=1)
    return found


def build_network(spec: NetworkSpec, arrays: Mapping[str, Tensor], origin: str) -> PolicyNetwork:
    """Build the network with float32 weights, in evaluation mode.

    Raises:
        UserError: arrays are missing, unexpected, of another shape or not finite.
    """
    spec.check(origin)
    if spec.activation not in ACTIVATIONS or spec.encoder not in CONVOLUTIONS:
        raise UserError(
            f"{origin}: activation {spec.activation[:40]!r} or encoder {spec.encoder[:40]!r} is unknown; allowed: "
            f"{', '.join(ACTIVATIONS)}; {', '.join(CONVOLUTIONS)}"
        )
    with torch.device("meta"):  # allocate nothing until the arrays match the specification
        network = PolicyNetwork(spec)
    wanted = network.state_dict()
    wrong = sorted(wanted.keys() ^ arrays.keys())
    if wrong:
        raise UserError(f"{origin}: arrays {', '.join(wrong[:5])[:200]} are missing or too many for {spec}")
    for name, array in sorted(arrays.items()):
        if array.shape != wanted[name].shape:
            raise UserError(f"{origin}: {name} has shape {dims(array.shape)}, expected {dims(wanted[name].shape)}")
        if not torch.isfinite(array).all():
            raise UserError(f"{origin}: {name} holds values that are not finite; the file is damaged")
    # Copy, so that torch allocates aligned memory.
    network.load_state_dict({name: array.detach().float().clone() for name, array in arrays.items()}, assign=True)
    return network.requires_grad_(False).eval()
