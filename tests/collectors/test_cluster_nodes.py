"""Collection on a cluster of two nodes into an object store: a real Ray of two raylets, a real S3 server process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collectors.status import statuses
from pipeline.files import location, read_json
from pipeline.runtime.status import read_statuses
from pipeline.storage.shards import finished_shards
from tests.collectors.test_cluster_address import TOKEN, free_port

pytestmark = pytest.mark.slow

TASK = "babyai-go-to-obj"
S3 = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.1)


def background(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own, so that ending it ends its children and nobody else."""
    return subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with an empty bucket, which this process and its children find."""
    import boto3
    import s3fs

    port = free_port()
    server = background([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {})
    try:
        wait_for(port, server)
        for name, value in {**S3, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="lab")
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://lab/run"
    finally:
        end(server)


@pytest.fixture
def nodes(store: str) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Address and processes of a cluster of two nodes of one CPU each. Its workers inherit the store's settings."""
    port = free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--block", "--num-cpus=1", "--disable-usage-stats"]
    head = background([ray, "start", "--head", f"--port={port}", "--include-dashboard=false", *common], TOKEN)
    wait_for(port, head)
    second = background([ray, "start", f"--address=127.0.0.1:{port}", *common], TOKEN)
    yield f"127.0.0.1:{port}", [head, second]
    end(second)
    end(head)


def start_collector(out: str, workers: int, episodes: int, environment: dict[str, str], log: Path) -> Any:
    words = ["--task", TASK, "--expert", "random", "--episodes", str(episodes), "--shard-episodes", "20"]
    with log.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "collectors.collect", "--out", out, "--workers", str(workers), *words],
            stdout=handle,
            stderr=handle,
            env={**os.environ, **environment},
        )


@pytest.mark.timeout(300)
def test_a_node_that_dies_in_the_middle_costs_nothing(
    store: str, nodes: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    address, (_, second) = nodes
    log = tmp_path / "log"
    cluster = {**TOKEN, "RAY_ADDRESS": address}
    process = start_collector(store, 2, 400, cluster, log)
    root: Any = location(store) / "shards"
    deadline = time.monotonic() + 120
    # Both nodes are there and shards have begun to arrive.
    while len(finished_shards(root, TASK)) < 4:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    end(second)
    assert process.wait(200) == 0, log.read_text()
    here = start_collector(str(tmp_path / "here"), 1, 400, {}, log)
    assert here.wait(120) == 0, log.read_text()
    local = tmp_path / "here" / "shards"
    there = finished_shards(root, TASK)
    assert len(there) == 22
    assert there == finished_shards(local, TASK)
    for shard in there:
        for entry in (shard.data, shard.episodes):
            assert (root / TASK / entry.name).read_bytes() == (local / TASK / entry.name).read_bytes()
    (status,) = statuses(root)
    assert (status.num_planned, status.finished.num_seeds) == (440, 440)
    # What it told of itself in the store is what its log says.
    (run,) = read_statuses(location(store))
    assert (run.state, run.done, run.out, run.disk_free_bytes) == ("done", 440, store, None)
    assert f"progress: {run.describe()}; " in log.read_text()
    # Going on finds everything there.
    again = start_collector(store, 1, 400, {}, log)
    assert again.wait(120) == 0
    assert "0 shards with 0 episodes to collect" in log.read_text()
    assert read_json(root / TASK / "plan.json")["episodes"] == {"train": 400, "test": 40}


def test_a_store_that_nobody_speaks_to_is_one_readable_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert start_collector("nosuch://bucket/run", 1, 4, {}, log).wait(60) == 2
    assert "nosuch" in log.read_text()
    assert "Traceback" not in log.read_text()
