"""Every benchmark is a module that runs by its own name, and the Makefile starts only those that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
MAKEFILE = FOLDER.parents[1] / "Makefile"
STARTED = sorted(set(re.findall(r"\$\(BENCH\)\.(\w+)", MAKEFILE.read_text())))


@pytest.mark.parametrize("name", STARTED)
def test_what_the_makefile_starts_runs_by_its_own_name(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert "\ndef main() -> None:\n" in text
    assert f'\n    run("tests.benchmarks.{name}")\n' in text


def test_every_benchmark_has_a_word_in_the_makefile() -> None:
    commands = {path.stem for path in FOLDER.glob("*.py") if "    run(" in path.read_text()}
    assert commands == set(STARTED)
