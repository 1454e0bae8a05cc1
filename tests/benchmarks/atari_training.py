"""Decisions per second of one core, learning included: ppo-cpu beside Sample Factory's recipe, in turns.

    python -m tests.benchmarks.atari_training --game breakout --core 0

Every training runs alone on the same core, with all its processes. Its first ``--warm-up`` seconds do not count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experts.training import PROGRESS, TrainJob, read_progress
from pipeline.envs.atari_game import FRAME_SKIP
from pipeline.envs.registry import select_tasks

# Environment steps of Sample Factory are emulator frames.
STEPS_PER_DECISION = {"ppo-cpu": 1, "sample-factory": FRAME_SKIP}
LIMIT_S = 600.0


def measure(algorithm: str, game: str, warm_up_s: float, seconds: float) -> float:
    """Decisions per second of a training that runs for ``seconds`` after ``warm_up_s``."""
    (task,) = select_tasks(f"atari-{game}")
    with tempfile.TemporaryDirectory() as directory:
        job = TrainJob(task, algorithm, Path(directory))
        arguments = [sys.executable, "-m", "tests.benchmarks.atari_training", "--train", algorithm]
        process = subprocess.Popen([*arguments, "--game", game, "--out", directory], stderr=subprocess.DEVNULL)
        try:
            first = wait_for_progress(job, process, warm_up_s)
            last = wait_for_progress(job, process, first[1] + seconds)
        finally:
            process.terminate()
            process.wait()
    return (last[0] - first[0]) / (last[1] - first[1]) / STEPS_PER_DECISION[algorithm]


def wait_for_progress(job: TrainJob, process: subprocess.Popen[bytes], seconds: float) -> tuple[int, float]:
    """Steps and seconds of the first report after so many seconds of training."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{job} ended with exit code {process.returncode}")
        if (job.folder / PROGRESS).exists():
            found = read_progress(job.folder)
            if found.seconds >= seconds and found.steps:
                return found.steps, found.seconds
        time.sleep(0.5)
    raise RuntimeError(f"{job} has not reported for {LIMIT_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="breakout", help="without the domain")
    parser.add_argument("--core", type=int, default=0, help="the core to run on")
    parser.add_argument("--turns", type=int, default=2, help="trainings of each algorithm")
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds of each training that do not count")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of each training that count")
    parser.add_argument("--train", choices=STEPS_PER_DECISION, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train_on_one_core(given.train, given.game, given.out)
        return
    os.sched_setaffinity(0, {given.core})
    rates: dict[str, list[float]] = {algorithm: [] for algorithm in STEPS_PER_DECISION}
    for _ in range(given.turns):
        for algorithm, found in rates.items():
            found.append(measure(algorithm, given.game, given.warm_up, given.seconds))
    ratios = [own / other for own, other in zip(rates["ppo-cpu"], rates["sample-factory"], strict=True)]
    print(f"decisions per second of core {given.core}, atari-{given.game}")
    for name, found in rates.items():
        print(f"{name:15s}", *(f"{rate:7.0f}" for rate in found))
    print(f"{'ratio':15s}", *(f"{ratio:7.2f}" for ratio in ratios))
    print(f"median ratio {statistics.median(ratios):.2f}")


def train_on_one_core(algorithm: str, game: str, out: Path) -> None:
    """One training, on the core that this process is bound to."""
    (task,) = select_tasks(f"atari-{game}")
    job = TrainJob(task, algorithm, out, seconds=LIMIT_S)
    if algorithm == "sample-factory":
        from experts.sample_factory.train import train

        train(job, num_cpus=1)
    else:
        from experts.ppo_cpu.train import train as train_ppo

        train_ppo(job)


if __name__ == "__main__":
    main()
