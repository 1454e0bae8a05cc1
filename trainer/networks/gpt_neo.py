"""JAT's trunk: GPT-Neo's blocks over embeddings, for whole sequences or incrementally with a KV cache.

Parameter names and shapes are those of the released model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelConfig
from trainer.networks.attention import attend, attend_back


class SelfAttention(nn.Module):
    """GPT-Neo's attention: causal, without scaling of the scores, without bias in the query, key and value
    projections."""

    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.window_size = config.window_size if is_local else None
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.out_proj = nn.Linear(size, size)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        return x.view(batch, length, self.num_heads, size // self.num_heads).transpose(1, 2)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """``(B, P, hidden)`` -> the same shape; see ``Transformer.forward``."""
        length = x.shape[1]
        query, key, value = self._split(self.q_proj(x)), self._split(self.k_proj(x)), self._split(self.v_proj(x))
        if real is None:
            return self.out_proj(attend_back(query, key, value, self.window_size))
        positions = torch.arange(length, device=x.device)
        mask = _penalty(self._visible(positions[:, None], positions[None, :])) + _penalty(real[:, None, None, :])
        return self.out_proj(attend(query, key, value, mask).transpose(1, 2).flatten(2))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Attend from k new positions per slot to all previous positions, adding their keys and values to ``cache``.

        Args:
            x: ``(n, k, hidden)``.
            cache: ``(2, slots, heads, positions, hidden / heads)``, updated in place.
            slots: ``(n,)`` rows of the cache.
            positions: ``(n, k)`` positions of the new entries. Rows whose last positions have the same ``width_of``
                give the same result batched as one by one: missing positions are attended to with weight zero.
        """
        query = self._split(self.q_proj(x))
        for kind, new in enumerate((self.k_proj(x), self.v_proj(x))):
            cache[kind, slots[:, None], :, positions] = self._split(new).transpose(1, 2)
        past = cache[:, rows_of(slots), :, : width_of(int(positions.max()) + 1, cache.shape[3])]
        key_positions = torch.arange(past.shape[3], device=x.device)
        mask = self._visible(positions[:, None, :, None], key_positions)
        mixed = attend(query, past[0], past[1], mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _visible(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        visible = key_positions <= query_positions
        if self.window_size is not None:
            visible = visible & (query_positions - key_positions < self.window_size)
        return visible


def width_of(num_positions: int, most: int) -> int:
    """Return how many positions attention reads when ``num_positions`` are filled: the next power of two, at least
    64."""
    return min(max(64, 2 ** (num_positions - 1).bit_length()), most)


def rows_of(slots: Tensor) -> Tensor | slice:
    """Return the slots as an index: a slice if they are contiguous, as they usually are, since a slice copies no
    cache."""
    first, count = int(slots[0]), len(slots)
    is_run = torch.equal(slots, torch.arange(first, first + count, device=slots.device))
    return slice(first, first + count) if is_run else slots


def _penalty(visible: Tensor) -> Tensor:
    """Return what GPT-Neo adds to the scores: the lowest float where not visible, so that the sum of two is minus
    infinity."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, torch.finfo(torch.float32).min)


class GPTNeoAttention(nn.Module):
    """Wrapper that exists only for the released parameter names (``attn.attention.*``)."""

    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config, is_local)


class GPTNeoFeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.c_proj = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPTNeoBlock(nn.Module):
    def __init__(self, config: ModelConfig, is_local: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size)
        self.attn = GPTNeoAttention(config, is_local)
        self.ln_2 = nn.LayerNorm(config.hidden_size)
        self.mlp = GPTNeoFeedForward(config)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        x = x + self.attn.attention(self.ln_1(x), real)
        return x + self.mlp(self.ln_2(x))

    def extend(self, x: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn.attention.extend(self.ln_1(x), cache, slots, positions)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The trunk: maps embeddings to hidden states, both ``(B, P, hidden)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_positions, config.hidden_size)
        self.h = nn.ModuleList(GPTNeoBlock(config, is_local=layer % 2 == 1) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size)

    def new_cache(self, num_slots: int, num_positions: int) -> Tensor:
        """Allocate the KV cache of ``num_slots`` episodes: ``(layers, 2, slots, heads, positions, hidden / heads)``."""
        config = self.config
        head_size = config.hidden_size // config.num_heads
        shape = (config.num_layers, 2, num_slots, config.num_heads, num_positions, head_size)
        return torch.zeros(shape, device=self.wte.weight.device)

    def forward(self, embeddings: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the hidden states of whole sequences.

        Args:
            embeddings: ``(B, P, hidden)``.
            real: ``(B, P)`` bool: mask the other positions (padding at the end) in attention, as the released code
                does. Causality masks them for every real position anyway, so no loss depends on it.
        """
        x = embeddings + self.wpe.weight[: embeddings.shape[1]]
        for block in self.h:
            x = block(x, real)
        return self.ln_f(x)

    def extend(self, embeddings: Tensor, cache: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Like ``forward``, for k new positions ``(n, k)`` of some slots; see ``new_cache``."""
        x = embeddings + self.wpe(positions)
        for layer, block in enumerate(cast(Iterable[GPTNeoBlock], self.h)):
            x = block.extend(x, cache[layer], slots, positions)
        return self.ln_f(x)
