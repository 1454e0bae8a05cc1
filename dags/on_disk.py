"""Run a stage that needs a local disk for an output root in an object store.

    jat on-disk --stage train --out s3://bucket/run -- --recipe jat-small

The stage's command, with the options after ``--``, runs in a local folder: its inputs are downloaded first, and its
outputs are uploaded every minute and when it exits, even after an error. If it is killed, or its
machine is lost, another machine resumes from the last upload. Experts and collect do not need this: their workers write
to the store themselves.

The stage uses only this machine, with its own Ray instance instead of the cluster that it was submitted to. Only one
process at a time may run a stage on the same OUT. An object store cannot enforce this; a scheduler does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dags.stages import ALL_STAGES, Stage
from pipeline.cli import parse, run
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import digest_of, exclusive, is_local, store_errors
from pipeline.publishing.mirror import Mirror
from pipeline.runtime.cluster import connect
from pipeline.runtime.metrics import publish
from pipeline.runtime.stage import STATUS_OUT
from pipeline.runtime.status import read_statuses
from pipeline.stopping import deferred_stop, raise_stop, stop_requested, stop_signals
from pipeline.text import format_count

log = logging.getLogger(__name__)

# Decoded images and Ray's files: regenerated from the dataset, or useless on another machine.
PASSING = ("train/cache", "train/ray")
SEND_EVERY_S = 60.0  # interval of uploads of the stage's outputs
TELL_EVERY_S = 20.0  # interval of publishing the stage's metrics on the cluster
# Environment variables of this Ray job: they would make the stage's own Ray instance join the cluster.
OF_THE_JOB = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")


def _scratch() -> Path:
    return Path(os.environ.get("JAT_SCRATCH", Path(tempfile.gettempdir(), "jat")))


@dataclass(frozen=True)
class OnDiskConfig:
    """Run a stage on this machine's local disk, for an output root in an object store."""

    stage: str
    """dataset, publish, experts-queue, dagger, train, evaluate, film or report."""
    out: Path
    """Root of all outputs of a run, a URL such as s3://bucket/run."""
    scratch: Path = field(default_factory=_scratch)
    """Local folder for the stage's inputs and outputs, with space for both; JAT_SCRATCH if that is set. The stage's
    files in it are deleted when the stage has succeeded."""


def run_on_disk(config: OnDiskConfig, options: Sequence[str]) -> int:
    """Download the inputs, run the stage, upload its outputs, and return its exit code.

    Args:
        config: stage and output root.
        options: options of the stage's command, besides ``--out``.

    Raises:
        UserError: no such stage, a local output root, or an output root that cannot be read or written.
        JobsFailedError: the store failed.
    """
    stage = _stage(config.stage)
    if is_local(config.out):
        raise UserError(f"--out {config.out} is on this machine already; run `jat {stage.name}` itself")
    root = config.scratch.absolute() / f"{stage.name}-{digest_of(str(config.out))}"
    with exclusive(root / ".lock", f"wait for it, or stop it: it runs {stage.name} for {config.out}"):
        mirror = Mirror(config.out, root, PASSING)
        num_files = mirror.fetch((*stage.reads, *stage.makes))
        log.info("%s fetched from %s to %s", format_count(num_files, "file"), config.out, root)
        code = _run(stage, config.out, root, options, mirror)
        if code == 0:
            shutil.rmtree(root)
    return code


def _stage(name: str) -> Stage:
    stages = {stage.name: stage for stage in ALL_STAGES}
    if name not in stages:
        raise UserError(f"--stage is {name!r}; allowed: {', '.join(name for name, s in stages.items() if s.reads)}")
    if not stages[name].reads:
        raise UserError(f"--stage {name} writes to a store itself; run `jat {name}`")
    return stages[name]


def _run(stage: Stage, out: Path, root: Path, options: Sequence[str], mirror: Mirror) -> int:
    environ = {name: value for name, value in os.environ.items() if name not in OF_THE_JOB}
    environ[STATUS_OUT] = str(out)
    words = [sys.executable, "-m", stage.module, "--out", str(root), *options]
    is_told = _has_cluster()
    process = subprocess.Popen(words, env=environ)
    with stop_signals(), deferred_stop(process.terminate):
        try:
            sent = time.monotonic()
            while (code := _wait(process, min(SEND_EVERY_S, TELL_EVERY_S))) is None:
                if is_told:
                    _tell(out, stage, process.pid, is_last=False)
                if time.monotonic() - sent >= SEND_EVERY_S:
                    _send_what_is_there(stage, mirror)
                    sent = time.monotonic()
        finally:
            process.kill()  # only after a second Ctrl-C
            process.wait()
        if is_told:
            _tell(out, stage, process.pid, is_last=True)
        log.info("%s sent", format_count(_send(stage, mirror), "file"))
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def _has_cluster() -> bool:
    """Connect to the cluster of ``RAY_ADDRESS`` to publish the stage's metrics; the stage itself does not need it."""
    if os.environ.get("RAY_ADDRESS"):
        try:
            connect(1)
            return True
        except (UserError, JobsFailedError) as error:
            log.warning("no cluster is told of this stage: %s", error)
    return False


def _tell(out: Path, stage: Stage, pid: int, is_last: bool) -> None:
    """Publish the stage's status on the cluster, to which the stage's own process is not connected."""
    with contextlib.suppress(*store_errors()):  # retried after the next interval
        for status in read_statuses(out, stage.name):
            if (status.host, status.process) == (socket.gethostname(), pid):
                publish(status, is_last)


def _send(stage: Stage, mirror: Mirror) -> int:
    shared = [place for place in stage.makes if place in stage.reads]
    return mirror.send(place for place in stage.makes if place not in shared) + mirror.add(shared)


def _send_what_is_there(stage: Stage, mirror: Mirror) -> None:
    """Upload while the stage runs; a failed upload is retried later, and raises only at the end."""
    try:
        with contextlib.suppress(FileNotFoundError):  # the stage may move files during the upload
            _send(stage, mirror)
    except (JobsFailedError, UserError) as error:
        log.warning("nothing is sent for now: %s", error)


def main() -> None:
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    code = run_on_disk(parse(OnDiskConfig, argv=words[:split]), words[split + 1 :])
    if stop_requested():
        raise_stop()
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run("dags.on_disk")
