from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.errors import UserError
from tests.hub import client_environment
from tests.web import Pages, served
from trainer.data.tokenizer import (
    NUM_RESERVED,
    choose_tokenizer,
    encode,
    load_tokenizer,
    pad_id,
    save_tokenizer,
    train_tokenizer,
)

SPACE = "\u0120"  # how a byte-level tokenizer shows a space
MISSIONS = ["go to the red ball", "go to the grey key", "open the door on your left", "pick up the red ball"]


def like_gpt2(directory: Path) -> Tokenizer:
    """In the file format of GPT-2: bytes first, the end of text last, nothing to pad with, cut at some length."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(MISSIONS * 5, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.enable_truncation(3)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def test_frequent_words_become_one_token_each() -> None:
    tokenizer = train_tokenizer(MISSIONS * 10, vocab_size=400)
    assert tokenizer.encode("go to the red ball").tokens == [
        f"{SPACE}{word}" for word in ("go", "to", "the", "red", "ball")
    ]


def test_ids_of_text_leave_the_reserved_integers_alone() -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    ids = encode(tokenizer, [*MISSIONS, "an unseen word: \u00e9\u4e2d"], num_tokens=40)
    assert ids[ids != pad_id(tokenizer)].min() >= NUM_RESERVED
    assert ids.max() < 400


def test_texts_are_padded_and_cut_to_the_same_length() -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    ids = encode(tokenizer, ["go to the red ball", "go"], num_tokens=3)
    assert ids.shape == (2, 3)
    assert ids[1].tolist() == [ids[0, 0], 0, 0]


def test_a_saved_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(encode(loaded, MISSIONS, 8), encode(tokenizer, MISSIONS, 8))


def test_bpe_is_trained_on_the_texts_given() -> None:
    chosen = choose_tokenizer("bpe", MISSIONS, 400)
    assert chosen.get_vocab() == train_tokenizer(MISSIONS, 400).get_vocab()


@pytest.mark.parametrize("name", ["", "tokenizer.json"])
def test_a_folder_or_file_gives_its_own_ids(tmp_path: Path, name: str) -> None:
    original = like_gpt2(tmp_path)
    chosen = choose_tokenizer(str(tmp_path / name), MISSIONS, 50_257)
    original.no_truncation()
    text = "pick up the red ball, 42 times"
    ids = encode(chosen, [text], 64)[0]
    assert ids[ids != pad_id(chosen)].tolist() == original.encode(text).ids
    assert len(original.encode(text).ids) > 3  # the file's own limit does not cut
    assert chosen.decode(original.encode(text).ids) == text


def test_without_a_token_to_pad_the_end_of_text_pads_as_in_jat(tmp_path: Path) -> None:
    end = like_gpt2(tmp_path).token_to_id("<|endoftext|>")
    assert end > 0
    chosen = choose_tokenizer(str(tmp_path), [], 50_257)
    assert encode(chosen, ["go"], 5)[0, -1] == end


def test_a_tokenizer_with_more_ids_than_the_network_is_refused(tmp_path: Path) -> None:
    num_ids = like_gpt2(tmp_path).get_vocab_size()
    choose_tokenizer(str(tmp_path), [], num_ids)
    with pytest.raises(UserError, match=rf"has {num_ids} ids, .* for {num_ids - 1}; give --model.vocab-size {num_ids}"):
        choose_tokenizer(str(tmp_path), [], num_ids - 1)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"--model.vocab-size 287 .* at least 288"):
        choose_tokenizer("bpe", MISSIONS, 287)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        choose_tokenizer(str(tmp_path), [], 400)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    with pytest.raises(UserError, match=r"tokenizer\.json is no tokenizer\.json of"):
        choose_tokenizer(str(tmp_path), [], 400)


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no token to pad with"):
        choose_tokenizer(str(tmp_path), [], 400)


def test_a_name_that_is_no_repository_is_refused() -> None:
    with pytest.raises(UserError, match="names no repository"):
        choose_tokenizer("a/b/c", [], 400)


def test_without_network_the_way_out_is_named() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UserError, match=r"^the tokenizer gpt2-of-nobody cannot be downloaded .* --tokenizer bpe"):
        choose_tokenizer("gpt2-of-nobody", [], 50_257)


class Hub(Pages):
    """One repository with a tokenizer, one without, one that asks for consent; there is no other."""

    protocol_version = "HTTP/1.1"
    content = b""

    def page(self) -> None:
        repository = self.path.strip("/").partition("/resolve/")[0]
        if repository == "someone/words" and self.path.endswith("/tokenizer.json"):
            return self.answer(200, self.content, **{"ETag": '"1"', "X-Repo-Commit": "c" * 40})
        if repository == "someone/words-without":
            return self.answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "c" * 40})
        if repository == "someone/gated":
            return self.answer(403, b"", **{"X-Error-Code": "GatedRepo"})
        return self.answer(401, b"", **{"X-Error-Code": "RepoNotFound"})


ASK = """
import sys
from pipeline.errors import UserError
from trainer.data.tokenizer import choose_tokenizer
for name in sys.argv[1:]:
    try:
        print(choose_tokenizer(name, [], 50_257).encode("pick up the red ball").ids)
    except UserError as error:
        print(error)
"""


def test_a_tokenizer_comes_from_the_hub(tmp_path: Path) -> None:
    original = like_gpt2(tmp_path)
    original.no_truncation()
    names = ["someone/words", "someone/words-without", "someone/gated", "someone/unknown"]
    handler = type("Words", (Hub,), {"content": (tmp_path / "tokenizer.json").read_bytes()})
    with served(handler) as address:
        found = subprocess.run(
            [sys.executable, "-c", ASK, *names],
            env=client_environment(address, tmp_path / "cache"),
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
    ids, *messages = found.stdout.splitlines()
    assert ids == str(original.encode("pick up the red ball").ids)
    assert messages[0].startswith("someone/words-without on the Hugging Face Hub has no tokenizer.json")
    assert "someone/gated on the Hugging Face Hub asks for consent" in messages[1]
    assert "no public repository someone/unknown" in messages[2] and "--tokenizer bpe" in messages[2]
