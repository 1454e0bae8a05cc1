"""The work of an evaluation's workers: which tasks play together, and what is left when a worker is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.envs.rollout import RolloutPart, rollout, rollout_parts
from pipeline.envs.task import Task
from pipeline.errors import JobFailure, JobsFailedError, UserError
from pipeline.files import read_json
from pipeline.media.film import films_in
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import FIRST_SEED, seeds_of
from tests.fakes import FAKE_COUNT, CountingEnv, DrawnEnv, is_success
from tests.trainer.conftest import TINY, write_references
from trainer.agent import Agent
from trainer.checkpoint import AgentConfig, Checkpoint
from trainer.config import BaseModelConfig, ModelConfig
from trainer.data.arrays import Normaliser
from trainer.data.tokenizer import train_tokenizer
from trainer.evaluation import playing
from trainer.evaluation.evaluate import EvaluateConfig, evaluate
from trainer.evaluation.playing import EvaluateJob, _smaller, in_groups, play_jobs, play_tasks
from trainer.evaluation.results import load_measurement_of, load_scores
from trainer.networks.build import build_model
from trainer.networks.layout import layout_of
from trainer.pretrained.load import save_pretrained

FIRST = FIRST_SEED["evaluate"]
LONGEST = FIRST + 4  # of six steps; all others have fewer
NUM_SEEDS = 9
BASE = BaseModelConfig(hidden_size=32, num_layers=2, num_heads=2, window_steps=3, vocab_size=300)


class NotingEnv(CountingEnv):
    """Notes each seed it begins in a file of the folder that the task's ``env_id`` names."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
        with self.folder.joinpath(f"{self._task.name}.begun").open("a") as file:
            file.write(f"{seed}\n")
        return super().reset(seed=seed, options=options)

    @property
    def folder(self) -> Path:
        return Path(self._task.env_id)


class KillingEnv(NotingEnv):
    """``kill -9`` for its process in the last step of the longest episode, the first time."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed == LONGEST and self.t == 5 and not (mark := self.folder / "killed").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class DeadlyEnv(NotingEnv):
    """``kill -9`` for its process in every last step of the longest episode."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed == LONGEST and self.t == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class HangingEnv(NotingEnv):
    """Never returns from the last step of the longest episode, the first time."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed == LONGEST and self.t == 5 and not (mark := self.folder / "hung").exists():
            mark.touch()
            time.sleep(3600)
        return super().step(action)


def make_hanging(task: Task) -> HangingEnv:
    return HangingEnv(task)


def make_noting(task: Task) -> NotingEnv:
    return NotingEnv(task)


def make_killing(task: Task) -> KillingEnv:
    return KillingEnv(task)


def make_deadly(task: Task) -> DeadlyEnv:
    return DeadlyEnv(task)


class DrawnNotingEnv(NotingEnv, DrawnEnv):
    """Notes each seed it begins, and can be drawn."""


def make_drawn_noting(task: Task) -> DrawnNotingEnv:
    return DrawnNotingEnv(task)


def make_nothing(task: Task) -> CountingEnv:
    raise RuntimeError("its package is broken")


def begun(folder: Path, task: Task) -> list[int]:
    """The seeds that were begun, as distances from the first."""
    return [int(line) - FIRST for line in (folder / f"{task.name}.begun").read_text().split()]


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Three that look alike."""
    names = ("fake-one", "fake-two", "fake-three")
    return [replace(FAKE_COUNT, name=name, env_id=str(tmp_path), factory=make_noting) for name in names]


def make_checkpoint(tasks: list[Task], config: BaseModelConfig | ModelConfig = BASE) -> Checkpoint:
    """An untrained network, and a normaliser for each task."""
    torch.manual_seed(0)
    layouts = [layout_of(task, 4) for task in tasks]
    agent = AgentConfig(config, 4, 4, [task.name for task in tasks], layouts, "", 1, 1)
    generator = np.random.default_rng(0)
    normalisers = {
        task.name: Normaliser(
            generator.normal(size=4).astype(np.float32), generator.uniform(1, 9, 4).astype(np.float32), 2.0 + index
        )
        for index, task in enumerate(tasks)
    }
    return Checkpoint(build_model(config, layouts), train_tokenizer(["go"], 300), normalisers, agent)


@pytest.fixture
def config(tmp_path: Path, tasks: list[Task]) -> EvaluateConfig:
    save_pretrained(make_checkpoint(tasks), tmp_path / "agent", "an agent")
    write_references(tmp_path, tasks=tasks)
    return EvaluateConfig(out=tmp_path, checkpoint=tmp_path / "agent", episodes=NUM_SEEDS, workers=1, video_episodes=0)


def job_of(config: EvaluateConfig, tasks: Sequence[Task]) -> EvaluateJob:
    """All tasks in one lockstep."""
    assert config.checkpoint is not None
    return EvaluateJob(
        tasks=tuple(tasks), checkpoint=config.checkpoint, revision="now", num_episodes=config.episodes, temperature=1.0,
        context_steps=None, filmed=(), films=config.out / "films",
        directory=config.out / "evaluation", num_threads=1,
    )  # fmt: skip


