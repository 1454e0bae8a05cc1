"""Texts and pictures in the same training as tasks, and what the network then writes."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from collectors.dataset.build import DatasetConfig, build_dataset
from pipeline.errors import UserError
from pipeline.storage.corpora import Document, select_corpora
from pipeline.storage.documents import DocumentProgress, DocumentRange, write_documents
from tests.fakes import FAKE_TASKS
from tests.trainer.conftest import TINY, make_dataset, tiny_config
from trainer.agent import Agent
from trainer.checkpoint import Checkpoint
from trainer.config import RECIPES, TrainConfig
from trainer.data.corpora import choose_corpora
from trainer.data.sources import open_sources
from trainer.data.text_data import prepare_picture
from trainer.generate import generate
from trainer.pretrained.folders import checkpoint_folder
from trainer.pretrained.load import from_pretrained
from trainer.train import train

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
ARTICLES = ["one two three four five six seven", "alpha beta gamma delta epsilon"]
MODEL = replace(TINY, max_positions=24, window_size=16, picture_size=32, vocab_size=400)


def square(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), COLOURS[colour]).save(buffer, "PNG")
    return buffer.getvalue()


def caption(colour: str) -> str:
    return f"this square is {colour}"


def write_corpus(out: Path, name: str, documents: list[tuple[str, bytes | None]]) -> None:
    (corpus,) = select_corpora(name)
    for split in ("train", "test"):
        rows = [Document(i, text, image) for i, (text, image) in enumerate(documents)]
        wanted = DocumentRange(corpus, split, "here", "1", 0, len(rows))
        end = DocumentProgress(len(rows), 0, len(rows))
        write_documents(out / "shards", wanted, rows, lambda end=end: end, {})  # type: ignore[misc]


def config_of(out: Path, **changes: object) -> TrainConfig:
    settings = {"model": MODEL, "corpora": "wikipedia,ok-vqa", "context_steps": 4, "batch_steps": 24}
    return tiny_config(out, **{**settings, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two tasks and two corpora, not to be changed."""
    out = tmp_path_factory.mktemp("corpora")
    write_corpus(out, "wikipedia", [(text, None) for text in ARTICLES * 4])
    write_corpus(out, "ok-vqa", [(caption(colour), square(colour)) for colour in COLOURS] * 4)
    make_dataset(out)
    build_dataset(DatasetConfig(out=out), FAKE_TASKS)
    return out


@pytest.fixture(scope="module")
def checkpoint(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Trained on all four until it knows the texts by heart."""
    out = tmp_path_factory.mktemp("trained")
    weights = {"texts": 10.0, "captions": 20.0}
    config = config_of(
        out, dataset=made / "dataset", steps=150, learning_rate=5e-3, sampling_weights=weights, checkpoint_every=150
    )
    train(config, FAKE_TASKS)
    return from_pretrained(checkpoint_folder(out, None))


def test_a_text_that_was_trained_on_is_continued_to_its_end(checkpoint: Checkpoint) -> None:
    assert generate(checkpoint, "one two", temperature=0) == " three four five six seven"
    assert generate(checkpoint, "alpha", temperature=0) == " beta gamma delta epsilon"


@pytest.mark.parametrize("colour", COLOURS)
def test_a_picture_is_described(checkpoint: Checkpoint, colour: str) -> None:
    picture = prepare_picture(square(colour), 32, colour)
    assert generate(checkpoint, "", picture, temperature=0).strip() == caption(colour)
    assert generate(checkpoint, "this square", picture, temperature=0) == f" is {colour}"


def test_the_same_network_acts(checkpoint: Checkpoint) -> None:
    assert checkpoint.config.corpora == ["wikipedia", "ok-vqa"]
    assert checkpoint.config.text_boundaries
    for task in FAKE_TASKS:
        Agent(checkpoint, [task])


def test_the_mixture_draws_corpora_by_their_weights(made: Path, tmp_path: Path) -> None:
    config = config_of(
        tmp_path, dataset=made / "dataset", steps=2000, sampling_weights={"ok-vqa": 3.0, "texts": 2.0, "fake": 4.0}
    )
    data = open_sources(config, FAKE_TASKS)
    assert [(s.name, s.domain, s.sampling_weight) for s in data.sources] == [
        ("fake-count", "fake", 4.0),
        ("toy-grid", "toy", 1.0),
        ("wikipedia", "texts", 2.0),
        ("ok-vqa", "captions", 3.0),
    ]
    mixture = data.mixture(config)
    drawn = [mixture[draw][0] for draw in range(mixture.num_draws or 0)]
    assert [drawn.count(source) / len(drawn) for source in range(4)] == pytest.approx([0.4, 0.1, 0.2, 0.3], abs=0.03)


def log_rows(out: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("loss", "timesteps", "gradient_norm")} for row in rows]


def test_a_run_with_corpora_that_was_stopped_goes_on_as_if_it_was_not(made: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=made / "dataset")
    train(config, FAKE_TASKS)
    whole = log_rows(tmp_path)
    assert len(whole) == 12
    (tmp_path / "train" / "manifest.json").unlink()
    for step in ("step-00000008", "step-00000012"):
        shutil.rmtree(tmp_path / "train" / "checkpoints" / step, ignore_errors=True)
    train(config, FAKE_TASKS)
    assert log_rows(tmp_path) == whole


def test_only_what_matches_is_trained_on(made: Path, tmp_path: Path) -> None:
    def names(pattern: str) -> list[str]:
        config = config_of(tmp_path, dataset=made / "dataset", corpora=pattern)
        return [corpus.name for corpus in choose_corpora(config)]

    assert names("") == []
    assert names("*") == ["wikipedia", "ok-vqa"]
    assert names("wiki*") == ["wikipedia"]


def test_a_corpus_that_is_not_in_the_dataset_is_named(made: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=made / "dataset", corpora="oscar")
    with pytest.raises(
        UserError,
        match=r"oscar is not in .*; it has: wikipedia, ok-vqa\. Run `jat corpora --task oscar` and `jat dataset",
    ):
        train(config, FAKE_TASKS)
    with pytest.raises(UserError, match="no corpus matches 'wikipdia'; nearest: wikipedia"):
        train(replace(config, corpora="wikipdia"), FAKE_TASKS)


def test_pictures_without_a_place_in_the_network_are_refused(made: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=made / "dataset", model=replace(MODEL, picture_size=0))
    with pytest.raises(UserError, match=r"ok-vqa has pictures and --model\.picture-size is 0"):
        train(config, FAKE_TASKS)


def test_the_recipe_jat_has_the_weights_of_the_released_training() -> None:
    config = RECIPES["jat"]()
    assert config.corpora == "*"
    assert (config.model.observation_loss_coef, config.model.action_loss_coef) == (0.005, 0.995)
    assert set(config.sampling_weights.values()) == {10.0}
    assert config.contexts == {"atari": 32}
    assert not config.text_boundaries
