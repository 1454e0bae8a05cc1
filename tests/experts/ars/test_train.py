"""Augmented random search: what an update does, and a training that is stored, resumed and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experts.ars import train as module
from experts.ars.recipes import ARSRecipe
from experts.ars.search import Search
from experts.ars.train import CHECKPOINT, export, train
from experts.registry import make_policy
from experts.training import Budget, TrainingStoppedError, TrainJob
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.errors import UserError
from pipeline.runtime.heartbeat import STOP
from pipeline.storage.statistics import Moments

TINY = ARSRecipe(Budget(2_000, None), directions=2, top=1, check_steps=200, check_episodes=2)


def make_job(out: Path, steps: int, **changes: int) -> TrainJob:
    (task,) = select_tasks("mujoco-reacher")
    return TrainJob(task, "ars", out, steps=steps, **changes)


def test_an_update_follows_the_better_of_two_opposite_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = select_tasks("mujoco-reacher")
    recipe = dataclasses.replace(TINY, normalise=False, directions=3, top=2, step_size=0.5, noise=0.1)
    search = Search(task, recipe, 0)
    directions = np.random.default_rng(0).standard_normal((3, *search.weights.shape))
    returns = np.array([5.0, -1.0, 0.0, 1.0, 2.0, 0.5])  # of the directions added, then of those subtracted
    played: list[np.ndarray] = []

    class Episode:
        def __init__(self, total_reward: float) -> None:
            self.total_reward = total_reward

        def __len__(self) -> int:
            return 50

    def play(policies: list[tuple[np.ndarray, np.ndarray]], adds_to_moments: bool) -> list[Episode]:
        played.extend(weights for weights, _ in policies)
        return list(map(Episode, returns))

    monkeypatch.setattr(search, "_play", play)
    search.iterate()
    assert np.allclose(played, 0.1 * np.concatenate([directions, -directions]))
    # The best two of three directions are the first (5) and the second (2).
    deviation = np.array([5.0, -1.0, 1.0, 2.0]).std()
    assert np.allclose(search.weights, 0.5 / (2 * deviation) * (4.0 * directions[0] - 3.0 * directions[1]))


def test_the_map_of_raw_observations_is_that_of_normalised_ones() -> None:
    search = Search(select_tasks("mujoco-reacher")[0], TINY, 0)
    rows = np.random.default_rng(1).normal(2.0, 3.0, (40, len(search.weights[0])))
    search._moments = Moments.of(rows)
    weights = np.random.default_rng(2).normal(size=search.weights.shape)
    scaled, offset = search.policy(weights)
    assert np.allclose(rows @ scaled.T + offset, (rows - rows.mean(0)) / rows.std(0) @ weights.T)


def test_it_learns_to_balance() -> None:
    search = Search(select_tasks("mujoco-pendulum")[0], dataclasses.replace(TINY, directions=8, top=4), 0)
    while search.steps < 30_000 and (search.best_return or 0) < 500:
        search.iterate()
    assert search.best_return is not None
    assert search.best_return > 500


def test_a_training_ends_in_the_store_and_its_expert_plays(tmp_path: Path) -> None:
    job = make_job(tmp_path, 1_000)
    expert = train(job, TINY)
    assert expert.record.training["steps"] >= 1_000
    assert expert.record.revision.startswith("ars-")
    assert not job.folder.exists()
    first, second = (
        [e.actions.tolist() for e in rollout(job.task, make_policy(job.task, expert), [5, 6, 7], num_envs=n)]
        for n in (1, 3)
    )
    assert first == second
    assert np.concatenate(first).std() > 0


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(make_job(tmp_path / "a", 2_000), TINY)
    job = make_job(tmp_path / "b", 2_000)
    save, saved = module._save, []

    def save_and_die(search: Search, path: Path) -> None:
        save(search, path)
        saved.append(search.steps)
        if len(saved) in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(job, TINY, save_every_s=0)
    resumed = train(job, TINY, save_every_s=0)
    assert len(set(saved)) > 4
    assert resumed.record.revision == undisturbed.record.revision
    assert resumed.record.training["steps"] == undisturbed.record.training["steps"]


def test_a_training_that_is_asked_to_stop_leaves_a_checkpoint_and_no_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, iterate = make_job(tmp_path, 10**6), Search.iterate

    def iterate_and_stop(self: Search) -> None:
        iterate(self)
        if self.returns:
            STOP.set()

    monkeypatch.setattr(Search, "iterate", iterate_and_stop)
    try:
        with pytest.raises(TrainingStoppedError):
            train(job, TINY)
    finally:
        STOP.clear()
    assert (job.folder / CHECKPOINT).exists()
    before = (job.folder / CHECKPOINT).read_bytes()
    assert export(job, TINY).record.training["steps"] > 0
    assert (job.folder / CHECKPOINT).read_bytes() == before


def test_what_cannot_be_resumed_or_exported_is_refused(tmp_path: Path) -> None:
    job = dataclasses.replace(make_job(tmp_path, 200), is_queued=True)
    with pytest.raises(UserError, match="no policy whose return is known"):
        export(job, TINY)
    train(job, TINY)
    with pytest.raises(UserError, match=r"begun with another recipe.*remove"):
        train(dataclasses.replace(job, steps=400), dataclasses.replace(TINY, noise=0.5))
    assert train(dataclasses.replace(job, steps=600), TINY).record.training["steps"] >= 600
    (job.folder / CHECKPOINT).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"damaged.*remove"):
        train(dataclasses.replace(job, steps=900), TINY)
