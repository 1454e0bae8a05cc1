from __future__ import annotations

import os
import platform

import pytest

from pipeline.runtime.hardware import Hardware, read_processor, this_machine

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx512f {}\n\nprocessor\t: 1\nmodel name\t: other\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name", "bfloat16"),
    [
        (X86.format("avx512_bf16"), "AMD EPYC 9B14", True),
        (X86.format("amx_bf16"), "AMD EPYC 9B14", True),
        (X86.format("avx2"), "AMD EPYC 9B14", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", platform.processor() or platform.machine(), True),
        ("", platform.processor() or platform.machine(), False),
    ],
)
def test_the_processor_and_its_bfloat16_are_read(cpuinfo: str, name: str, bfloat16: bool) -> None:
    assert read_processor(cpuinfo) == (name, bfloat16)


def test_a_machine_is_what_this_process_may_use_of_it() -> None:
    machine = this_machine("NVIDIA H100")
    assert machine.cores == len(os.sched_getaffinity(0))
    assert 0.1 < machine.memory_gb <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 + 0.1
    assert str(machine).endswith(", NVIDIA H100")


def test_a_machine_says_what_it_is() -> None:
    one = Hardware("AMD EPYC 9B14", 1, 16.4, False)
    assert str(one) == "1 core of AMD EPYC 9B14, without bfloat16 instructions, 16 GB of memory"
