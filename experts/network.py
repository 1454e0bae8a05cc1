"""The one network every learned expert becomes: a plain description, weights, and a batched policy.

Whatever trained it (Sample Factory, Stable-Baselines3), an expert is stored as a ``NetworkSpec`` and named
arrays, so acting needs none of the training libraries, and nothing executable is ever read.
"""

from __future__ import annotations

import itertools
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
from pipeline.domains.metaworld import goal_of
from pipeline.errors import UserError
from pipeline.policy import Observations
from pipeline.seeds import policy_generator
from pipeline.tasks import Task


def _tanh(x: Tensor) -> Tensor:
    """Of small layers in float64 NumPy takes 4 microseconds where torch takes 11."""
    return torch.from_numpy(np.tanh(x.numpy())) if x.dtype == torch.float64 else torch.tanh(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": _tanh,
    "relu": F.relu,
    "elu": F.elu,
    # Layer normalisation without parameters before the ReLU.
    "norm_relu": lambda x: F.relu(F.layer_norm(x, x.shape[-1:])),
}

# (output channels, kernel, stride) of the encoders Sample Factory calls by these names.
CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "mlp": (),
    "convnet_atari": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),
    "convnet_simple": ((32, 8, 4), (64, 4, 2), (128, 3, 2)),
    "convnet_half": ((16, 8, 4), (32, 4, 2), (32, 3, 1)),
    "convnet_impala": ((16, 8, 4), (32, 4, 2)),
}

# SAC and what came after it keep log standard deviations between these.
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
        # Offset and factor of the observations, which follow from arrays that are loaded later.
        self._linear: tuple[Tensor, Tensor] | None = None
        outputs = spec.action_size * (2 if spec.state_dependent_std else 1)
        self.head = nn.Linear(sizes[-1], outputs)
        if spec.head != "categorical" and not spec.state_dependent_std:
            self.register_buffer("log_std", torch.zeros(spec.action_size))

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(n, *observation_shape)`` to ``(n, action_size)`` logits or means, and log standard deviations."""
        spec = self.spec
        x = self._convolve(self._scale(observations))
        for layer in self.hidden:
            x = self._activate(layer(x))
        out = self.head(x)
        if spec.head == "categorical":
            return out, None
        means, log_std = out.chunk(2, -1) if spec.state_dependent_std else (out, self.log_std.expand_as(out))
        if spec.head == "squashed":
            log_std = log_std.clamp(*SQUASHED_LOG_STD)
        if spec.tanh_scale > 0:
            means = torch.tanh(means / spec.tanh_scale) * spec.tanh_scale
        return means, log_std

    def _scale(self, observations: Tensor) -> Tensor:
        """What the first layer sees, in one pass over the observations before they are clipped."""
        spec, dtype = self.spec, self.head.weight.dtype
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
    """Rows of random numbers, drawn many at a time because each draw has a price; the same as one after another."""

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

    Vector observations are computed in float64 and rounded once, so that an action does not depend on how many
    environments share the batch. Convolutions run in float32.

    Args:
        task: where it acts; sizes are checked.
        spec: what the network computes.
        arrays: its weights by name.
        origin: where they come from, for messages.

    Raises:
        UserError: sizes that are not the task's, or arrays that are missing, of another shape or not finite.
    """

    def __init__(self, task: Task, spec: NetworkSpec, arrays: Mapping[str, Tensor], origin: str) -> None:
        spec.check_fits(task, origin)
        self._spec = spec
        self._network = build_network(spec, arrays, origin)
        if not self._network.conv:
            self._network.double()
        self._is_image = len(spec.observation_shape) == 3
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
                self._goals[slot] = goal_of(env)

    def act(self, slots: Sequence[int], observations: Observations) -> np.ndarray:
        values = observations.values
        if self._is_image:
            values = values.transpose(0, 3, 1, 2)
        if self._spec.sees_goal:
            values = values.copy()
            values[:, -3:] = [self._goals[slot] for slot in slots]
        with torch.inference_mode():
            out, log_std = self._network(torch.as_tensor(np.ascontiguousarray(values)))
        if log_std is None:
            logits = out.numpy()
            if self._spec.sampled:
                logits = logits + np.array([self._noise[slot].next() for slot in slots])
            return logits.argmax(axis=1)
        actions = out.numpy()
        if self._spec.sampled:
            noise = np.array([self._noise[slot].next() for slot in slots])
            actions = actions + noise * np.exp(log_std.numpy())
        if self._spec.head == "squashed":
            low, high = self._spec.action_low, self._spec.action_high
            actions = low + (np.tanh(actions) + 1) / 2 * (high - low)
        return actions.astype(np.float32)


def build_network(spec: NetworkSpec, arrays: Mapping[str, Tensor], origin: str) -> PolicyNetwork:
    """The network with its weights in float32, ready to act.

    Raises:
        UserError: arrays that are missing, left over, of another shape or not finite.
    """
    network = PolicyNetwork(spec)
    wanted = network.state_dict()
    wrong = sorted(wanted.keys() ^ arrays.keys())
    if wrong:
        raise UserError(f"{origin}: arrays {', '.join(wrong)} are missing or too many for {spec}")
    for name, array in arrays.items():
        if array.shape != wanted[name].shape:
            raise UserError(f"{origin}: {name} has shape {dims(array.shape)}, expected {dims(wanted[name].shape)}")
        if not torch.isfinite(array).all():
            raise UserError(f"{origin}: {name} holds values that are not finite; the file is damaged")
    network.load_state_dict({name: array.float() for name, array in arrays.items()})
    return network.requires_grad_(False).eval()
