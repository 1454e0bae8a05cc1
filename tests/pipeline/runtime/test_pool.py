from __future__ import annotations

import errno
import gc
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.envs.rollout import rollout
from pipeline.errors import JobFailure, JobsFailedError, UserError
from pipeline.runtime.cluster import Resources
from pipeline.runtime.heartbeat import STOP, WORKER_PROGRESS
from pipeline.runtime.pool import MAX_ATTEMPTS, Control, Running, Supervision, run_jobs
from tests.fakes import FAKE_COUNT, FAKE_GRID, AssertingPolicy

pytestmark = pytest.mark.usefixtures("one_worker")


def square(job: int) -> int:
    return job * job


def square_but_for_three(job: int) -> int:
    if job == 3:
        raise ValueError(f"cannot square {job}")
    return job * job


def die_on_the_first_attempt(job: tuple[Path, int]) -> int:
    """Leaves one mark per attempt; the job 1 kills its worker on the first."""
    directory, number = job
    attempt = len(list(directory.glob(f"{number}-*")))
    (directory / f"{number}-{attempt}").touch()
    if number == 1 and attempt == 0:
        os._exit(1)
    return number


def die_always(job: tuple[Path, int]) -> int:
    directory, number = job
    (directory / f"{number}-{len(list(directory.glob(f'{number}-*')))}").touch()
    if number == 1:
        os._exit(1)
    return number


def play(job: tuple[Any, list[int]]) -> list[float]:
    task, seeds = job
    return [episode.total_reward for episode in rollout(task, AssertingPolicy(task), seeds)]


def process_id(job: int) -> int:
    return os.getpid()


def frozen_objects(job: int) -> int:
    return gc.get_freeze_count()


def log_three_lines(job: str) -> None:
    for number in range(3):
        logging.getLogger("experts.fake").info("%s: %d of 3", job, number)
    logging.getLogger("somebody.else").info("%s: not our news", job)


def test_every_job_gives_its_result() -> None:
    assert sorted(run_jobs(square, [3, 1, 2, 2], workers=1)) == [(1, 1), (2, 4), (2, 4), (3, 9)]


def test_no_jobs_need_no_workers() -> None:
    assert list(run_jobs(square, [], workers=1)) == []


def test_jobs_run_in_other_processes_that_know_the_fakes() -> None:
    jobs = [(FAKE_COUNT, [0, 1]), (FAKE_GRID, [3])]
    results = {job[0].name: result for job, result in run_jobs(play, jobs, workers=1)}
    assert results == {"fake-count": [1.0, 3.5], "toy-grid": [1.75]}
    ((_, worker),) = run_jobs(process_id, [0], workers=1)
    assert worker != os.getpid()


def test_a_job_that_raises_fails_after_the_others_are_done() -> None:
    results = []
    with pytest.raises(JobsFailedError, match=r"1 of 4 jobs failed; .* First: 3: ValueError\('cannot square 3'\)"):
        for job, result in run_jobs(square_but_for_three, [1, 3, 2, 4], workers=1):
            results.append((job, result))
    assert sorted(results) == [(1, 1), (2, 4), (4, 16)]


def test_a_job_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    jobs = [(tmp_path, number) for number in range(3)]
    results = list(run_jobs(die_on_the_first_attempt, jobs, workers=1))
    assert sorted(result for _, result in results) == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "1-1", "2-0"]


def test_a_job_that_kills_every_worker_fails_after_the_others_are_done(tmp_path: Path) -> None:
    results = []
    with pytest.raises(JobsFailedError, match="1 of 3 jobs failed"):
        for _, result in run_jobs(die_always, [(tmp_path, number) for number in range(3)], workers=1):
            results.append(result)
    assert sorted(results) == [0, 2]
    assert len(list(tmp_path.glob("1-*"))) == MAX_ATTEMPTS
    assert len(list(tmp_path.glob("[02]-*"))) == 2


@pytest.fixture
def no_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    wait = ray.wait

    def wait_or_fail(references: list[Any], **options: Any) -> Any:
        ready, rest = wait(references, **{"timeout": 6.0, **options})
        if not ready:
            raise TimeoutError("nothing became ready in 6 s")
        return ready, rest

    monkeypatch.setattr(ray, "wait", wait_or_fail)


