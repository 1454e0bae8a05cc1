"""A stage that needs a disk, with its outputs in a store, here fsspec's in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dags.on_disk import OnDiskConfig, run_on_disk
from dags.stages import Stage
from pipeline.errors import UserError
from pipeline.files import location
from pipeline.runtime.status import StageStatus, read_statuses

pytestmark = pytest.mark.slow

# What stands for a stage: notes what it was given, makes a file, and another if it is told to.
MODULE = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
given = (out / "shards" / "a").read_text() if (out / "shards" / "a").exists() else ""
(out / "dataset").mkdir(exist_ok=True)
(out / "dataset" / "words").write_text(given + " ".join(sys.argv[3:]) + os.environ.get("RAY_ADDRESS", ""))
if "hang" in sys.argv:
    time.sleep(600)
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Any:
    """A place with a shard in it, one for each test."""
    root: Any = location(f"memory://{request.node.originalname}-{os.getpid()}/run")
    (root / "shards").mkdir(parents=True, exist_ok=True)
    (root / "shards" / "a").write_text("shard ")
    return root


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_stage.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("RAY_ADDRESS", "of-the-cluster:1")
    fake = Stage("dataset", "fake_stage", (), None, reads=("shards", "imported"), makes=("dataset",))
    monkeypatch.setattr("dags.on_disk.ALL_STAGES", (fake,))


def test_the_stage_finds_what_it_reads_and_what_it_makes_is_sent(store: Any, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert run_on_disk(OnDiskConfig("dataset", store, scratch), ["--task", "x", "0"]) == 0
    # Without the cluster of the job it runs in.
    assert (store / "dataset" / "words").read_text() == "shard --task x 0"
    assert list(scratch.iterdir()) == []  # the disk is empty again


def test_the_status_is_that_of_the_store_and_the_cluster_is_told_it(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that stands for a store: fsspec's, in memory, is seen by one process alone."""
    reporting = """
    import sys
    from pathlib import Path
    from pipeline.runtime.progress import Progress
    from pipeline.runtime.stage import reported
    with reported("dataset", Path(sys.argv[2])):
        Progress("shards checked", 3).advance(3)
    """
    (tmp_path / "fake_stage.py").write_text(textwrap.dedent(reporting))
    there: Any = location(f"local://{tmp_path}/store")
    (there / "status" / "dataset").mkdir(parents=True)  # which object stores do not ask for
    told: list[tuple[StageStatus, bool]] = []
    monkeypatch.setattr("dags.on_disk.connect", lambda workers: None)
    monkeypatch.setattr("dags.on_disk.publish", lambda status, is_last: told.append((status, is_last)))
    assert run_on_disk(OnDiskConfig("dataset", there, tmp_path / "scratch"), []) == 0
    (status,) = read_statuses(there)
    assert (status.state, status.done, status.out) == ("done", 3, str(there))
    assert status.disk_free_bytes  # of the disk that the work is done on
    assert told[-1] == (status, True)


def test_a_stage_that_fails_ends_with_its_code_and_what_it_made_is_kept(store: Any, tmp_path: Path) -> None:
    assert run_on_disk(OnDiskConfig("dataset", store, tmp_path / "scratch"), ["2"]) == 2
    assert (store / "dataset" / "words").read_text() == "shard 2"


def test_what_is_made_is_sent_while_the_stage_runs_and_a_signal_ends_both(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dags.on_disk.SEND_EVERY_S", 0.1)

    def stop() -> None:
        deadline = time.monotonic() + 30
        while not (store / "dataset" / "words").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    started = time.monotonic()
    code = run_on_disk(OnDiskConfig("dataset", store, tmp_path / "scratch"), ["hang"])
    stopper.join()
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - started < 60
    assert (store / "dataset" / "words").read_text() == "shard hang"


@pytest.mark.parametrize(
    ("name", "out", "problem"),
    [
        ("train", "memory://b/run", "--stage is 'train'; allowed: dataset"),
        ("dataset", "runs/default", "is on this machine already; run `jat dataset` itself"),
    ],
)
def test_what_needs_no_such_disk_is_said(name: str, out: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        run_on_disk(OnDiskConfig(name, location(out), tmp_path), [])


def test_a_stage_that_writes_to_a_store_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"--stage collect writes to a store itself; run `jat collect`"):
        run_on_disk(OnDiskConfig("collect", location("memory://b/run"), tmp_path), [])


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    words = ["--stage", "dataset", "--out", str(tmp_path), "--", "--task", "babyai"]
    done = subprocess.run(
        [sys.executable, "-m", "dags.on_disk", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out ") and done.stderr.count("\n") == 1
