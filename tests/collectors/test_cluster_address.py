"""The same command on a cluster: a real Ray head on loopback, named by RAY_ADDRESS."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.storage.shards import finished_shards
from tests.dags.test_outside import PACKAGE, ROOT

pytestmark = pytest.mark.slow

# A cluster's members and drivers share a token; Ray refuses everybody else.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def address() -> Iterator[str]:
    """A head with one CPU in a session of its own, so that ending it ends nobody else's Ray."""
    port = free_port()
    ray = Path(sys.executable).with_name("ray")
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    head = subprocess.Popen(
        [ray, *words, "--include-dashboard=false", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **TOKEN},
    )
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert head.poll() is None, "the head ended"
        assert time.monotonic() < deadline, "the head did not start"
        time.sleep(0.1)
    yield f"127.0.0.1:{port}"
    os.killpg(head.pid, signal.SIGKILL)
    head.wait()


def collect(out: Path, workers: int, ray_address: str | None, exit_code: int = 0, **environ: str) -> str:
    environment = {**os.environ, **(TOKEN | {"RAY_ADDRESS": ray_address} if ray_address else {}), **environ}
    words = [
        "--task",
        "babyai-go-to-obj",
        "--expert",
        "random",
        "--episodes",
        "8",
        "--shard-episodes",
        "4",
        "--workers",
        str(workers),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "collectors.collect", "--out", str(out), *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == exit_code, done.stderr
    return done.stderr


def test_a_cluster_gives_the_same_shards_as_the_embedded_ray(address: str, tmp_path: Path) -> None:
    # More workers than the cluster has CPUs: they take turns.
    collect(tmp_path / "cluster", 2, address)
    collect(tmp_path / "embedded", 1, None)
    there = finished_shards(tmp_path / "cluster" / "shards", "babyai-go-to-obj")
    here = finished_shards(tmp_path / "embedded" / "shards", "babyai-go-to-obj")
    assert len(there) == 3
    assert there == here


def test_a_cluster_s_workers_find_the_user_s_own_domains_and_functions(address: str, tmp_path: Path) -> None:
    own = PACKAGE.replace('packages=("attic",)', 'packages=("numpy",)').replace(
        '"attic:Largest", "attic"', '"attic:Largest", None'
    )
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / "attic.py").write_text(own)
    (tmp_path / "tell.py").write_text("from attic import tell\n")  # found in the working directory
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **TOKEN, "RAY_ADDRESS": address, "PYTHONPATH": path}
    own_files = ["--domain", "domains/attic.py"]
    for module, task, expert, options in (
        ("collectors.collect", "shelf-largest", "random", own_files),
        ("experts.prepare", "paint-same", "py:tell:tell", own_files),
        ("collectors.collect", "paint-same", "py:tell:tell", own_files),
        ("collectors.collect", "gym:CartPole-v1", "random", []),
    ):
        words = [*options, "--task", task, "--expert", expert, "--episodes", "4", "--workers", "1"]
        done = subprocess.run(
            [sys.executable, "-m", module, "--out", "run", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for name in ("shelf-largest", "paint-same", "gym-CartPole-v1"):
        assert sum(shard.num_episodes for shard in finished_shards(tmp_path / "run" / "shards", name)) >= 4
    rewards = pq.read_table(next((tmp_path / "run/shards/paint-same").glob("*train*.parquet")))["rewards"].to_pylist()
    assert set(rewards[0]) == {1.0}  # the function tells colours


def test_no_cluster_at_the_address_is_one_readable_line(tmp_path: Path) -> None:
    said = collect(tmp_path, 1, f"127.0.0.1:{free_port()}", exit_code=2)
    assert "error: no Ray cluster at RAY_ADDRESS=127.0.0.1:" in said
    assert "Traceback" not in said


def test_a_wrong_token_is_one_readable_line(address: str, tmp_path: Path) -> None:
    output = collect(tmp_path, 1, address, exit_code=2, RAY_AUTH_TOKEN="f" * 64)
    last = output.splitlines()[-1]
    assert last.startswith(f"error: the Ray cluster at RAY_ADDRESS={address} refuses this process; put the cluster's")
    assert "f" * 64 not in output
