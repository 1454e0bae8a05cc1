"""The machine that something was measured on: figures of speed mean nothing without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# What processors call instructions for bfloat16: x86 (AVX-512 and matrix units) and ARM.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
NO_LIMIT = 2**60  # bytes; version 1 of control groups says a number like this where there is no limit


@dataclass(frozen=True)
class Hardware:
    """One machine.

    Attributes:
        processor: its model.
        cores: that this process may use.
        memory_gb: that this process may use, in 10^9 bytes.
        bfloat16: whether the processor has instructions for it.
        accelerator: GPU that was used, or empty.
    """

    processor: str
    cores: int
    memory_gb: float
    bfloat16: bool
    accelerator: str = ""

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        bfloat16 = "with" if self.bfloat16 else "without"
        text = f"{cores} of {self.processor}, {bfloat16} bfloat16 instructions, {self.memory_gb:.0f} GB of memory"
        return f"{text}, {self.accelerator}" if self.accelerator else text


def this_machine(accelerator: str = "") -> Hardware:
    """The machine this process runs on, and what of it the process may use."""
    processor, bfloat16 = read_processor(_read("/proc/cpuinfo"))
    limits = [_read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    known = [int(limit) for limit in limits if limit.strip().isdigit() and int(limit) < NO_LIMIT]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        processor, len(os.sched_getaffinity(0)), round(min([total, *known]) / 1e9, 1), bfloat16, accelerator
    )


def read_processor(cpuinfo: str) -> tuple[str, bool]:
    """The model of the first processor in ``/proc/cpuinfo``, and whether it has instructions for bfloat16."""
    lines = [line.partition(":") for line in cpuinfo.split("\n\n")[0].splitlines()]
    values = {key.strip(): value.strip() for key, _, value in lines}
    flags = f"{values.get('flags', '')} {values.get('Features', '')}".split()
    name = values.get("model name") or platform.processor() or platform.machine()
    return name, any(flag in flags for flag in BFLOAT16_FLAGS)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
