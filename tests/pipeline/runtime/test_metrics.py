"""The metrics endpoints of real Rays, an embedded one and one that lasts, beside the files of the stages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collectors.collect import collect
from collectors.config import CollectConfig
from pipeline.runtime.metrics import METRICS, MetricSample, samples
from pipeline.runtime.stage import reported
from pipeline.runtime.status import StageStatus, TaskCount, read_statuses
from tests.collectors.test_cluster_address import TOKEN, free_port
from tests.collectors.test_cluster_nodes import background, end, wait_for
from tests.fakes import FAKE_NAN_REWARD

OURS = ("stage", "task", "out", "state")

# A stage that counts, then fails, or is killed.
COMMAND = """
import sys, time
from pathlib import Path
from pipeline.errors import UserError
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import reported
with reported(sys.argv[2], Path(sys.argv[1]), "toy-*") as live:
    Progress("shards checked", 8).advance(3)
    live.write(is_last=True)
    print("counted", flush=True)
    if sys.argv[2] == "dataset":
        time.sleep(60)
    raise UserError("a shard is damaged")
"""


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Our metrics at an endpoint, by name and by our labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset((key, sample.labels[key]) for key in OURS if key in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_jat_")
    }


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def expected(status: StageStatus) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(f"ray_{sample.name}", frozenset(sample.labels.items())): sample.value for sample in samples(status)}


def test_all_that_is_counted_has_a_metric() -> None:
    status = StageStatus("collect", "toy-a,toy-b,toy-c", "/out", updated=7.0, disk_free_bytes=5)
    status.tasks = {"toy-a": TaskCount(4, 2, 1, {"x": 1, "y": 0}), "toy-b": TaskCount(timed=9)}
    found = list(samples(status))
    assert {sample.name for sample in found} == set(METRICS)
    labels = {"stage": "collect", "task": "toy-a and 2 more", "out": "/out"}
    assert [s for s in found if s.name == "jat_stage_state"] == [
        MetricSample("jat_stage_state", {**labels, "state": state}, value)
        for state, value in (("running", 1.0), ("done", 0.0), ("failed", 0.0), ("stopped", 0.0))
    ]
    of_task = {**labels, "task": "toy-a"}
    assert [s for s in found if s.name.startswith("jat_task_")] == [
        MetricSample("jat_task_planned", of_task, 4.0),
        MetricSample("jat_task_done", of_task, 3.0),
        MetricSample("jat_task_rejected", of_task, 1.0),
    ]


def test_labels_are_ascii_whatever_the_folder_is_called() -> None:
    for out, label in (("/home/j\u00fcrgen/runs", "/home/j%C3%BCrgen/runs"), ("/x\udcff\n", "/x%FF%0A")):
        labels = [sample.labels for sample in samples(StageStatus("collect", "toy-a", out))]
        assert {found["out"] for found in labels} == {label}


@pytest.mark.usefixtures("one_worker", "nothing_embedded")
def test_an_embedded_ray_says_what_the_file_says(tmp_path: Path) -> None:
    import ray

    tmp_path = tmp_path / "j\u00fcrgen"
    config = CollectConfig("fake-*", tmp_path, "10", 0.1, "5", 1, 2, "random", max_rejected=1.0)
    with reported("collect", tmp_path, "fake-*"):
        collect(config, [FAKE_NAN_REWARD])
    (status,) = read_statuses(tmp_path)
    assert (status.state, status.done, status.planned) == ("done", 11, 11) and status.rejected > 0
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = expected(status)
    # Ray passes on what it is told every ten seconds.
    wait_until(lambda: wanted.items() <= scrape(url).items())
    assert len(wanted) == len(METRICS) + 3
    # What an alert is about besides.
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert "\nray_node_disk_utilization_percentage{" in answer.read().decode()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, str], str]]:
    """Environment of stages that belong to a Ray that lasts, and where that tells its metrics."""
    port, metrics = free_port(), free_port()
    ray = str(Path(sys.executable).with_name("ray"))
    words = ["start", "--head", f"--port={port}", f"--metrics-export-port={metrics}", "--include-dashboard=false"]
    quick = {**TOKEN, "RAY_metrics_report_interval_ms": "2000"}
    process = background([ray, *words, "--block", "--num-cpus=1", "--disable-usage-stats"], quick)
    try:
        wait_for(port, process)
        wait_for(metrics, process)
        yield {**quick, "RAY_ADDRESS": f"127.0.0.1:{port}"}, f"http://127.0.0.1:{metrics}/metrics"
    finally:
        end(process)


@pytest.mark.timeout(200)
def test_a_cluster_goes_on_telling_of_stages_that_have_failed_or_were_killed(
    head: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    environ, url = head

    def start(stage: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", COMMAND, str(tmp_path), stage]
        return subprocess.Popen(words, env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    killed, failed = start("dataset"), start("report")
    try:
        assert killed.stdout is not None and killed.stdout.readline() == b"counted\n"
        killed.kill()
        killed.wait()
        assert failed.wait(60) != 0
    finally:
        for process in (killed, failed):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    first, second = sorted(read_statuses(tmp_path), key=lambda status: status.stage)
    assert (first.stage, first.state, first.done) == ("dataset", "running", 3)
    assert (second.stage, second.state, second.error) == ("report", "failed", "a shard is damaged")
    wanted = expected(first) | expected(second)
    wait_until(lambda: wanted.items() <= scrape(url).items())
    # Ray forgets what is not told again, or by a process that has ended, after two reports. None of this is forgotten.
    for _ in range(4):
        time.sleep(2.0)
        assert wanted.items() <= scrape(url).items()
