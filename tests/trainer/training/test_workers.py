"""Several workers: the same curve as one, and a run that outlives the loss of some of them. An embedded Ray each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from pipeline.runtime.cluster import connect
from pipeline.runtime.stage import reported
from pipeline.runtime.status import read_statuses
from tests.fakes import FAKE_TASKS
from trainer.checkpoint import load_progress
from trainer.config import TrainConfig
from trainer.train import deal_out, train
from trainer.training.logs import read_log

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def own_ray() -> Iterator[None]:
    """A Ray of this test's own; one that an earlier test has left, perhaps with fewer CPUs, ends first."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


def curve(out: Path) -> list[dict[str, Any]]:
    return read_log(out / "train" / "log.jsonl")


def kill_a_worker_after(log: Path, step: int, killed: list[int]) -> None:
    """``kill -9`` a process that trains, once the log has reached a step."""
    import psutil

    while not killed:
        time.sleep(0.02)
        if len(read_log(log)) >= step:
            workers = [
                p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
            ]
            if workers:
                os.kill(workers[-1].pid, signal.SIGKILL)
                killed.append(workers[-1].pid)


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("shard", [False, True])
def test_two_workers_train_as_one_does_and_outlive_a_kill(make_config: MakeConfig, run_dir: Path, shard: bool) -> None:
    config = {"steps": 60, "checkpoint_every": 10}
    train(make_config(**config), FAKE_TASKS)
    alone = curve(run_dir)
    (run_dir / "train").rename(run_dir / "alone")

    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(run_dir / "train" / "log.jsonl", 25, killed))
    killer.start()
    with reported("train", run_dir):
        train(make_config(workers=2, shard=shard, **config), FAKE_TASKS)
    killer.join(timeout=10)
    assert killed, "no worker was killed"

    together = curve(run_dir)
    assert [row["step"] for row in together] == list(range(1, 61))
    assert [row["timesteps"] for row in together] == [row["timesteps"] for row in alone]
    for name in ("loss", "gradient_norm", "validation_loss"):
        expected = [row[name] for row in alone if name in row]
        assert [row[name] for row in together if name in row] == pytest.approx(expected, rel=1e-3), name
    assert json.loads(RunLayout(run_dir).train_manifest.read_text())["steps"] == 60
    assert not (run_dir / "train" / "ray").exists()
    # The steps that a worker counts are told here.
    (status,) = read_statuses(run_dir)
    assert (status.state, status.unit, status.done, status.planned) == ("done", "training steps", 60, 60)


@pytest.mark.usefixtures("own_ray")
def test_bad_data_in_a_worker_ends_the_run_at_once_and_is_named(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match="is not finite at step"):
        train(make_config(workers=2, steps=400, learning_rate=1e18, warmup_steps=1), FAKE_TASKS)
    assert "start again" not in caplog.text


def test_micro_batches_are_dealt_out_evenly_and_a_step_stays_as_large(make_config: MakeConfig) -> None:
    config = make_config(micro_batches=4, batch_steps=24)
    assert deal_out(config) is config
    assert deal_out(make_config(micro_batches=4, batch_steps=24, workers=2)).micro_batches == 4
    dealt = deal_out(make_config(micro_batches=4, batch_steps=24, workers=3))
    assert (dealt.micro_batches, dealt.batch_steps) == (6, 16)
    with pytest.raises(UserError, match="--workers 8 would leave 3 time steps"):
        deal_out(make_config(micro_batches=1, batch_steps=24, workers=8))


@pytest.mark.usefixtures("own_ray")
def test_more_workers_than_the_cluster_has_room_for_are_refused(make_config: MakeConfig) -> None:
    connect(1)
    with pytest.raises(UserError, match="--workers is 2, the Ray cluster has 1 CPU; lower it, or add nodes"):
        train(make_config(workers=2, steps=4), FAKE_TASKS)


# Trains the two fake tasks with two workers that share the network.
COMMAND = """
import sys
from pathlib import Path
from pipeline.cli import run
from pipeline.runtime.stage import reported
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import tiny_config
from trainer.train import train

def main():
    out = Path(sys.argv[1])
    with reported("train", out):
        train(tiny_config(out, steps=100_000, workers=2, shard=True, checkpoint_every=100_000), FAKE_TASKS)

if __name__ == "__main__":
    run("training_with_two_workers")
"""


@pytest.mark.timeout(500)
def test_a_signal_for_a_whole_group_saves_what_its_workers_trained(run_dir: Path) -> None:
    """As ``timeout`` and schedulers send it. Several processes start, which takes its time."""
    (run_dir / "training_with_two_workers.py").write_text(COMMAND)
    paths = os.pathsep.join([str(run_dir), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [sys.executable, str(run_dir / "training_with_two_workers.py"), str(run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert process.stdout is not None
    with process.stdout as output:
        said = []
        for line in output:
            said.append(line)
            # Not "1,000 training steps left": before the first step there is nothing to save.
            if re.search(r"[1-9]\d* of [\d,]+ training steps", line) and "RayTrainWorker" in line:
                os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143, "".join(said)
    assert "SIGTERM received" not in "".join(said)
    (saved,) = (run_dir / "train" / "resume").iterdir()
    assert load_progress(saved).step == len(curve(run_dir)) > 0
    (status,) = read_statuses(run_dir)
    assert (status.state, status.error) == ("stopped", "")
