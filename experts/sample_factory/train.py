"""Train an expert with Sample Factory (APPO) in one supervised process group; resume from the last checkpoint if any.

A training's folder contains ``state/`` (Sample Factory's checkpoints and TensorBoard events), ``settings.json`` and
``sample_factory.log``, besides the files of ``experts/training.py``. Environment steps are emulator frames for Atari. A
checkpoint is written every ``SampleFactoryRecipe.save_every_s`` seconds.

Sample Factory's processes survive the death of their main process, and the main process survives the death of its
parent. Therefore they run in a separate session. This module kills the whole session whenever it leaves the training,
and the session kills itself if this process dies (``main.py``).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experts.algorithms import ALGORITHMS
from experts.sample_factory.checkpoint import choose_checkpoint, load_checkpoint, newest_checkpoint, read_checkpoint
from experts.sample_factory.recipes import SETTINGS, STATE, check_settings, read_settings, recipe_of, settings_of
from experts.store import StoredExpert, write_expert
from experts.training import CURVE, Budget, TrainingMonitor, TrainJob, read_curve, read_progress
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.versions import versions_of

log = logging.getLogger(__name__)

KIND = "sample-factory"
# Seconds without output after which it has failed. Starting takes up to a minute on a busy machine; then there is a
# line every second.
SILENCE_S = 300.0
# Seconds to stop after a request. It takes seconds, up to a minute on a busy machine; the checkpoint is written first.
STOP_S = 120.0
# A checkpoint may be replaced while it is read.
EXPORT_ATTEMPTS = 5


def train(job: TrainJob, num_cpus: int | None = None) -> StoredExpert:
    """Train until the budget is used up or the target is reached, store the best checkpoint, and remove the state.

    Args:
        job: the training; after an interruption it resumes from the last checkpoint.
        num_cpus: cores to use; None for the algorithm's default.

    Raises:
        UserError: there is no recipe for the task, or the last checkpoint was made with other settings or cannot be
            loaded (a training is never restarted silently).
        RuntimeError: Sample Factory failed; the message contains the end of its log.
    """
    recipe = recipe_of(job.task)
    budget = job.budget(recipe.budget)
    state = job.folder / STATE
    num_cpus = num_cpus or ALGORITHMS[KIND].num_cpus
    settings = settings_of(
        recipe, job.task, job.folder, job.seed, budget.steps, num_cpus, gpu=_has_gpu(), niceness=os.nice(0)
    )
    check_settings(job, settings)
    start_steps = _check_state(state)
    # Its processes are many and short-lived, so the reserved cores are counted, not the CPU time of each process.
    monitor = TrainingMonitor(job, budget, start_steps, core_clock=lambda: num_cpus * time.monotonic())
    try:
        last_return = monitor.curve[-1].mean_return if monitor.curve else None
        if start_steps == 0 or not monitor.report(start_steps, last_return):
            _run(job.folder, settings, monitor, start_steps)
    finally:
        monitor.close()
    monitor.raise_if_stopped()
    stored = _store(job, settings, budget)
    job.remove_state()
    return stored


def export(job: TrainJob) -> StoredExpert:
    """Write the best policy of the checkpoints to the store; the training may be running.

    Raises:
        UserError: there is no checkpoint.
    """
    if newest_checkpoint(job.folder / STATE) is None:
        raise UserError(f"{job.folder} holds no checkpoint to export; wait for the first")
    budget = read_progress(job.folder).budget or job.budget(recipe_of(job.task).budget)
    for _ in range(EXPORT_ATTEMPTS - 1):
        chosen = choose_checkpoint(job.folder / STATE)
        try:
            return _store(job, read_settings(job), budget)
        except UserError:
            if chosen.path.exists():
                raise  # otherwise the training has just replaced it by a better one
    return _store(job, read_settings(job), budget)


def _store(job: TrainJob, settings: Mapping[str, Any], budget: Budget) -> StoredExpert:
    """Write the best policy of the checkpoints to the store."""
    state = job.folder / STATE
    chosen, last = choose_checkpoint(state), newest_checkpoint(state)
    assert last is not None
    spec, arrays = load_checkpoint(state, job.task, recipe_of(job.task).sampled)
    progress = read_progress(job.folder)
    return write_expert(
        job.out,
        job.task.name,
        KIND,
        spec,
        arrays,
        origin=f"trained with Sample Factory, {last.steps:,} environment steps",
        training={
            "algorithm": "APPO",
            "seed": job.seed,
            "steps": last.steps,
            "seconds": round(progress.seconds, 1),
            "core_seconds": round(progress.core_seconds, 1),
            "checkpoint": chosen.path.name,
            "budget": asdict(budget),
            "settings": {name: value for name, value in settings.items() if name != "train_dir"},
        },
        versions=versions_of(("sample-factory", "torch", *job.task.packages)),
        curve=read_curve(job.folder / CURVE),
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_state(state: Path) -> int:
    """Check that the checkpoint to resume from can be loaded; return its environment steps, 0 if there is none.

    Raises:
        UserError: the last checkpoint cannot be loaded.
    """
    # A kill during writing leaves a temporary file, which Sample Factory would take for the last checkpoint.
    for path in state.glob("checkpoint_p0/*_temp"):
        path.unlink()
    last = newest_checkpoint(state)
    if last is None:
        return 0
    read_checkpoint(last.path)
    return last.steps


def _run(folder: Path, settings: Mapping[str, Any], monitor: TrainingMonitor, start_steps: int) -> None:
    """Run Sample Factory from the start or the last checkpoint to the end of the budget."""
    write_json(folder / SETTINGS, dict(settings))
    log_path = folder / "sample_factory.log"
    with _sample_factory(folder / SETTINGS, log_path) as process:
        steps, mean_return, succeeded, failure = start_steps, None, False, ""
        stopped_at: float | None = None
        last_line = time.monotonic()
        for message in _messages(process):
            now = time.monotonic()
            if message is not None:
                last_line = now
                if message["start_steps"] not in (None, start_steps):
                    raise RuntimeError(
                        f"Sample Factory began at {message['start_steps']} steps, not at the {start_steps} of its last "
                        f"checkpoint; its log is {log_path}"
                    )
                if message["steps"] is not None:
                    steps, mean_return = message["steps"], message["mean_return"]
                succeeded, failure = message.get("succeeded", False), message.get("failure", "")
            if stopped_at is not None and now - stopped_at > STOP_S:
                log.warning("Sample Factory does not end by itself, its processes are killed")
                succeeded = True  # its checkpoint was written when it was asked to stop
                break
            if now - last_line > SILENCE_S:
                failure = f"no sign of life for {SILENCE_S:.0f} s"
                break
            if stopped_at is None and monitor.report(steps, mean_return, force=succeeded):
                _ask_to_stop(process)
                stopped_at = now
            if message is not None and "succeeded" in message:  # the last line
                if not succeeded:
                    break  # the remaining processes would not end by themselves
                stopped_at = stopped_at or now  # only its semaphores remain to be cleaned up
        if not succeeded:
            reason = f" ({failure})" if failure else ""
            raise RuntimeError(f"Sample Factory failed{reason}; the end of its log, {log_path}:\n{_tail(log_path)}")


@contextlib.contextmanager
def _sample_factory(settings_path: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Context manager that runs Sample Factory in a separate session and kills all its processes at the end."""
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "experts.sample_factory.main", str(settings_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # The process was not waited for, so its pid still identifies the group, even if only its children are left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Yield progress messages until the process ends, and None after every second without one."""
    assert process.stdout is not None
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=1.0):
                yield None
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                yield json.loads(line)


def _ask_to_stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the process has just ended
        process.stdin.write(b"stop\n")
        process.stdin.flush()


def _tail(path: Path, num_lines: int = 30) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:])
