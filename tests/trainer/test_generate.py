from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UserError
from tests.trainer.pretrained.test_released import CONFIG, make_folder, make_model, make_tokenizer
from trainer import generate as command
from trainer.batch import TextBatch
from trainer.checkpoint import AgentConfig, Checkpoint
from trainer.data.tokenizer import end_id
from trainer.generate import GenerateConfig, generate
from trainer.pretrained.released import read_model_config

PROMPT = "go to the blue"


def make_checkpoint(boundaries: bool = False) -> Checkpoint:
    """Untrained, with embeddings large enough for its favourite token to depend on what it read."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    config = AgentConfig(
        read_model_config(CONFIG, "here"), 20, 4, [], [], "", 0, 0, corpora=["wikipedia"], text_boundaries=boundaries
    )
    return Checkpoint(model, make_tokenizer(), {}, config)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 32, 32)).astype(np.float32)


def greedy(checkpoint: Checkpoint, ids: list[int], shown: np.ndarray | None, num_tokens: int) -> list[int]:
    """The likeliest continuation, by giving the network the whole text anew for every token."""
    found: list[int] = []
    for _ in range(num_tokens):
        batch = TextBatch(
            torch.tensor([[*ids, *found]]),
            torch.ones(1, len(ids) + len(found), dtype=torch.bool),
            None if shown is None else torch.from_numpy(shown)[None],
        )
        with torch.no_grad():
            found.append(int(checkpoint.model.text_logits(batch)[0, -1].argmax()))  # type: ignore[operator]
    return found


@pytest.mark.parametrize("shown", [None, picture()], ids=["text", "picture"])
@pytest.mark.parametrize("boundaries", [False, True])
def test_writing_token_by_token_is_what_the_whole_text_gives(boundaries: bool, shown: np.ndarray | None) -> None:
    """Longer than the local window of 6."""
    checkpoint = make_checkpoint(boundaries)
    ids = checkpoint.tokenizer.encode(PROMPT).ids
    ids = [end_id(checkpoint.tokenizer), *ids] if boundaries else ids
    expected = greedy(checkpoint, ids, shown, 12)
    assert end_id(checkpoint.tokenizer) not in expected
    assert len(set(expected)) > 2
    assert generate(checkpoint, PROMPT, shown, 12, temperature=0) == checkpoint.tokenizer.decode(expected)


def test_a_picture_changes_what_is_written() -> None:
    checkpoint = make_checkpoint()
    texts = {generate(checkpoint, PROMPT, shown, 12, 0) for shown in (None, picture(1), picture(2))}
    assert len(texts) == 3


def test_what_is_drawn_follows_from_the_seed() -> None:
    checkpoint = make_checkpoint()
    drawn = [generate(checkpoint, PROMPT, None, 12, 50.0, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_end_of_text_ends_it() -> None:
    checkpoint = make_checkpoint()
    ids = checkpoint.tokenizer.encode(PROMPT).ids
    first, second = greedy(checkpoint, ids, None, 2)
    assert first != second
    # The network's second token becomes the end of text, by exchanging the two rows of the decoder.
    decoder = checkpoint.model.single_discrete_decoder.weight
    end = end_id(checkpoint.tokenizer)
    with torch.no_grad():
        decoder[[second, end]] = decoder[[end, second]].clone()
    assert generate(checkpoint, PROMPT, None, 12, 0) == checkpoint.tokenizer.decode([first])


def test_it_stops_where_the_positions_end() -> None:
    checkpoint = make_checkpoint()
    ids = checkpoint.tokenizer.encode(PROMPT).ids
    num_left = 40 - len(ids)
    expected = greedy(checkpoint, ids, None, num_left)
    assert generate(checkpoint, PROMPT, None, 1000, 0) == checkpoint.tokenizer.decode(expected)


def test_a_prompt_that_leaves_no_position_is_refused() -> None:
    with pytest.raises(UserError, match=r"the prompt takes 4\d positions, the picture's included, of 40"):
        generate(make_checkpoint(), "x" * 37, picture())


def test_without_a_prompt_it_begins_after_the_end_of_text() -> None:
    checkpoint = make_checkpoint()
    expected = greedy(checkpoint, [end_id(checkpoint.tokenizer)], None, 5)
    assert generate(checkpoint, "", None, 5, 0) == checkpoint.tokenizer.decode(expected)


def test_a_network_that_read_no_corpus_is_refused() -> None:
    checkpoint = make_checkpoint()
    config = dataclasses.replace(checkpoint.config, corpora=[])
    with pytest.raises(UserError, match="trained on no corpus"):
        generate(dataclasses.replace(checkpoint, config=config), PROMPT)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    command.main()


def test_the_command_describes_a_picture_with_released_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "jat")
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), (200, 30, 30)).save(buffer, "PNG")
    (tmp_path / "red.png").write_bytes(buffer.getvalue())
    options = ["--checkpoint", str(folder), "--prompt", PROMPT, "--tokens", "5", "--temperature", "0"]
    run_command(monkeypatch, *options, "--image", str(tmp_path / "red.png"))
    described = capsys.readouterr().out
    run_command(monkeypatch, *options)
    assert described.startswith(PROMPT)
    assert capsys.readouterr().out != described


def test_a_picture_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--image .*red\.png is not a file"):
        run_command(monkeypatch, "--checkpoint", str(tmp_path), "--image", str(tmp_path / "red.png"))


@pytest.mark.parametrize(("option", "value"), [("tokens", 0), ("temperature", -1.0)])
def test_impossible_settings_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{option} is {value}; it must be at least"):
        GenerateConfig(checkpoint="x", **{option: value})  # type: ignore[arg-type]
