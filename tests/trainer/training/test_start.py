"""Training from the weights of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from tests.fakes import FAKE_TASKS
from trainer.checkpoint import Checkpoint, load_checkpoint
from trainer.config import BaseModelConfig, TrainConfig
from trainer.train import train
from trainer.training.logs import TrainManifest

MakeConfig = Callable[..., TrainConfig]
BASE = BaseModelConfig(
    hidden_size=16, num_layers=1, num_heads=2, window_steps=4, vocab_size=320, discrete_encoder="flat"
)
COUNT, GRID = (task.name for task in FAKE_TASKS)


def checkpoint_of(out: Path) -> Path:
    return out / TrainManifest.read(RunLayout(out).train_manifest).checkpoint


def begin(config: TrainConfig, out: Path) -> Checkpoint:
    """Train one step at a rate of almost nothing in ``out``, and load what came of it."""
    train(replace(config, out=out, dataset=config.dataset_dir, steps=1, learning_rate=1e-12), FAKE_TASKS)
    return load_checkpoint(checkpoint_of(out))


def test_a_run_starts_from_the_weights_the_tokenizer_and_the_normalisers_of_a_checkpoint(
    make_config: MakeConfig, run_dir: Path, tmp_path: Path
) -> None:
    config = make_config(model=BASE)
    train(config, FAKE_TASKS)
    source = checkpoint_of(run_dir)
    before, after = load_checkpoint(source), begin(replace(config, start=source, seed=5), tmp_path / "next")
    for name, value in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert after.tokenizer.to_str() == before.tokenizer.to_str()
    assert after.normalisers.keys() == before.normalisers.keys()


def test_a_task_keeps_its_own_weights_when_tasks_are_added_before_it(
    make_config: MakeConfig, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(model=BASE)
    only_grid = replace(config, task=GRID, out=tmp_path / "one", dataset=config.dataset_dir)
    train(only_grid, FAKE_TASKS)
    source = checkpoint_of(tmp_path / "one")
    with caplog.at_level("INFO"):
        both = begin(replace(config, start=source), tmp_path / "both")
    assert f"1 task new to it: {COUNT}" in caplog.text
    old, new = load_checkpoint(source).model.state_dict(), both.model.state_dict()
    torch.testing.assert_close(new["task_embedding.weight"][1], old["task_embedding.weight"][0], rtol=0, atol=1e-6)
    assert not torch.allclose(new["task_embedding.weight"][0], old["task_embedding.weight"][0])
    for name in new.keys() & old.keys():
        if name.startswith("trunk."):
            torch.testing.assert_close(new[name], old[name], rtol=0, atol=1e-6)


def test_missions_that_the_tokenizer_of_a_checkpoint_cuts_are_told(
    make_config: MakeConfig, run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(model=BASE)
    train(replace(config, task=COUNT, out=tmp_path / "one", dataset=config.dataset_dir), FAKE_TASKS)
    assert "are cut to --text-tokens" not in caplog.text
    begin(replace(config, start=checkpoint_of(tmp_path / "one")), tmp_path / "both")
    assert re.search(r"\d+ of \d+ missions have up to \d+ tokens and are cut to --text-tokens 6", caplog.text)


def test_a_run_that_started_from_a_checkpoint_is_resumed_and_not_started_again(
    make_config: MakeConfig, run_dir: Path, tmp_path: Path
) -> None:
    config = make_config(model=BASE)
    train(config, FAKE_TASKS)
    going_on = replace(config, out=tmp_path / "next", dataset=config.dataset_dir, start=checkpoint_of(run_dir))
    train(going_on, FAKE_TASKS)
    whole = load_checkpoint(checkpoint_of(going_on.out)).model.state_dict()
    (going_on.out / "train" / "manifest.json").unlink()
    train(going_on, FAKE_TASKS)
    resumed = load_checkpoint(checkpoint_of(going_on.out)).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    with pytest.raises(UserError, match="holds another training run: from was "):
        train(replace(going_on, start=None), FAKE_TASKS)


def test_the_folder_of_a_training_is_told_from_its_checkpoints(make_config: MakeConfig, run_dir: Path) -> None:
    config = make_config(model=BASE)
    train(config, FAKE_TASKS)
    directory = RunLayout(run_dir).train
    with pytest.raises(UserError) as caught:
        train(replace(config, start=directory, out=run_dir / "next", dataset=config.dataset_dir), FAKE_TASKS)
    assert str(caught.value) == (
        f"{directory} is the folder of a training; pass a checkpoint of it, such as {checkpoint_of(run_dir)}"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": replace(BASE, hidden_size=32)}, "another network than this run: hidden_size was 16, is 32; pass"),
        ({"text_tokens": 5}, "reads 6 tokens of a mission, this run 5; pass --text-tokens 6"),
        ({"start": Path("nothing")}, "nothing is neither a folder nor a repository"),
    ],
)
def test_what_cannot_be_taken_over_is_named_before_work(
    make_config: MakeConfig, run_dir: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = make_config(model=BASE)
    train(config, FAKE_TASKS)
    other = {"start": checkpoint_of(run_dir), "out": tmp_path / "next", "dataset": config.dataset_dir}
    with pytest.raises(UserError, match=message):
        train(replace(config, **(other | changes)), FAKE_TASKS)  # type: ignore[arg-type]
    assert not (tmp_path / "next" / "train" / "checkpoints").exists()