@pytest.mark.usefixtures("no_endless_wait")
def test_a_worker_spares_its_garbage_collector_what_was_there_after_its_first_job() -> None:
    counts = [count for _, count in run_jobs(frozen_objects, [1, 2, 3], workers=1)]
    assert counts[0] == 0
    assert counts[1] == counts[2] > 10_000


def test_fewer_cpus_than_workers_do_not_stop_the_jobs() -> None:
    assert sorted(run_jobs(square, [1, 2, 3], workers=2)) == [(1, 1), (2, 4), (3, 9)]


@pytest.mark.usefixtures("no_endless_wait")
def test_workers_are_gone_after_jobs_failed() -> None:
    with pytest.raises(JobsFailedError) as failed:
        list(run_jobs(square_but_for_three, [3], workers=1))
    assert list(run_jobs(square, [1], workers=1)) == [(1, 1)]
    assert failed.value is not None


@pytest.mark.usefixtures("no_endless_wait")
def test_a_job_is_cut_to_what_the_largest_node_has() -> None:
    # One CPU and no GPU here: without the cut these would wait for ever.
    wanted = {1: Resources(num_cpus=64), 2: Resources(num_gpus=1), 3: Resources()}
    results = list(run_jobs(square, [1, 2, 3], 1, wanted.__getitem__))
    assert sorted(results) == [(1, 1), (2, 4), (3, 9)]


def test_jobs_with_resources_of_their_own_have_a_process_of_their_own() -> None:
    own = [process for _, process in run_jobs(process_id, [1, 2, 3], 1, lambda _: Resources())]
    shared = [process for _, process in run_jobs(process_id, [1, 2, 3], 1)]
    assert (len(set(own)), len(set(shared))) == (3, 1)


def test_a_job_with_resources_is_tried_again_when_its_worker_dies(tmp_path: Path) -> None:
    jobs = [(tmp_path, 1), (tmp_path, 2)]
    results = list(run_jobs(die_on_the_first_attempt, jobs, 1, lambda _: Resources()))
    assert sorted(result for _, result in results) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-0", "1-1", "2-0"]


