"""Stages as jobs on a cluster, as a scheduler starts them: two real Ray nodes that want a token, a real S3 server, and
one of the nodes killed in the middle of collecting."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from dags.launch import Launcher, StageError
from dags.stages import STAGES
from pipeline.files import location, read_json
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.shards import finished_shards
from tests.collectors.test_cluster_address import TOKEN, free_port
from tests.collectors.test_cluster_nodes import S3, background, end, wait_for

pytestmark = pytest.mark.slow

TASK = "babyai-go-to-obj"
OUT = "s3://lab/run"
EPISODES = {"train": 3000, "test": 300}
NUM_SHARDS = 66


@dataclass(frozen=True)
class Cluster:
    """A dashboard's address, the Python of its jobs, and its two nodes, to be killed."""

    dashboard: str
    python: str
    head: Any
    second: Any


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one CPU each, whose processes find an S3 server with an empty bucket, as this one does."""
    import boto3
    import s3fs

    store, port, dashboard = free_port(), free_port(), free_port()
    started = [background([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store)], {})]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.dags.small_python "$@"\n')
    python.chmod(0o755)
    memory = f"--object-store-memory={100 * 2**20}"

    def node(*words: str) -> Any:
        own = [memory, f"--dashboard-agent-listen-port={free_port()}", *words]
        started.append(background([*ray, *own], {**TOKEN, "RAY_prestart_worker_first_driver": "0"}))
        return started[-1]

    with pytest.MonkeyPatch.context() as patched:
        try:
            wait_for(store, started[0])
            for name, value in {**S3, **TOKEN, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store}"}.items():
                patched.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="lab")
            s3fs.S3FileSystem.clear_instance_cache()
            head = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}"]
            head_node = node(*head, "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}")
            wait_for(port, head_node)
            second = node(f"--address=127.0.0.1:{port}")
            wait_for(dashboard, head_node)
            yield Cluster(f"http://127.0.0.1:{dashboard}", str(python), head_node, second)
        finally:
            for process in reversed(started):
                end(process)


def launcher(stage: str, address: str, python: str = "python", **options: str) -> Launcher:
    environ = {
        "JAT_RAY_JOBS": address, "JAT_RAY_PYTHON": python, "JAT_PYTHON": sys.executable, "JAT_RAY_WAIT_MINUTES": "0",
    }  # fmt: skip
    chosen = next(s for s in STAGES if s.name == stage)
    return Launcher(chosen, {"out": OUT, "task": TASK, "workers": "2", **options}, environ)


def run(stage: str, cluster: Cluster, **options: str) -> str:
    lines: list[str] = []
    try:
        launcher(stage, cluster.dashboard, cluster.python, **options).run(lines.append)
    except StageError as error:
        pytest.fail(f"{stage}: {error}\n" + "\n".join(lines))
    return "\n".join(lines)


def num_nodes(cluster: Cluster) -> int:
    request = urllib.request.Request(
        f"{cluster.dashboard}/api/v0/nodes?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE",
        headers={"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return len(json.load(answer)["data"]["result"]["result"])


def is_at_work(node: Any) -> bool:
    """Whether a worker of a node runs a job; Ray says so in the process's title."""
    titles = []
    for process in psutil.Process(node.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            titles += process.cmdline()[:1]
    return any(title.startswith("ray::Worker.run") for title in titles)


def wait_until(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.timeout(600)
def test_stages_are_jobs_and_a_node_that_dies_in_the_middle_costs_nothing(cluster: Cluster) -> None:
    wait_until(lambda: num_nodes(cluster) == 2)
    assert TASK in run("experts", cluster)
    root: Any = location(OUT)
    said: list[str] = []
    collecting = threading.Thread(target=lambda: said.append(run("collect", cluster, episodes="3000", expert="random")))
    collecting.start()
    # Shards have begun to arrive, and a worker on the node that is to die is at one.
    wait_until(lambda: finished_shards(root / "shards", TASK) != [] or not collecting.is_alive())
    wait_until(lambda: is_at_work(cluster.second) or not collecting.is_alive())
    end(cluster.second)
    num_finished = len(finished_shards(root / "shards", TASK))
    collecting.join(200)
    assert said, "collecting failed"
    assert num_finished < NUM_SHARDS, "the node died too late"
    assert len(finished_shards(root / "shards", TASK)) == NUM_SHARDS

    assert "its worker died" in said[0]
    run("dataset", cluster)
    manifest = DatasetManifest.find(root / "dataset")
    assert manifest is not None
    for split, count in EPISODES.items():
        files = manifest.tasks[TASK].splits[split].episodes
        seeds = [seed for file in files for seed in _seeds(root / "dataset" / file.name)]
        first = min(seeds)
        assert seeds == list(range(first, first + count))
        assert manifest.tasks[TASK].splits[split].num_episodes == count
    run("train", cluster)
    assert read_json(root / "train" / "manifest.json")["steps"] == 4


def _seeds(path: Any) -> list[int]:
    with path.open("rb") as handle:
        return pq.read_table(handle, columns=["seed"])["seed"].to_pylist()


def test_a_wrong_token_is_one_readable_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    said: list[str] = []
    with pytest.raises(StageError, match=rf"^the Ray cluster at JAT_RAY_JOBS={cluster.dashboard} refuses") as failed:
        launcher("experts", cluster.dashboard).run(said.append)
    assert failed.value.is_permanent and "\n" not in str(failed.value)
    assert said == []


def test_no_token_is_one_readable_line(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKEN:
        monkeypatch.delenv(name)
    with pytest.raises(StageError, match="put the cluster's token into RAY_AUTH_TOKEN") as failed:
        launcher("experts", cluster.dashboard).run(lambda line: None)
    assert failed.value.is_permanent


def test_no_cluster_at_the_address_is_one_readable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    said: list[str] = []
    with pytest.raises(StageError, match=rf"^no Ray dashboard at JAT_RAY_JOBS={address}; start the cluster") as failed:
        launcher("experts", address).run(said.append)
    assert failed.value.is_permanent
    assert said == []


def test_bad_input_of_a_job_is_not_tried_again(cluster: Cluster) -> None:
    with pytest.raises(StageError, match="no task matches 'nonsense'") as failed:
        launcher("experts", cluster.dashboard, cluster.python, task="nonsense").run(lambda line: None)
    assert failed.value.is_permanent


def test_a_head_that_dies_is_a_failure_that_a_retry_may_mend(cluster: Cluster) -> None:
    def say(line: str) -> None:
        if line.startswith("Running entrypoint"):
            end(cluster.head)  # the last test that needs it

    with pytest.raises(StageError, match=rf"^the connection to JAT_RAY_JOBS={cluster.dashboard} broke") as failed:
        launcher("experts", cluster.dashboard, cluster.python).run(say)
    assert not failed.value.is_permanent
