"""``jat experts-queue`` with one more algorithm, ``fake``, in this process and in its workers.

python -m tests.experts.queue.command --queue FILE --out OUT
"""

from __future__ import annotations

import sys

from experts.algorithms import ALGORITHMS, Algorithm
from experts.queue import run as queue
from pipeline import cli

FAKE = Algorithm("tests.experts.queue.fake.train", lambda task: task.domain == "mujoco", ())


def install() -> None:
    ALGORITHMS["fake"] = FAKE


def train_and_measure(job: queue.QueueJob) -> str:
    install()
    return queue.train_and_measure(job)


def export_and_measure(job: queue.QueueJob) -> str:
    install()
    return queue.export_and_measure(job)


def main() -> None:
    install()
    originals = queue.run_jobs
    workers = {queue.train_and_measure: train_and_measure, queue.export_and_measure: export_and_measure}

    def run_jobs(function, *arguments, **options):  # type: ignore[no-untyped-def]
        return originals(workers[function], *arguments, **options)

    queue.run_jobs = run_jobs
    queue.main()


if __name__ == "__main__":
    assert len(sys.argv) > 1
    cli.run("tests.experts.queue.command")
