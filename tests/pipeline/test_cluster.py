from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cluster import connect


@pytest.mark.usefixtures("one_worker")
def test_connecting_again_keeps_the_connection() -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    connect(7)
    assert ray.get_runtime_context().get_job_id() == before


def test_what_hangs_where_python_cannot_interrupt_it_ends_the_process() -> None:
    code = (
        "import ctypes, sys\n"
        "from pipeline.cluster import _no_longer_than\n"
        "with _no_longer_than(30): pass\n"
        "with _no_longer_than(0.5): ctypes.PyDLL(None).sleep(60)\n"  # holds Python's lock all the time
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (result.returncode, time.monotonic() - started < 30) == (1, True)
    assert "Timeout" in result.stderr


def test_lines_of_workers_have_no_colours_in_a_file(tmp_path: Path) -> None:
    code = (
        "import logging, pathlib, sys, time\n"
        "from pipeline.cli import configure_logging\n"
        "from pipeline.jobs import run_jobs\n"
        "from tests.pipeline.test_jobs import log_three_lines\n"
        "configure_logging(logging.INFO)\n"
        "list(run_jobs(log_three_lines, ['a'], 1))\n"
        "while '2 of 3' not in pathlib.Path(sys.argv[1]).read_text(): time.sleep(0.1)\n"  # they come by and by
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_COLOR_PREFIX")}
    said = tmp_path / "said.txt"
    with said.open("w") as handle:
        words = [sys.executable, "-c", code, str(said)]
        subprocess.run(words, stdout=handle, stderr=handle, check=True, timeout=100, env=environ)
    assert "(Worker pid=" in said.read_text()
    assert "\x1b" not in said.read_text()
