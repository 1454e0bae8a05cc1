from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-seed", type=int, default=None, help="seed of the faults; drawn and printed if not given")


@pytest.fixture(scope="session")
def chaos_seed(pytestconfig: pytest.Config) -> int:
    given = pytestconfig.getoption("--chaos-seed")
    seed: int = random.SystemRandom().randrange(10**6) if given is None else given
    print(f"\nchaos seed {seed}: `make chaos ARGS='--chaos-seed {seed}'` draws the same faults")
    return seed
