"""Detect devices on which bfloat16 is faster than float32."""

from __future__ import annotations

import torch


def is_fast(device: torch.device) -> bool:
    """Whether a device is a CPU with bfloat16 instructions (AVX512-BF16)."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
