from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.scoring.scores import Interval
from tests.fakes import FAKE_COUNT, FAKE_TASKS
from tests.trainer.pretrained.test_released import make_folder
from tests.trainer.test_agent import observations
from trainer.agent import Agent
from trainer.checkpoint import Checkpoint, latest_checkpoint
from trainer.config import TrainConfig
from trainer.evaluation.results import Settings, TaskScore
from trainer.evaluation.scoring import evaluation_of
from trainer.pretrained.load import agent_config, from_pretrained, save_pretrained
from trainer.reporting.model_card import model_card
from trainer.train import train

SCORE = TaskScore(
    task="fake-count", domain="fake", random=1.0, expert=10.0, expert_kind="scripted", agent=Interval(5.5, 5.0, 6.0),
    scores=[0.4, 0.6], score=Interval(0.5, 0.4, 0.6), success_rate=None, num_episodes=2, num_reference_episodes=9,
    jat_expert=None, score_on_jat_scale=None, jat_score=None,
)  # fmt: skip


@pytest.fixture
def trained(make_config: Callable[..., TrainConfig], run_dir: Path) -> Path:
    train(make_config(), FAKE_TASKS)
    path = latest_checkpoint(run_dir / "train" / "checkpoints")
    assert path is not None
    return path


def first_actions(checkpoint: Checkpoint) -> np.ndarray:
    agent = Agent(checkpoint, [FAKE_COUNT] * 4)
    agent.reset(range(4), range(4), [])
    return agent.act(range(4), observations(FAKE_COUNT, [1, 2, 3, 4], 0))


def test_what_is_saved_loads_and_acts_the_same(trained: Path, tmp_path: Path) -> None:
    checkpoint = from_pretrained(trained)
    save_pretrained(checkpoint, tmp_path / "saved", "# a card\n")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "normalisers.safetensors", "tokenizer.json",
    }  # fmt: skip
    loaded = from_pretrained(tmp_path / "saved")
    assert loaded.config == checkpoint.config
    assert agent_config(tmp_path / "saved") == checkpoint.config
    assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in checkpoint.model.state_dict().items())
    np.testing.assert_array_equal(first_actions(loaded), first_actions(checkpoint))
    assert loaded.tokenizer.to_str() == checkpoint.tokenizer.to_str()


def test_released_weights_saved_here_stay_what_they_were(tmp_path: Path) -> None:
    released = from_pretrained(make_folder(tmp_path / "jat"))
    save_pretrained(released, tmp_path / "saved", "")
    loaded = from_pretrained(tmp_path / "saved")
    assert loaded.config == released.config
    assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in released.model.state_dict().items())


def test_nothing_is_written_over(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    with pytest.raises(UserError, match="saved exists; give a new folder"):
        save_pretrained(from_pretrained(trained), tmp_path / "saved", "")
    assert list((tmp_path / "saved").iterdir()) == []


def test_the_card_says_what_it_is_how_good_and_how_to_load_it(trained: Path) -> None:
    checkpoint = from_pretrained(trained)
    unscorable = replace(SCORE, task="toy-grid", domain="toy", score=None, scores=None, success_rate=0.25)
    settings = Settings("step-12", "abc", 12, 100, 1.0, {})
    card = model_card(checkpoint, "owner/agent", evaluation_of(settings, [SCORE, unscorable]))
    _, front, body = card.split("---\n", 2)
    (index,) = yaml.safe_load(front)["model-index"]
    results = {
        row["dataset"]["type"]: {metric["type"]: metric["value"] for metric in row["metrics"]}
        for row in index["results"]
    }
    assert results == {
        "fake": {"iqm_expert_normalized_total_reward": 0.5},
        "fake-count": {"total_reward": 5.5, "expert_normalized_total_reward": 0.5},
        "toy-grid": {"total_reward": 5.5, "success_rate": 0.25},
    }
    assert "acts in 2 tasks (fake 1, toy 1)" in body
    assert '\ncheckpoint = from_pretrained("owner/agent")\n' in body
    assert "| fake-count | 1.00 | 10.00 | 5.50 | 0.50 [0.40, 0.60] |  | 2 |" in body
    assert "| toy-grid | 1.00 | 10.00 | 5.50 | not scorable | 0.25 | 2 |" in body
    assert "| fake | 1 | 0.50 [0.40, 0.60] | 0.50 [0.40, 0.60] |" in body
    assert "| toy | 0 | not scorable | not scorable |" in body
    assert "the expert is not better than random: toy-grid." in body
    assert "no dataset, at temperature 1." in body
    assert "| optimiser steps | 12 |" in body
    assert f"`{checkpoint.config.dataset_digest}`" in body
    assert body.isascii()


def test_a_card_without_scores_says_so_and_names_no_result(trained: Path) -> None:
    card = model_card(from_pretrained(trained), "owner/agent")
    assert "Not evaluated yet" in card
    assert "model-index" not in yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_released_weights_names_its_corpora_and_claims_no_training(tmp_path: Path) -> None:
    card = model_card(from_pretrained(make_folder(tmp_path / "jat")), "somewhere/jat")
    assert "and goes on with texts (wikipedia, oscar, ok-vqa, conceptual-captions)" in card
    assert "optimiser steps" not in card


def test_a_checkpoint_of_another_network_says_what_differs(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    raw = read_json(copy / "config.json")
    write_json(copy / "config.json", {**raw, "model": {**raw["model"], "vocab_size": 321}})
    with pytest.raises(UserError, match=r"transformer\.wte\.weight is \[320, 50\], not \[321, 50\]"):
        from_pretrained(copy)
    write_json(copy / "config.json", {key: value for key, value in raw.items() if key != "text_tokens"} | {"new": 1})
    with pytest.raises(UserError, match="this version differ in new, text_tokens"):
        from_pretrained(copy)


def test_a_checkpoint_cut_short_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        from_pretrained(copy)
