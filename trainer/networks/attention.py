"""Causal attention for whole sequences, and attention of single positions to a KV cache.

On CPUs the computation is in float32 even if the inputs are not: as GPT-Neo computes its scores, and a training step
takes two thirds of the time of torch's kernel in bfloat16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = 1.0) -> Tensor:
    """Attention where a bool ``mask`` is True, or with a float mask added to the scores; ``(B, heads, P, size)`` each.

    Without a mask it is causal. On a CPU the computation and the result are in float32.
    """
    on_cpu = query.device.type == "cpu"
    if on_cpu:
        query, key, value = query.float(), key.float(), value.float()
    with torch.autocast(query.device.type, enabled=not on_cpu and torch.is_autocast_enabled(query.device.type)):
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)


def attend_back(query: Tensor, key: Tensor, value: Tensor, window: int | None = None, scale: float = 1.0) -> Tensor:
    """Causal attention of every position to itself and earlier ones, to the last ``window`` positions or to all.

    ``(B, heads, P, size)`` each -> ``(B, P, heads * size)``, in the dtype of ``value``.
    """
    length, mask = query.shape[2], None
    # On a CPU short sequences have a mask, too, so that compiled blocks have one graph for all lengths.
    if window is not None and (query.device.type == "cpu" or length > window):
        positions = torch.arange(length, device=query.device)
        back = positions[:, None] - positions
        mask = (back >= 0) & (back < window)
    return attend(query, key, value, mask, scale).to(value.dtype).transpose(1, 2).flatten(2)
