from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from tests.fakes import FAKE_TASKS
from trainer.config import TrainConfig
from trainer.train import train
from trainer.training.budget import TrainingBudget
from trainer.training.logs import TrainManifest, read_log
from trainer.training.run import TrainingRun

MakeConfig = Callable[..., TrainConfig]


class KilledError(Exception):
    """Stands for a kill: nothing in the code handles it."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock by which an optimiser step takes two seconds, and nothing else any time. It kills at step ``last``."""
    clock = SimpleNamespace(now=100.0, last=None)
    one_step = TrainingRun.one_step

    def step_of_two_seconds(run: TrainingRun) -> dict[str, Any]:
        if run.progress.step == clock.last:
            raise KilledError
        clock.now += 2
        return one_step(run)

    monkeypatch.setattr(TrainingRun, "one_step", step_of_two_seconds)
    monkeypatch.setattr("trainer.training.run.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def rates(out: Path) -> list[float]:
    return [row["learning_rate"] for row in read_log(out / "train" / "log.jsonl")]


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    manifest = TrainManifest.read(RunLayout(out).train_manifest)
    return load_file(out / manifest.checkpoint / "model.safetensors")


def test_a_training_ends_when_its_time_is_over_and_the_learning_rate_follows_the_time(
    make_config: MakeConfig, run_dir: Path, clock: SimpleNamespace
) -> None:
    train(make_config(seconds=13.0, warmup_steps=2, learning_rate=0.01), FAKE_TASKS)
    manifest = TrainManifest.read(RunLayout(run_dir).train_manifest)
    assert (manifest.steps, manifest.train_seconds) == (7, 14.0)
    found = rates(run_dir)
    assert found[0] == pytest.approx(0.005)
    assert found[1:] == sorted(found[1:], reverse=True)
    assert 0.001 < found[-1] < 0.0012


def test_a_training_that_was_killed_has_the_rest_of_its_time_and_equals_an_undisturbed_one(
    make_config: MakeConfig, run_dir: Path, clock: SimpleNamespace
) -> None:
    config = make_config(seconds=13.0, warmup_steps=2)
    train(config, FAKE_TASKS)
    undisturbed, weights = rates(run_dir), final_weights(run_dir)
    (run_dir / "train").rename(run_dir / "undisturbed")
    clock.last = 5
    with pytest.raises(KilledError):
        train(config, FAKE_TASKS)
    clock.now, clock.last = 5000.0, None
    train(config, FAKE_TASKS)
    assert rates(run_dir) == undisturbed
    resumed = final_weights(run_dir)
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_the_learning_rate_of_a_number_of_steps_rises_to_its_peak_and_falls_to_a_tenth() -> None:
    budget = TrainingBudget.of(TrainConfig(steps=100, learning_rate=1.0, warmup_steps=10))
    found = [budget.learning_rate(step, seconds=1e9) for step in range(101)]
    assert found[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.55)
    assert found[100] == pytest.approx(0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UserError, match=r"--seconds is .*; it must be a number above 0"):
        TrainConfig(seconds=seconds)
