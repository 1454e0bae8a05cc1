from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.files import exclusive, explain_store_error, read_json, write_json
from pipeline.run_layout import RunLayout
from pipeline.stopping import stop_signals
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import write_references
from trainer.checkpoint import latest_checkpoint, load_checkpoint
from trainer.config import RECIPES, TrainConfig
from trainer.data.sources import open_sources
from trainer.train import train
from trainer.training.logs import LONGEST_ROW, last_row, read_log
from trainer.training.run import TrainingRun

MakeConfig = Callable[..., TrainConfig]


class KilledError(Exception):
    """Stands for a kill: nothing in the code handles it."""


def train_and_die_at(config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until ``step`` optimiser steps are done, then end as a kill would, between two checkpoints."""
    one_step = TrainingRun.one_step

    def dying_step(run: TrainingRun) -> dict[str, Any]:
        if run.progress.step == step:
            raise KilledError
        return one_step(run)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(TrainingRun, "one_step", dying_step)
        train(config, FAKE_TASKS)


def curve(out: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "waited_seconds", "sampling_seconds")}
        for row in read_log(out / "train" / "log.jsonl")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling": "adaptive", "sampling_every": 3, "sampling_episodes": 2},
        # The last update before the checkpoint at step 4 is that at 2, the one before the kill at 6.
        {"sampling": "adaptive-loss", "sampling_every": 2},
    ],
    ids=["uniform", "adaptive", "adaptive-loss"],
)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    make_config = partial(make_config, **changes)
    write_references(run_dir)
    train(make_config(), FAKE_TASKS)
    undisturbed = curve(run_dir)
    final = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert final is not None
    weights = load_file(final / "model.safetensors")
    (run_dir / "train").rename(run_dir / "train-undisturbed")

    train_and_die_at(make_config(), 6, monkeypatch)
    assert [row["step"] for row in curve(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert not RunLayout(run_dir).train_manifest.exists()
    # A line that the kill cut off.
    with (run_dir / "train" / "log.jsonl").open("a") as handle:
        handle.write('{"loss": 0.')
    train(make_config(), FAKE_TASKS)
    assert curve(run_dir) == undisturbed
    resumed = load_file(run_dir / "train" / "checkpoints" / final.name / "model.safetensors")
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


@pytest.fixture
def undisturbed(make_config: MakeConfig, run_dir: Path) -> Callable[[], None]:
    """A run that nothing interrupts was trained; the function checks that the one in its place has ended like it."""
    train(make_config(), FAKE_TASKS)
    before = run_dir / "undisturbed"
    before.mkdir()
    (run_dir / "train").rename(before / "train")
    expected = curve(before)

    def check() -> None:
        assert curve(run_dir) == expected
        kept, other = (sorted((out / "train" / "checkpoints").iterdir()) for out in (before, run_dir))
        assert [path.name for path in kept] == [path.name for path in other]
        weights, resumed = (load_file(paths[-1] / "model.safetensors") for paths in (kept, other))
        assert resumed.keys() == weights.keys()
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)
        assert not list((run_dir / "train" / "resume").iterdir())

    return check


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_costs_no_step_and_the_resumed_run_equals_an_undisturbed_one_bit_for_bit(
    make_config: MakeConfig,
    run_dir: Path,
    undisturbed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    one_step = TrainingRun.one_step

    def interrupted_step(run: TrainingRun) -> dict[str, Any]:
        if run.progress.step == 5:
            os.kill(os.getpid(), number)
        return one_step(run)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)) as ended, stop_signals():
        patch.setattr(TrainingRun, "one_step", interrupted_step)
        train(make_config(), FAKE_TASKS)
    assert ended.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    # Step 6 is none to keep, and is no point of the validation curve.
    assert [path.name for path in (run_dir / "train" / "resume").iterdir()] == ["step-00000006"]
    assert [path.name for path in (run_dir / "train" / "checkpoints").iterdir()] == ["step-00000004"]
    assert [row["step"] for row in curve(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert not RunLayout(run_dir).train_manifest.exists()
    train(make_config(), FAKE_TASKS)
    undisturbed()


def test_a_kill_costs_no_more_than_the_minutes_between_two_checkpoints_whatever_the_step(
    make_config: MakeConfig, run_dir: Path, undisturbed: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_and_die_at(make_config(checkpoint_minutes=1e-9), 7, monkeypatch)
    assert [path.name for path in (run_dir / "train" / "resume").iterdir()] == ["step-00000007"]
    steps: list[int] = []
    one_step = TrainingRun.one_step

    def noted_step(run: TrainingRun) -> dict[str, Any]:
        steps.append(run.progress.step)
        return one_step(run)

    monkeypatch.setattr(TrainingRun, "one_step", noted_step)
    train(make_config(), FAKE_TASKS)
    assert steps[0] == 7
    undisturbed()


def test_a_full_disk_is_what_the_error_says_and_the_last_checkpoint_stays(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    train_and_die_at(make_config(), 5, monkeypatch)
    monkeypatch.setattr("trainer.checkpoint.save_file", full)
    with pytest.raises(OSError) as raised:
        train(make_config(), FAKE_TASKS)
    assert raised.value.errno == errno.ENOSPC
    explained = explain_store_error(raised.value)
    assert explained is not None and "No space left on device; what was made stays: make room" in explained[0]
    assert [path.name for path in (run_dir / "train" / "checkpoints").iterdir()] == ["step-00000004"]


def test_the_loss_falls_on_data_that_can_be_learned(make_config: MakeConfig, run_dir: Path) -> None:
    train(make_config(steps=120, learning_rate=3e-3, checkpoint_every=120), FAKE_TASKS)
    rows = curve(run_dir)
    for name in ("action_loss/fake", "action_loss/toy"):
        losses = [row[name] for row in rows if name in row]
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), name


def test_a_finished_run_is_not_trained_again(make_config: MakeConfig, run_dir: Path) -> None:
    train(make_config(), FAKE_TASKS)
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "train").rglob("*")}
    train(make_config(), FAKE_TASKS)
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "train").rglob("*")} == before


def test_the_manifest_tells_what_was_trained(make_config: MakeConfig, run_dir: Path) -> None:
    train(make_config(), FAKE_TASKS)
    manifest = read_json(RunLayout(run_dir).train_manifest)
    rows = curve(run_dir)
    assert manifest["steps"] == len(rows) == 12
    assert manifest["trained_timesteps"] == rows[-1]["timesteps"]
    assert manifest["padding_share"] == pytest.approx(1 - rows[-1]["timesteps"] / rows[-1]["padded_timesteps"])
    checkpoint = load_checkpoint(run_dir / manifest["checkpoint"])
    assert checkpoint.config.step == 12
    assert checkpoint.config.tasks == ["fake-count", "toy-grid"]
    assert manifest["num_parameters"] == sum(p.numel() for p in checkpoint.model.parameters())


def test_only_the_newest_checkpoints_stay(make_config: MakeConfig, run_dir: Path) -> None:
    train(make_config(checkpoint_every=3, keep_checkpoints=2), FAKE_TASKS)
    names = sorted(path.name for path in (run_dir / "train" / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000012"]


def test_other_settings_in_the_same_folder_are_refused_by_name(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_and_die_at(make_config(), 5, monkeypatch)
    with pytest.raises(UserError, match=r"another training run: learning_rate was 0.001, is 0.002\."):
        train(make_config(learning_rate=2e-3), FAKE_TASKS)
    # What does not change the result may change.
    train(make_config(keep_checkpoints=1), FAKE_TASKS)


def test_other_data_in_the_same_folder_is_refused(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_and_die_at(make_config(), 5, monkeypatch)
    path = run_dir / "dataset" / "manifest.json"
    manifest = read_json(path)
    path.write_text(json.dumps({**manifest, "digest": "other"}))
    with pytest.raises(UserError, match=r"dataset_digest was \w+, is other"):
        train(make_config(), FAKE_TASKS)


def test_without_a_dataset_the_error_says_what_to_run(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="run `jat collect` and `jat dataset`"):
        train(dataclasses.replace(make_config(), out=tmp_path / "empty"), FAKE_TASKS)


def test_what_was_planned_and_is_not_in_the_dataset_is_told_before_the_training(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_dir / "dataset" / "manifest.json"
    missing = {"fake-count": {"train": 3}, "fake-lost": {"train": 9, "test": 1}, "elsewhere": {"train": 1}}
    write_json(path, read_json(path) | {"missing": missing})

    def killed(job: object) -> int:
        raise KilledError

    monkeypatch.setattr("trainer.train._run", killed)
    lost = dataclasses.replace(FAKE_TASKS[0], name="fake-lost")
    with pytest.raises(KilledError):
        train(make_config(), (*FAKE_TASKS, lost))
    assert "lacks what was planned: fake-count (3 train episodes), fake-lost (all of it); this" in caplog.text
    assert "elsewhere" not in caplog.text


def test_a_task_named_in_full_that_was_not_collected_is_an_error(make_config: MakeConfig, run_dir: Path) -> None:
    from tests.fakes import FAKE_PIXELS

    with pytest.raises(UserError, match="pixel-count is not in"):
        train(make_config(task="fake-count,pixel-count"), (*FAKE_TASKS, FAKE_PIXELS))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(make_config: MakeConfig, run_dir: Path) -> None:
    with pytest.raises(UserError, match="not finite at step"):
        train(make_config(steps=400, learning_rate=1e18, checkpoint_every=1, warmup_steps=1), FAKE_TASKS)
    assert latest_checkpoint(run_dir / "train" / "checkpoints") is not None
    assert not RunLayout(run_dir).train_manifest.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps is 0"),
        ({"context_steps": 5}, "needs 10 positions, --model.max-positions is 8"),
        ({"batch_steps": 3}, "--batch-steps 3 holds no window"),
    ],
)
def test_impossible_settings_are_refused_before_work(
    make_config: MakeConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_config(**changes)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"max_discrete_size": 11}, "toy-grid has 10 integers per step, 6 text tokens included"),
        ({"discrete_encoder": "cells"}, "toy-grid is no grid world with a mission"),
        ({"max_continuous_size": 4}, "fake-count needs 5 continuous numbers per step"),
    ],
)
def test_a_network_that_a_task_does_not_fit_is_refused_by_name(
    make_config: MakeConfig, model: dict[str, Any], message: str
) -> None:
    config = make_config()
    with pytest.raises(UserError, match=message):
        train(dataclasses.replace(config, model=dataclasses.replace(config.model, **model)), FAKE_TASKS)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_config(name: str) -> None:
    assert isinstance(RECIPES[name](), TrainConfig)


def test_the_best_checkpoint_stays_and_the_manifest_names_it(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(TrainingRun, "validate", lambda run: next(losses))
    train(make_config(checkpoint_every=3, keep_checkpoints=1), FAKE_TASKS)
    names = sorted(path.name for path in (run_dir / "train" / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000012"]
    manifest = read_json(RunLayout(run_dir).train_manifest)
    assert manifest["best_checkpoint"] == "train/checkpoints/step-00000006"
    assert manifest["checkpoint"] == "train/checkpoints/step-00000012"


def test_the_validation_loss_is_the_objective_on_the_test_split(make_config: MakeConfig, run_dir: Path) -> None:
    config = make_config(loss_weights={"toy": 2.0, "fake": 1.0}, sampling_weights={"fake": 3.0}, validation_steps=16)
    train(config, FAKE_TASKS)
    rows = [row for row in curve(run_dir) if "validation_loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    checkpoint = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert checkpoint is not None
    network = load_checkpoint(checkpoint).model.eval()
    means = []
    for source in open_sources(config, FAKE_TASKS).sources:
        assert source.validation is not None
        with torch.no_grad():
            parts = [(network.losses(part.batch).total.item(), part.num_steps) for part in source.validation.parts]
        means.append(sum(loss * count for loss, count in parts) / sum(count for _, count in parts))
    assert rows[-1]["validation_loss"] == pytest.approx(0.75 * means[0] + 0.25 * 2.0 * means[1], rel=1e-5)


def test_a_batch_whose_loss_is_not_finite_is_named(
    make_config: MakeConfig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.data.batches import TaskBatches

    gather = TaskBatches._gather

    def poisoned(batches: TaskBatches, windows: Any) -> Any:
        batch = gather(batches, windows)
        if batches._arrays.task.name == "fake-count" and 17 in batches._starts[windows]:
            batch.previous_rewards[:] = float("nan")
        return batch

    monkeypatch.setattr(TaskBatches, "_gather", poisoned)
    with pytest.raises(
        UserError,
        match=r"the loss of fake-count, episode rows [\d, ]*\b6\b[\d, ]* is not finite at step \d+; "
        r"(step-0+\d+|no checkpoint) is kept",
    ):
        # Step 17 of the data is in episode row 6; every epoch of a few batches comes to it.
        train(make_config(steps=200, checkpoint_every=1), FAKE_TASKS)
    for row in curve(run_dir):
        assert math.isfinite(row["loss"])


def test_memory_that_is_out_is_explained(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.networks.jat_model import JatModel

    def losses(model: JatModel, batch: Any) -> Any:
        return torch.empty(2**60)

    monkeypatch.setattr(JatModel, "losses", losses)
    with pytest.raises(UserError, match=r"out of memory \(.*\); lower --batch-steps \(16\) and raise --micro-batches"):
        train(make_config(), FAKE_TASKS)


def test_another_error_of_torch_is_not_taken_for_memory_that_is_out(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.networks.jat_model import JatModel

    def losses(model: JatModel, batch: Any) -> Any:
        raise NotImplementedError("no such kernel")  # a RuntimeError, too

    monkeypatch.setattr(JatModel, "losses", losses)
    with pytest.raises(NotImplementedError, match="no such kernel"):
        train(make_config(), FAKE_TASKS)


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(make_config: MakeConfig, run_dir: Path) -> None:
    config = make_config()
    train(config, FAKE_TASKS)
    RunLayout(run_dir).train_manifest.unlink()
    (run_dir / "train" / "identity.json").unlink()
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=1))
    with pytest.raises(UserError, match=r"step-00000012 holds another training run: model.num_layers was 2, is 1\."):
        train(other, FAKE_TASKS)


def test_two_trainings_in_one_folder_are_refused(make_config: MakeConfig, run_dir: Path) -> None:
    with exclusive(run_dir / "train" / "lock", ""), pytest.raises(UserError, match="another process works on"):
        train(make_config(), FAKE_TASKS)


def test_windows_and_draws_do_not_depend_on_the_threads_that_read_them(make_config: MakeConfig, run_dir: Path) -> None:
    train(make_config(loader_threads=3), FAKE_TASKS)
    many = curve(run_dir)
    (run_dir / "train").rename(run_dir / "many")
    train(make_config(), FAKE_TASKS)
    assert curve(run_dir) == many


def test_the_last_row_is_found_without_the_rows_before_and_a_row_cut_off_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert last_row(path) is None
    path.write_text("")
    assert last_row(path) is None
    rows = "".join(json.dumps({"step": step, "loss": 0.1}) + "\n" for step in range(1, 2001))
    assert len(rows) > LONGEST_ROW
    path.write_text(rows + '{"step": 2001, "lo')
    assert last_row(path) == {"step": 2000, "loss": 0.1}
