"""Policy and value network over blocks of pixels, and the expert it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.network import CONVOLUTIONS
from experts.ppo_cpu.games import BLOCK, CHANNELS, GRID
from experts.ppo_cpu.recipes import Recipe
from experts.spec import NetworkSpec
from pipeline.domains.atari import STACK_SIZE
from pipeline.tasks import Task

MAX_PIXEL = 255.0


class ActorCritic(nn.Module):
    """Convolutions, one hidden layer, and linear heads for logits and value.

    The first convolution of the recipe's encoder must have kernel 8 and stride 4: it runs as kernel 2 and stride 1 on
    blocks of 4 x 4 pixels (``games.py``), which is the same function.

    Args:
        recipe: widths.
        num_actions: size of the action set.
    """

    def __init__(self, recipe: Recipe, num_actions: int) -> None:
        super().__init__()
        (width, kernel, stride), *others = CONVOLUTIONS[recipe.encoder]
        if (kernel, stride) != (2 * BLOCK, BLOCK):
            raise ValueError(f"{recipe.encoder} begins with kernel {kernel}, stride {stride}; expected 8 and 4")
        self._recipe = recipe
        self.first = nn.Conv2d(CHANNELS, width, 2)
        self.others = nn.ModuleList()
        side = GRID - 1
        for out, kernel, stride in others:
            self.others.append(nn.Conv2d(width, out, kernel, stride))
            width, side = out, (side - kernel) // stride + 1
        self.hidden = nn.Linear(width * side * side, recipe.hidden)
        self.policy, self.value = nn.Linear(recipe.hidden, num_actions), nn.Linear(recipe.hidden, 1)
        for layer in (self.first, *self.others, self.hidden):
            _initialise(layer, gain=2**0.5)
        _initialise(self.policy, gain=0.01)
        _initialise(self.value, gain=1.0)
        cast(Any, self).to(memory_format=torch.channels_last)  # not in the signatures of torch

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, GRID, GRID, CHANNELS)`` uint8 -> ``(n, num_actions)`` logits and ``(n,)`` values, both float32."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        x = observations.permute(0, 3, 1, 2).to(dtype)  # channels last in memory, as it came
        # Pixels are scaled through the weights, of which there are fewer.
        x = F.relu(F.conv2d(x, self.first.weight * (1 / MAX_PIXEL), self.first.bias))
        for layer in self.others:
            x = F.relu(layer(x))
        x = F.relu(self.hidden(x.flatten(1)))
        return self.policy(x).float(), self.value(x).float().squeeze(1)

    def export(self, task: Task) -> tuple[NetworkSpec, dict[str, Tensor]]:
        """The policy as the store takes it; it acts on 84 x 84 frames and samples its actions."""
        spec = NetworkSpec(
            observation_shape=(STACK_SIZE, GRID * BLOCK, GRID * BLOCK),
            hidden=(self._recipe.hidden,),
            activation="relu",
            head="categorical",
            action_size=task.action.size,
            encoder=self._recipe.encoder,
            scale=MAX_PIXEL,
            sampled=True,
        )
        arrays = {
            f"conv.{i}.{name}": value
            for i, layer in enumerate((self.first, *self.others))
            for name, value in _arrays(layer)
        }
        arrays["conv.0.weight"] = from_block_weights(arrays["conv.0.weight"])
        arrays |= {f"hidden.0.{name}": value for name, value in _arrays(self.hidden)}
        arrays |= {f"head.{name}": value for name, value in _arrays(self.policy)}
        return spec, arrays


def from_block_weights(weight: Tensor) -> Tensor:
    """``(out, CHANNELS, 2, 2)`` over blocks -> ``(out, STACK_SIZE, 8, 8)`` over pixels."""
    out = weight.shape[0]
    parts = weight.reshape(out, STACK_SIZE, BLOCK, BLOCK, 2, 2)  # frame, y and x in the block, y and x of the block
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(out, STACK_SIZE, 2 * BLOCK, 2 * BLOCK).contiguous()


def _arrays(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return (
        (name, value.detach().clone(memory_format=torch.contiguous_format)) for name, value in layer.named_parameters()
    )


def _initialise(layer: nn.Module, gain: float) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
