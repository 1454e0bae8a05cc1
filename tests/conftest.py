"""What all tests share: no network, one embedded Ray per test process, repeatable property tests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline.tables import choose_format

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
# Ray workers and subprocesses must find `tests.fakes` as this process does.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)
for name in ("RAY_ADDRESS", "LOG_LEVEL"):
    os.environ.pop(name, None)

# A shell's background jobs ignore Ctrl-C, and so would every command that a test starts to stop it with Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the machine may be busy. No database: a run leaves nothing behind and repeats exactly.
settings.register_profile(
    "tests",
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts Ray is slow, and left out by `make check`; others that take long are marked where they are.

    Files with slow tests come first: with the longest file last, one of two processes would wait for the other.
    """
    for item in items:
        if "ray_ends_with_the_tests" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(autouse=True)
def text_afterwards() -> Iterator[None]:
    """A command with ``--format`` sets the format for its process; the next test in this one prints text again."""
    yield
    choose_format("text")


@pytest.fixture(scope="session")
def ray_ends_with_the_tests() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


@pytest.fixture
def one_worker(ray_ends_with_the_tests: None) -> None:
    """An embedded Ray with one CPU, so tests that use it must ask for one worker.

    It is kept for the next test, unless one in between has ended it to start its own.
    """
    from pipeline.runtime.cluster import connect

    connect(1)


@pytest.fixture
def nothing_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder as the embedded store, so that a test does not depend on what this package ships."""
    embedded = tmp_path / "embedded"
    for module in ("experts.store", "pipeline.scoring.measurement"):
        monkeypatch.setattr(f"{module}.EMBEDDED", embedded)
    return embedded
