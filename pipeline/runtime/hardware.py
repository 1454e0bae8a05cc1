"""Describes the machine of a measurement, without which speeds cannot be compared."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

# CPU flags for bfloat16 instructions: x86 (AVX-512 and matrix units) and ARM.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
NO_LIMIT = 2**60  # bytes; cgroups v1 report a number of this size if there is no limit


@dataclass(frozen=True)
class Hardware:
    """The hardware of one machine.

    Attributes:
        processor: model name of the CPU.
        cores: number of cores that this process may use.
        memory_gb: memory that this process may use, in 10^9 bytes.
        bfloat16: whether the CPU has bfloat16 instructions.
        accelerator: the GPU that was used, or empty.
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
    """Describe the machine of this process, with the cores and the memory that the process may use."""
    processor, bfloat16 = read_processor(_read("/proc/cpuinfo"))
    limits = [_read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    known = [int(limit) for limit in limits if limit.strip().isdigit() and int(limit) < NO_LIMIT]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        processor, len(os.sched_getaffinity(0)), round(min([total, *known]) / 1e9, 1), bfloat16, accelerator
    )


def read_processor(cpuinfo: str) -> tuple[str, bool]:
    """Return the model of the first CPU in ``/proc/cpuinfo``, and whether it has bfloat16 instructions."""
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
