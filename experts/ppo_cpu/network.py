"""Policy and value network over blocks of pixels, and its export as an expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experts.network import CONVOLUTIONS
from experts.ppo_cpu.games import BLOCK, CHANNELS, GRID
from experts.ppo_cpu.recipes import PPORecipe
from experts.spec import NetworkSpec
from pipeline.envs.atari_game import STACK_SIZE
from pipeline.envs.task import Task

MAX_PIXEL = 255.0
# Normalisation of pixels: term added to the variance, and clipping limit.
EPSILON, CLIP = 1e-5, 5.0


class RunningMoments(nn.Module):
    """Mean and variance of all rows seen, elementwise (Chan's parallel algorithm)."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, rows: Tensor) -> None:
        """Add ``(n, *shape)`` float32 rows."""
        var, mean = torch.var_mean(rows, 0, correction=0)
        total = self.count + len(rows)
        share = (len(rows) / total).float()
        difference = mean - self.mean
        self.var += share * (var - self.var + (1 - share) * difference.square())
        self.mean += share * difference
        self.count.copy_(total)


class ActorCritic(nn.Module):
    """Convolutions, one hidden layer, and linear heads for logits and value.

    Each pixel is normalised with its own moments, which emphasises moving objects. Values are normalised by the mean
    and standard deviation of the returns.

    The first convolution of the recipe's encoder must have kernel 8 and stride 4: it is computed with kernel 2 and
    stride 1 on blocks of 4 x 4 pixels (``games.py``), which is the same function.

    Args:
        recipe: defines the encoder and the widths.
        num_actions: number of discrete actions.
    """

    def __init__(self, recipe: PPORecipe, num_actions: int) -> None:
        super().__init__()
        (width, kernel, stride), *others = CONVOLUTIONS[recipe.encoder]
        if (kernel, stride) != (2 * BLOCK, BLOCK):
            raise ValueError(f"{recipe.encoder} begins with kernel {kernel}, stride {stride}; expected 8 and 4")
        self._recipe = recipe
        self.pixels = RunningMoments(GRID, GRID, CHANNELS)
        self.returns = RunningMoments()
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
        cast(Any, self).to(memory_format=torch.channels_last)  # missing in torch's type hints

    def normalise(self, observations: Tensor) -> Tensor:
        """Normalise ``(n, GRID, GRID, CHANNELS)`` uint8 to the input of ``forward``, float32 of the same shape."""
        factor = torch.rsqrt(self.pixels.var + EPSILON)
        x = torch.addcmul(-self.pixels.mean * factor, observations.float(), factor / MAX_PIXEL)
        return x.clamp_(-CLIP, CLIP)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised ``(n, GRID, GRID, CHANNELS)`` to ``(n, num_actions)`` logits and ``(n,)`` scaled values."""
        x = F.relu(self.first(observations.permute(0, 3, 1, 2)))  # the memory format stays channels last
        for layer in self.others:
            x = F.relu(layer(x))
        x = F.relu(self.hidden(x.flatten(1)))
        return self.policy(x).float(), self.value(x).float().squeeze(1)

    def export(self, task: Task) -> tuple[NetworkSpec, dict[str, Tensor]]:
        """Convert the policy to the store's format; it acts on 84 x 84 frames and samples its actions.

        Weights are rounded to float16, which halves the file size. Moments stay in float32: for a pixel that hardly
        varies, a rounding error of its mean would be as large as its variation.
        """
        spec = NetworkSpec(
            observation_shape=(STACK_SIZE, GRID * BLOCK, GRID * BLOCK),
            hidden=(self._recipe.hidden,),
            activation="relu",
            head="categorical",
            action_size=task.action.size,
            encoder=self._recipe.encoder,
            normalise=True,
            epsilon=EPSILON,
            clip=CLIP,
            scale=MAX_PIXEL,
            sampled=True,
        )
        convolutions = enumerate((self.first, *self.others))
        arrays = {f"conv.{i}.{name}": value for i, layer in convolutions for name, value in _arrays(layer)}
        arrays["conv.0.weight"] = from_blocks(arrays["conv.0.weight"])
        for name in ("mean", "var"):
            moments = getattr(self.pixels, name).permute(2, 0, 1).unsqueeze(0)
            arrays[name] = from_blocks(moments).squeeze(0)
        arrays |= {f"hidden.0.{name}": value for name, value in _arrays(self.hidden)}
        arrays |= {f"head.{name}": value for name, value in _arrays(self.policy)}
        return spec, arrays


def from_blocks(blocks: Tensor) -> Tensor:
    """Reshape ``(n, CHANNELS, height, width)`` of blocks to ``(n, STACK_SIZE, 4 * height, 4 * width)`` of pixels."""
    num, _, height, width = blocks.shape
    # Axes: frame, y and x in the block, y and x of the block.
    parts = blocks.reshape(num, STACK_SIZE, BLOCK, BLOCK, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(num, STACK_SIZE, BLOCK * height, BLOCK * width).contiguous()


def _arrays(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in layer.named_parameters():
        yield name, value.detach().half().contiguous()


def _initialise(layer: nn.Module, gain: float) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
