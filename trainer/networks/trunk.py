"""The trunk of the base model: pre-norm blocks, rotary positions, causal attention over a window of steps.

Every position attends to itself and the ``window - 1`` positions before it, in training and in acting. Only position
differences matter, so an episode of any length needs a KV cache of only ``window`` entries per layer, at a constant
cost per step, and the result equals that of processing the whole episode at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import BaseModelConfig
from trainer.networks.attention import attend, attend_back
from trainer.networks.gpt_neo import rows_of

ROTARY_BASE = 10_000.0


class Attention(nn.Module):
    """Causal attention over a window, scaled by the square root of the head size."""

    def __init__(self, config: BaseModelConfig, window: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.window = config.num_heads, window
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries and keys, and values: ``(n, heads, k, head)`` each."""
        n, k, size = x.shape
        query_key_value = self.qkv(x).view(n, k, 3, self.num_heads, size // self.num_heads).permute(2, 0, 3, 1, 4)
        query_key, value = query_key_value[:2], query_key_value[2]
        query_key = rotate(query_key, positions).to(value.dtype)
        return query_key[0], query_key[1], value

    def forward(self, x: Tensor) -> Tensor:
        """``(B, P, hidden)`` -> the same shape."""
        query, key, value = self._project(x, torch.arange(x.shape[1], device=x.device))
        return self.out(attend_back(query, key, value, self.window, query.shape[3] ** -0.5))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Process one new position ``(n, 1, hidden)`` per slot; ``cache`` ``(2, slots, heads, window, head)`` is
        updated in place."""
        query, key, value = self._project(x, positions[:, None, None])
        place = positions % self.window
        cache[0, slots, :, place] = key[:, :, 0].to(cache.dtype)
        cache[1, slots, :, place] = value[:, :, 0].to(cache.dtype)
        # Always the whole window, with weight zero for empty entries: the result must not depend on the progress of
        # other rows.
        past = cache[:, rows_of(slots)]
        mask = torch.arange(self.window, device=x.device) <= positions[:, None, None, None]
        mixed = attend(query, past[0], past[1], mask, scale=None)
        return self.out(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding (arXiv 2104.09864): ``x`` ``(..., P, head)`` with ``positions`` broadcast to ``(..., P)``."""
    half = x.shape[-1] // 2
    # In float64, because an Atari game has 100,000 steps.
    frequencies = ROTARY_BASE ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = positions[..., None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): three matrices with the number of parameters of two four times as wide."""

    def __init__(self, config: BaseModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        inner = -(-8 * size // 3 // 32) * 32
        self.widen = nn.Linear(size, 2 * inner, bias=False)
        self.out = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, config: BaseModelConfig, window: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(config.hidden_size), Attention(config, window)
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(config.hidden_size), FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attention.extend(self.attention_norm(x), cache, slots, positions)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Trunk(nn.Module):
    """Maps embeddings to hidden states, both ``(B, P, hidden)``.

    Args:
        config: sizes and options.
        window: positions that each position attends to, itself included.
    """

    def __init__(self, config: BaseModelConfig, window: int) -> None:
        super().__init__()
        self.config, self.window = config, window
        self.blocks = nn.ModuleList(Block(config, window) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Projections into the residual stream have smaller initial weights in deeper trunks.
                depth = (2 * config.num_layers) ** -0.5 if name.endswith("out.weight") else 1.0
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 * depth)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = embeddings
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def extend(self, embeddings: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Like ``forward``, for the next position of some slots: ``(n, 1, hidden)``; ``positions`` ``(n,)``."""
        x = embeddings
        for layer, block in enumerate(cast(Iterable[Block], self.blocks)):
            x = block.extend(x, cache[layer], slots, positions)
        return self.norm(x)

    def new_cache(self, num_slots: int) -> Tensor:
        """Allocate the KV cache ``(layers, 2, slots, heads, window, hidden / heads)``; position p is stored at p modulo
        window."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        shape = (config.num_layers, 2, num_slots, config.num_heads, self.window, head_size)
        return torch.zeros(shape, device=next(self.parameters()).device)