def test_what_our_packages_log_in_a_worker_comes_to_this_terminal(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pipeline")
    assert len(list(run_jobs(log_three_lines, ["reach", "push"], 1))) == 2
    said, deadline = "", time.monotonic() + 20
    while said.count(" of 3") < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
        said += capfd.readouterr().err
    lines = [f"experts.fake: {job}: {number} of 3" for job in ("reach", "push") for number in range(3)]
    assert [line for line in lines if line not in said] == []
    assert "not our news" not in said


def beat_then_hang(job: tuple[Path, int]) -> int:
    """Steps for a while; the job 1 then stops beating on its first attempt and never returns."""
    directory, number = job
    attempt = len(list(directory.glob(f"{number}-*")))
    (directory / f"{number}-{attempt}").touch()
    for _ in range(8):
        WORKER_PROGRESS.beats += 1
        WORKER_PROGRESS.episodes += 1
        time.sleep(0.5)
    if number == 1 and attempt == 0:
        time.sleep(3600)
    return number


def take_much_memory(job: int) -> int:
    held.append(b"x" * (200 * 2**20))
    return os.getpid()


held: list[bytes] = []


def run_out_of_space(job: int) -> int:
    if job == 2:
        raise OSError(errno.ENOSPC, "No space left on device")
    return job


def unlimited(report: Any = lambda running: None) -> Supervision:
    return Supervision(3600.0, 2**40, report)


def test_a_job_without_a_beat_is_killed_and_tried_again_while_slow_ones_live(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def report(running: Sequence[Running[Any]]) -> None:
        seen.extend((r.job[1], r.pulse.episodes) for r in running)

    jobs = [(tmp_path, 0), (tmp_path, 1)]
    # A job takes 4 s, longer than the 3 s without a beat that are allowed.
    results = list(run_jobs(beat_then_hang, jobs, 1, supervision=Supervision(3.0, 2**40, report)))
    assert sorted(result for _, result in results) == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "1-0", "1-1"]
    assert any(number == 0 and 0 < episodes <= 8 for number, episodes in seen)


def count_to_the_job(job: int) -> int:
    """Tells as many episodes as its number at once, and takes longer than some polls."""
    WORKER_PROGRESS.episodes = job
    time.sleep(2.5)
    return job


def test_counts_of_a_job_are_never_told_of_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.pool.POLL_S", 0.2)
    seen: set[tuple[int, int]] = set()
    report = unlimited(lambda running: seen.update((job.job, job.pulse.episodes) for job in running))
    assert len(list(run_jobs(count_to_the_job, [7, 5], 1, supervision=report))) == 2
    assert (7, 7) in seen and (5, 5) in seen and (5, 7) not in seen


def test_a_job_that_always_hangs_fails_with_the_reason() -> None:
    with pytest.raises(JobsFailedError, match=r"no step was made for 0\.5 s") as failed:
        list(run_jobs(time.sleep, [3600], 1, supervision=Supervision(0.5, 2**40, lambda running: None)))
    assert [(f.job, f.is_worker_lost) for f in failed.value.failures] == [(3600, True)]


def test_a_worker_that_has_grown_too_large_is_replaced() -> None:
    limit = Supervision(3600.0, 400 * 2**20, lambda running: None)
    workers = [result for _, result in run_jobs(take_much_memory, [1, 2, 3, 4], 1, supervision=limit)]
    assert len(set(workers)) >= 2
    unlimited_workers = [result for _, result in run_jobs(process_id, [1, 2, 3, 4], 1, supervision=unlimited())]
    assert len(set(unlimited_workers)) == 1


def test_without_space_no_more_jobs_are_begun() -> None:
    results = []
    with pytest.raises(JobsFailedError, match="1 of 4 jobs failed"):
        for _, result in run_jobs(run_out_of_space, [1, 2, 3, 4], 1):
            results.append(result)
    assert results == [1]


def test_a_resource_that_no_node_declares_is_left_out_and_memory_is_cut() -> None:
    needed = Resources(memory=2**60, custom={"simulator": 1.0})
    assert list(run_jobs(square, [2], 1, needed)) == [(2, 4)]


def mark_and_raise(job: tuple[Path, int]) -> int:
    directory, number = job
    (directory / "order").open("a").write(f"{number}\n")
    if number == 1:
        raise UserError("no use") if (directory / "bad").exists() else ValueError("cannot")
    return number


@pytest.mark.parametrize(("is_bad", "expected"), [(False, [0, 1, 1, 1, 2]), (True, [0, 1, 2])])
def test_a_failure_is_tried_again_at_once_if_the_control_says_so(
    is_bad: bool, expected: list[int], tmp_path: Path
) -> None:
    if is_bad:
        (tmp_path / "bad").touch()
    told: list[JobFailure] = []

    def try_again(failure: JobFailure) -> bool:
        told.append(failure)
        return not failure.is_bad_input and len(told) < 3

    control = Control(threading.Event(), 1.0, try_again)
    with pytest.raises(JobsFailedError, match="1 of 3 jobs failed"):
        list(run_jobs(mark_and_raise, [(tmp_path, number) for number in range(3)], workers=1, control=control))
    assert [int(line) for line in (tmp_path / "order").read_text().split()] == expected
    assert {failure.is_bad_input for failure in told} == {is_bad} and len(told) == expected.count(1)


def until_stopped(job: tuple[Path, str]) -> str:
    """Says that it runs, then ends when it is asked to, or never."""
    directory, how = job
    (directory / f"{how}-runs").touch()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (STOP.is_set() and how == "polite"):
        time.sleep(0.05)
    return how


@pytest.mark.parametrize("how", ["polite", "stubborn"])
def test_jobs_that_are_asked_to_stop_end_by_themselves_or_are_killed_and_no_more_begin(
    how: str, tmp_path: Path
) -> None:
    stop = threading.Event()

    def stop_when_it_runs() -> None:
        while not (tmp_path / f"{how}-runs").exists():
            time.sleep(0.05)
        stop.set()

    thread = threading.Thread(target=stop_when_it_runs)
    thread.start()
    control = Control(stop, 3.0, lambda failure: True)
    results = list(run_jobs(until_stopped, [(tmp_path, how), (tmp_path, "never")], workers=1, control=control))
    thread.join()
    assert [result for _, result in results] == (["polite"] if how == "polite" else [])
    assert not (tmp_path / "never-runs").exists()