def measurements(config: EvaluateConfig) -> dict[str, Measurement]:
    return {path.stem: Measurement(**read_json(path)) for path in (config.out / "evaluation").glob("fake-*.json")}


@pytest.mark.parametrize("model_config", [BASE, TINY], ids=["base", "jat"])
def test_tasks_played_together_are_played_as_each_alone(
    model_config: BaseModelConfig | ModelConfig, tasks: list[Task]
) -> None:
    checkpoint = make_checkpoint(tasks, model_config)
    seeds = [(task, [7 + index, 30, 41, 52]) for index, task in enumerate(tasks)]
    agent = Agent(checkpoint, [task for task in tasks for _ in range(3)])
    together = list(rollout_parts([RolloutPart(task, chosen, 3) for task, chosen in seeds], agent))
    first = []
    for task, chosen in seeds:
        alone = list(rollout(task, Agent(checkpoint, [task]), chosen, 1))
        found = sorted((episode for where, episode in together if where == task), key=lambda e: chosen.index(e.seed))
        assert [episode.actions.tobytes() for episode in found] == [episode.actions.tobytes() for episode in alone]
        first.append(found[1].actions)
    # The network tells them apart.
    assert np.abs(first[0] - first[1]).max() > 0.01


def test_a_failure_is_filmed_after_the_first_episodes_and_once(config: EvaluateConfig, tasks: list[Task]) -> None:
    task = replace(tasks[0], factory=make_drawn_noting)
    successes = [is_success(seed) for seed in seeds_of("evaluate", NUM_SEEDS)]
    first_failure, first_success = successes.index(False), successes.index(True)
    job = replace(job_of(config, [task]), filmed=[FIRST + first_success])
    (measurement,) = play_tasks(job)
    films = films_in(job.films / task.name)
    (failed,) = films.keys() - {FIRST + first_success}
    assert films[failed].success is False and not successes[failed - FIRST]
    # The same seed gives the same episode.
    assert films[failed].total_reward == measurement.returns[failed - FIRST]
    assert films[failed].total_reward == min(
        earned for earned, success in zip(measurement.returns, successes, strict=True) if not success
    )
    assert sorted(begun(config.out, task)) == sorted([*range(NUM_SEEDS), failed - FIRST])
    play_tasks(job)
    assert len(begun(config.out, task)) == NUM_SEEDS + 1
    # Where a failure is among the first ones, no more is played.
    other = replace(job, filmed=[FIRST + first_failure], films=config.out / "others", directory=config.out / "other")
    play_tasks(other)
    assert list(films_in(other.films / task.name)) == [FIRST + first_failure]


def test_without_films_none_is_made_of_a_failure(config: EvaluateConfig, tasks: list[Task]) -> None:
    play_tasks(job_of(config, tasks[:1]))
    assert not (config.out / "films").exists()
    assert len(begun(config.out, tasks[0])) == NUM_SEEDS


def test_tasks_of_one_layout_share_a_lockstep_of_bounded_size() -> None:
    assert in_groups([("a", 10)] * 12, workers=1) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert in_groups([("a", 100)] * 5, workers=1) == [[0, 1], [2, 3], [4]]
    assert in_groups([("a", 10), ("b", 10), ("a", 10), ("b", 10)], workers=1) == [[0, 2], [1, 3]]
    # A task that is played, and only not written, takes no place; a task with more than its share is alone.
    assert in_groups([("a", 0), ("a", 32), ("a", 1)], workers=1) == [[0], [1], [2]]
    assert in_groups([], workers=1) == []


def test_with_many_workers_each_has_something_to_do() -> None:
    groups = in_groups([("a", 10)] * 12, workers=6)
    assert groups == [[index] for index in range(12)]


@pytest.mark.usefixtures("one_worker")
def test_a_killed_worker_costs_only_the_episodes_that_were_not_over(
    config: EvaluateConfig, tasks: list[Task], tmp_path: Path
) -> None:
    """The longest episode holds back none of those behind it, and none of the other task's."""
    killed = [replace(tasks[0], factory=make_killing), tasks[1]]
    ((_, found),) = play_jobs([job_of(config, killed)], 1)
    assert (tmp_path / "killed").exists()
    assert begun(tmp_path, killed[0]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 4]
    assert begun(tmp_path, killed[1]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 4]
    undisturbed = play_tasks(replace(job_of(config, tasks[:2]), directory=tmp_path / "again"))
    assert [replace(measurement, revision="") for measurement in found] == [
        replace(measurement, revision="") for measurement in undisturbed
    ]
    assert [measurement.seeds for measurement in found] == [seeds_of("evaluate", 9)] * 2
    assert not list((config.out / "evaluation").glob("*.jsonl"))


