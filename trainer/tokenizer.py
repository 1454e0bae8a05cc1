"""Mission texts <-> token ids, without network: a byte-level BPE trained on the dataset's own missions.

The released JAT uses GPT-2's tokenizer. The token embedding is shared with the integers of observations and the
discrete actions, so the lowest ids are reserved for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NUM_RESERVED = 32  # more than any integer of an observation (10) or action (17)
PAD = 0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` ids, at least ``NUM_RESERVED`` + 256 for the bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", *(f"<{i}>" for i in range(1, NUM_RESERVED))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, texts: Sequence[str], num_tokens: int) -> np.ndarray:
    """``(len(texts), num_tokens)`` int64, cut or padded at the end."""
    ids = np.full((len(texts), num_tokens), PAD, np.int64)
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        tokens = encoding.ids[:num_tokens]
        row[: len(tokens)] = tokens
    return ids
