"""A training on a real game: stored, played, resumed after a kill, and refused where it cannot be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experts.ppo_cpu import train as module
from experts.ppo_cpu.recipes import ATARI
from experts.ppo_cpu.train import CHECKPOINT, export, train
from experts.registry import make_policy
from experts.training import TrainingStoppedError, TrainJob
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from pipeline.runtime.heartbeat import STOP

TINY = dataclasses.replace(ATARI, num_envs=4, rollout_steps=16, batch_size=32, epochs=1)


def make_job(out: Path, steps: int, **changes: int) -> TrainJob:
    (task,) = select_tasks("atari-freeway")
    return TrainJob(task, "ppo-cpu", out, steps=steps, **changes)


def test_a_training_ends_in_the_store_and_its_expert_plays(tmp_path: Path) -> None:
    job = make_job(tmp_path, 128)
    expert = train(job, TINY, save_every_s=0)
    assert expert.record.training["steps"] == 128
    assert not job.folder.exists()
    short = dataclasses.replace(job.task, max_steps=20)
    first, second = (
        [e.actions.tolist() for e in rollout(short, make_policy(short, expert), [5, 6, 7], num_envs=n)] for n in (1, 3)
    )
    assert first == second
    assert np.concatenate(first).std() > 0


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Has a training die once it has written so many checkpoints; gives the list of steps at which it wrote any."""
    saved: list[int] = []
    save = module.Training.save

    def kill_after(num_checkpoints: int) -> list[int]:
        def save_and_die(self: module.Training, path: Path) -> None:
            save(self, path)
            saved.append(self.steps)
            if len(saved) == num_checkpoints:
                raise KilledError

        monkeypatch.setattr(module.Training, "save", save_and_die)
        return saved

    return kill_after


def test_a_killed_training_resumes_from_its_checkpoint(
    tmp_path: Path, killed_after: Callable[[int], list[int]]
) -> None:
    job = make_job(tmp_path, 256)
    saved = killed_after(2)
    with pytest.raises(KilledError):
        train(job, TINY, save_every_s=0)
    assert (job.folder / CHECKPOINT).exists()
    expert = train(job, TINY, save_every_s=0)
    assert saved == [64, 128, 192, 256]
    assert expert.record.training["steps"] == 256


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(
    tmp_path: Path, killed_after: Callable[[int], list[int]]
) -> None:
    killed_after(1)
    with pytest.raises(KilledError):
        train(make_job(tmp_path, 128), TINY, save_every_s=0)
    with pytest.raises(UserError, match=r"begun with another recipe.*remove"):
        train(make_job(tmp_path, 256), dataclasses.replace(TINY, hidden=32))
    (make_job(tmp_path, 256).folder / CHECKPOINT).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"damaged.*remove"):
        train(make_job(tmp_path, 256), TINY)


def test_the_queue_keeps_the_state_so_a_larger_budget_continues(tmp_path: Path) -> None:
    small, large = (dataclasses.replace(make_job(tmp_path, steps), is_queued=True) for steps in (64, 192))
    train(small, TINY)
    assert train(large, TINY).record.training["steps"] == 192


def test_the_best_policy_of_an_unfinished_training_can_be_exported(tmp_path: Path) -> None:
    job = dataclasses.replace(make_job(tmp_path, 64), is_queued=True)
    train(job, TINY)
    with pytest.raises(UserError, match="no policy whose return is known"):
        export(job, TINY)
    training = module._resume(job, TINY)
    training.note_games([1.0] * 100)
    training.best_return = 3.0
    training.save(job.folder / CHECKPOINT)
    before = (job.folder / CHECKPOINT).read_bytes()
    assert export(job, TINY).record.training["best_return"] == 3.0
    assert (job.folder / CHECKPOINT).read_bytes() == before


def test_a_training_that_is_asked_to_stop_leaves_a_checkpoint_and_no_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, 10**6)
    iterate = module.Learner.iterate

    def iterate_and_stop(self: module.Learner, games: module.TrainingGames, learning_rate: float) -> list[float]:
        STOP.set()
        return iterate(self, games, learning_rate)

    monkeypatch.setattr(module.Learner, "iterate", iterate_and_stop)
    try:
        with pytest.raises(TrainingStoppedError, match="at 64 steps"):
            train(job, TINY)
    finally:
        STOP.clear()
    assert module._resume(job, TINY).steps == 64
    assert not list((tmp_path / "experts").glob("*/ppo-cpu-*"))