@pytest.mark.usefixtures("one_worker")
def test_a_worker_that_hangs_costs_no_more_than_one_that_is_killed(
    config: EvaluateConfig, tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "STALL_S", 10.0)  # a worker must have loaded all it needs by then
    hanging = replace(tasks[0], factory=make_hanging)
    ((_, (found,)),) = play_jobs([job_of(config, [hanging])], 1)
    assert found.seeds == seeds_of("evaluate", 9)
    assert begun(tmp_path, hanging) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 4]


@pytest.mark.usefixtures("one_worker")
def test_a_seed_that_no_worker_outlives_is_rejected_and_costs_nothing_else(
    config: EvaluateConfig, tasks: list[Task]
) -> None:
    deadly = [replace(tasks[0], factory=make_deadly), *tasks[1:]]
    scores = evaluate(config, deadly)
    assert [(score.task, score.num_episodes) for score in scores] == [
        ("fake-one", 8), ("fake-two", 9), ("fake-three", 9),
    ]  # fmt: skip
    (reason,) = scores[0].rejected
    assert reason.startswith("quarantined: its worker died")
    measured = load_measurement_of(config.out, "fake-one")
    assert measured is not None
    assert [reason is None for reason in measured.rejected] == [index != 4 for index in range(9)]
    assert evaluate(config, deadly) == scores  # nothing is played again


@pytest.mark.usefixtures("one_worker")
def test_a_task_that_fails_costs_no_other_one_and_those_are_scored(config: EvaluateConfig, tasks: list[Task]) -> None:
    broken = [replace(tasks[0], factory=make_nothing), *tasks[1:]]
    with pytest.raises(JobsFailedError, match=r"1 task failed; the others are played\. First: playing fake-one"):
        evaluate(config, broken)
    assert [score.task for score in load_scores(config.out)] == ["fake-two", "fake-three"]


def test_what_always_loses_its_workers_is_given_up(config: EvaluateConfig, tasks: list[Task]) -> None:
    """Whatever it does: when each seed kills, and when there is none to play any more."""
    jobs, tried = [job_of(config, tasks[:1])], 0
    while jobs:
        jobs, tried = _smaller(JobFailure(jobs[0], "its worker died", is_worker_lost=True)), tried + 1
    assert tried == 2 + playing.MAX_LOST
    played = job_of(replace(config, episodes=3), tasks[:1])
    play_tasks(played)
    assert _smaller(JobFailure(played, "its worker died", is_worker_lost=True)) == []


class CutOffError(Exception):
    """Stands for a kill: nothing in the code handles it."""


def cut_off(config: EvaluateConfig, tasks: Sequence[Task], after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate until so many episodes are over."""
    original, count = playing.TaskResults.add, 0

    def add(self: Any, episode: Any) -> None:
        nonlocal count
        original(self, episode)
        count += 1
        if count == after:
            raise CutOffError

    with monkeypatch.context() as patched, pytest.raises(CutOffError):
        patched.setattr(playing.TaskResults, "add", add)
        evaluate(config, tasks, is_worker=True)


def test_what_was_cut_off_goes_on_in_another_run(
    config: EvaluateConfig, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(config, tasks[:1], 7, monkeypatch)
    journal = config.out / "evaluation" / "fake-one.jsonl"
    with journal.open("a") as file:
        file.write('{"seed": 1800000004, "total_re')  # a line that a kill cut off
    evaluate(config, tasks[:1], is_worker=True)
    # Over were the shortest: of one, two and three steps, and one of four.
    again = begun(config.out, tasks[0])[NUM_SEEDS:]
    assert len(again) == 2
    assert 4 in again
    assert not journal.exists()
    measured = measurements(config)["fake-one"]
    assert measured.seeds == seeds_of("evaluate", NUM_SEEDS)
    evaluate(replace(config, name="again"), tasks[:1], is_worker=True)
    assert load_measurement_of(config.out, "fake-one", "again") == measured


def test_what_was_cut_off_is_enough_for_fewer_episodes(
    config: EvaluateConfig, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(config, tasks[:1], 8, monkeypatch)  # all but the longest
    (score,) = evaluate(replace(config, episodes=3), tasks[:1], is_worker=True)
    assert score.num_episodes == 4
    assert len(begun(config.out, tasks[0])) == NUM_SEEDS
    (score,) = evaluate(config, tasks[:1], is_worker=True)
    assert score.num_episodes == NUM_SEEDS
    assert begun(config.out, tasks[0])[NUM_SEEDS:] == [4]


def test_what_was_cut_off_with_other_settings_is_neither_mixed_nor_lost(
    config: EvaluateConfig, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(config, tasks[:1], 7, monkeypatch)
    cold = replace(config, temperature=0.0)
    with pytest.raises(UserError, match=r"results of 1 task played otherwise, such as fake-one: .* at temperature 1"):
        evaluate(cold, tasks[:1], is_worker=True)
    evaluate(replace(cold, replace=True), tasks[:1], is_worker=True)
    assert begun(config.out, tasks[0])[NUM_SEEDS:] == list(range(NUM_SEEDS))
