from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.tokenizer import NUM_RESERVED, PAD, encode, load_tokenizer, save_tokenizer, train_tokenizer

SPACE = "\u0120"  # how a byte-level tokenizer shows a space
MISSIONS = ["go to the red ball", "go to the grey key", "open the door on your left", "pick up the red ball"]


def test_frequent_words_become_one_token_each() -> None:
    tokenizer = train_tokenizer(MISSIONS * 10, vocab_size=400)
    assert tokenizer.encode("go to the red ball").tokens == [
        f"{SPACE}{word}" for word in ("go", "to", "the", "red", "ball")
    ]


def test_ids_of_text_leave_the_reserved_integers_alone() -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    ids = encode(tokenizer, [*MISSIONS, "an unseen word: \u00e9\u4e2d"], num_tokens=40)
    assert ids[ids != PAD].min() >= NUM_RESERVED
    assert ids.max() < 400


def test_texts_are_padded_and_cut_to_the_same_length() -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    ids = encode(tokenizer, ["go to the red ball", "go"], num_tokens=3)
    assert ids.shape == (2, 3)
    assert ids[1].tolist() == [ids[0, 0], PAD, PAD]


def test_a_saved_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(MISSIONS, vocab_size=400)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(encode(loaded, MISSIONS, 8), encode(tokenizer, MISSIONS, 8))
