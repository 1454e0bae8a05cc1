"""Every benchmark is a module that runs by its own name, which a document or the Makefile tells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parents[1]
TELLING = (ROOT / "Makefile", *(ROOT / "docs").glob("*.md"))
TOLD = sorted({name for path in TELLING for name in re.findall(r"-m tests\.benchmarks\.(\w+)", path.read_text())})


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_runs_by_its_own_name(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text()
    assert "\ndef main() -> None:\n" in text
    last = "main()" if "import argparse" in text else f'run("tests.benchmarks.{name}")'
    assert text.endswith(f'\nif __name__ == "__main__":\n    {last}\n')


def test_every_benchmark_is_told() -> None:
    commands = {path.stem for path in FOLDER.glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    assert commands == set(TOLD)
