from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.seeds import seed_range
from tests.fakes import FAKE_TASKS, num_steps, reward_at
from tests.trainer.conftest import write_references
from trainer.checkpoint import latest_checkpoint, load_progress
from trainer.config import TrainConfig
from trainer.evaluation import short
from trainer.train import train
from trainer.training.logs import read_log
from trainer.training.run import TrainingRun

MakeConfig = Callable[..., TrainConfig]
ADAPTIVE = {"sampling": "adaptive", "sampling_every": 4, "sampling_episodes": 3}


def test_every_measurement_plays_its_own_seeds_of_every_task_and_what_it_says_is_what_is_drawn(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both tasks earn what the seed says whatever is done, of random's 1 to the expert's 10 here.
    write_references(run_dir)
    played: list[tuple[str, int]] = []
    rollout_parts = short.rollout_parts

    def noted(*args: Any, **kwargs: Any) -> Any:
        for task, episode in rollout_parts(*args, **kwargs):
            played.append((task.name, episode.seed))
            yield task, episode

    monkeypatch.setattr(short, "rollout_parts", noted)
    train(make_config(steps=10, **ADAPTIVE), FAKE_TASKS)
    first = seed_range("sampling")[0]
    assert sorted(played) == [(task.name, first + k) for task in FAKE_TASKS for k in range(6)]
    rows = [row for row in read_log(run_dir / "train" / "log.jsonl") if "sampling_seconds" in row]
    assert [row["step"] for row in rows] == [4, 8]
    for task in FAKE_TASKS:
        returns = [sum(reward_at(task, first + k, t) for t in range(num_steps(first + k))) for k in range(3)]
        need = min(1.0, max(0.0, 1 - (sum(returns) / 3 - 1) / 9))
        assert rows[0][f"need/{task.name}"] == pytest.approx(1 + 0.7 * (need - 1), abs=1e-6)
    assert rows[0]["share/fake-count"] + rows[0]["share/toy-grid"] == pytest.approx(1)
    assert 0 < rows[0]["sampling_seconds"] < rows[1]["sampling_seconds"]
    checkpoint = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert checkpoint is not None
    state = load_progress(checkpoint).sampling
    assert state is not None and state.step == 8 and state.updates == 2
    assert state.shares == [rows[1][f"share/{task.name}"] for task in FAKE_TASKS]
    assert sum(state.drawn) == 8 * 2


def test_the_loss_of_an_untrained_network_is_what_later_losses_are_measured_by(
    make_config: MakeConfig, run_dir: Path
) -> None:
    train(make_config(sampling="adaptive-loss", sampling_every=4, learning_rate=3e-3, steps=40), FAKE_TASKS)
    rows = [row for row in read_log(run_dir / "train" / "log.jsonl") if "need/toy-grid" in row]
    assert [row["step"] for row in rows] == list(range(4, 40, 4))
    needs = [[row[f"need/{task.name}"] for task in FAKE_TASKS] for row in rows]
    assert all(0 < need <= 1 for pair in needs for need in pair)
    assert min(needs[-1]) < 0.9 and needs[-1] != needs[0]
    shares = [row["share/toy-grid"] for row in rows]
    assert len(set(shares)) == len(shares) and all(0.125 <= share <= 0.875 for share in shares)


def test_the_time_of_measuring_is_part_of_the_time_of_training(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(player: Any, *args: Any) -> dict[int, float]:
        time.sleep(0.6)
        return {0: 0.5, 1: 0.5}

    write_references(run_dir)
    monkeypatch.setattr(short.ShortEvaluation, "__call__", slow)
    train(make_config(steps=1, seconds=1.0, **{**ADAPTIVE, "sampling_every": 1}), FAKE_TASKS)
    rows = read_log(run_dir / "train" / "log.jsonl")
    assert len(rows) == 2 and rows[-1]["sampling_seconds"] >= 1.2 and rows[-1]["seconds"] >= 1.2


def test_with_trained_weights_the_first_measurement_comes_before_the_first_step(
    make_config: MakeConfig, run_dir: Path
) -> None:
    write_references(run_dir)
    train(make_config(), FAKE_TASKS)
    (run_dir / "train").rename(run_dir / "before")
    start = latest_checkpoint(run_dir / "before" / "checkpoints")
    train(make_config(steps=2, start=start, **ADAPTIVE), FAKE_TASKS)
    checkpoint = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert checkpoint is not None
    state = load_progress(checkpoint).sampling
    assert state is not None and (state.step, state.updates, state.progress) == (0, 1, [0.0, 0.0])


def test_an_episode_that_does_not_count_is_no_score_and_a_task_without_any_keeps_what_is_known(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_references(run_dir)
    rollout_parts = short.rollout_parts

    def rejecting(*args: Any, **kwargs: Any) -> Any:
        for task, episode in rollout_parts(*args, **kwargs):
            is_lost = task.name == "toy-grid"
            yield task, dataclasses.replace(episode, rejected="lost") if is_lost else episode

    monkeypatch.setattr(short, "rollout_parts", rejecting)
    train(make_config(steps=5, **ADAPTIVE), FAKE_TASKS)
    (row,) = [row for row in read_log(run_dir / "train" / "log.jsonl") if "sampling_seconds" in row]
    assert "need/fake-count" in row and "need/toy-grid" not in row
    assert row["share/toy-grid"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "fake-count"}, r"--sampling adaptive chooses between tasks, and there is one: fake-count"),
        ({"sampling": "adaptive-loss", "validation_steps": 0}, "goes by the validation loss; --validation-steps is 0"),
        ({"sampling_episodes": 10**9}, r"more than the 147,483,648 seeds set aside for them; lower it"),
        ({"sampling_every": 0}, "--sampling-every is 0"),
        ({}, r"no measurement of random and expert .* run `jat experts --task fake-count,toy-grid"),
    ],
)
def test_sampling_that_has_nothing_to_go_by_is_refused_before_work(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(TrainingRun, "fit", None)
    with pytest.raises(UserError, match=message):
        train(make_config(**{**ADAPTIVE, **changes}), FAKE_TASKS)
    assert not (run_dir / "train").exists()


def test_other_sampling_in_the_same_folder_is_refused_and_a_run_of_before_there_was_a_choice_goes_on(
    make_config: MakeConfig, run_dir: Path
) -> None:
    train(make_config(), FAKE_TASKS)
    assert "sampling" not in read_json(run_dir / "train" / "identity.json")
    with pytest.raises(UserError, match="sampling was uniform, is adaptive-loss"):
        train(make_config(sampling="adaptive-loss"), FAKE_TASKS)
