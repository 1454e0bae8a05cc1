from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from tests.fakes import FAKE_TASKS
from trainer.config import TrainConfig
from trainer.train import train
from trainer.training.logs import read_log
from trainer.training.tracking import check_trackers

MakeConfig = Callable[..., TrainConfig]


def test_tensorboard_shows_the_curve_of_the_log_once_also_after_going_on(
    make_config: MakeConfig, run_dir: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_config(track="tensorboard"), FAKE_TASKS)
    (run_dir / "train" / "manifest.json").unlink()
    last = max((run_dir / "train" / "checkpoints").iterdir())
    last.rename(run_dir / "train" / "lost")  # as if killed before it was written
    train(make_config(track="tensorboard"), FAKE_TASKS)

    events = EventAccumulator(str(run_dir / "train" / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    logged = {row["step"]: row["loss"] for row in read_log(run_dir / "train" / "log.jsonl")}
    assert len(events.Scalars("loss")) == len(logged) == 12
    assert shown == pytest.approx(logged, rel=1e-6)
    assert [event.step for event in events.Scalars("validation_loss")] == [4, 8, 12]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_are_told_settings_and_every_step(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    told: list[tuple[str, Any]] = []

    class Fake(types.ModuleType):
        """What a tracker is asked for; W&B's ``init`` gives a run with the same words."""

        def init(self, **settings: Any) -> Fake:
            told.append(("init", settings))
            return self

        def log(self, values: dict[str, float], step: int) -> None:
            told.append(("log", (step, values["loss"])))

        def finish(self) -> None:
            told.append(("finish", None))

    fake = Fake(name)
    fake.__spec__ = ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setenv("TRACKIO_DIR", "")
    train(make_config(track=name), FAKE_TASKS)
    assert told[0][1]["name"] == run_dir.name
    assert told[0][1]["config"]["learning_rate"] == 1e-3
    logged = [(row["step"], row["loss"]) for row in read_log(run_dir / "train" / "log.jsonl")]
    assert [value for word, value in told if word == "log"] == logged
    assert told[-1][0] == "finish"


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_work(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--track tensorbord is unknown; allowed: tensorboard, trackio, wandb"):
        train(make_config(track="tensorbord"), FAKE_TASKS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track wandb needs a package: pip install wandb"):
        check_trackers(["wandb"])
    assert not (run_dir / "train").exists()
