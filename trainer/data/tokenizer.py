"""Tokenizers: a byte-level BPE trained offline on the dataset's own texts, or a given tokenizer.

The released JAT uses GPT-2's tokenizer. Texts, integer observations and discrete actions share the token embedding. Our
own tokenizer reserves the lowest ids for these integers; with GPT-2's, as in JAT, an integer and the character of the
same id share one embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.errors import UserError
from pipeline.foreign import MIB, check_file
from pipeline.publishing.hub import readable_errors

NUM_RESERVED = 32  # larger than any integer of an observation (10) or action (17)
BPE = "bpe"  # the choice that needs no download
FILE_NAME = "tokenizer.json"
MAX_FILE = 128 * MIB  # four times the size of the largest published tokenizers
# Candidates for the padding token: our own, the usual ones, and the one JAT uses from GPT-2, which has no padding
# token.
END_OF_TEXT = "<|endoftext|>"
PADS = ("<pad>", "[PAD]", END_OF_TEXT, "</s>")


def choose_tokenizer(choice: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a training run.

    Args:
        choice: ``bpe``, trained on ``texts``; a folder with a ``tokenizer.json``, or that file; or a repository on the
            Hugging Face Hub such as ``gpt2``.
        texts: texts that the run trains on.
        vocab_size: number of token embeddings of the network.

    Raises:
        UserError: the tokenizer does not exist, cannot be downloaded or read, or has more ids than the network.
    """
    if choice == BPE:
        return train_tokenizer(texts, vocab_size)
    tokenizer = _read(_locate(choice), choice)
    num_ids = _num_ids(tokenizer)
    if num_ids > vocab_size:
        raise UserError(
            f"the tokenizer {choice} has {num_ids} ids, the network embeddings for {vocab_size}; "
            f"give --model.vocab-size {num_ids} or --tokenizer {BPE}"
        )
    return tokenizer


def _num_ids(tokenizer: Tokenizer) -> int:
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer with at most ``vocab_size`` ids.

    Raises:
        UserError: ``vocab_size`` is too small for the reserved ids and the 256 bytes.
    """
    if vocab_size < NUM_RESERVED + 256:
        raise UserError(
            f"--model.vocab-size {vocab_size} has no room for {NUM_RESERVED} reserved ids and 256 bytes; "
            f"it must be at least {NUM_RESERVED + 256}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PADS[0], *(f"<{i}>" for i in range(1, NUM_RESERVED - 1)), END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _locate(choice: str) -> Path:
    path = Path(choice).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise UserError(f"{choice} has no {FILE_NAME}; save one there, or give a repository of the Hub or {BPE!r}")
        return path / FILE_NAME
    return _download(choice)


def _download(choice: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    elsewhere = f"give a folder with a {FILE_NAME}, or --tokenizer {BPE}, which is trained on the dataset"
    with readable_errors(choice, None, elsewhere, f", or {elsewhere}"):
        try:
            return Path(hf_hub_download(choice, FILE_NAME))
        except LocalEntryNotFoundError as error:  # neither reachable nor cached
            raise UserError(
                f"the tokenizer {choice} cannot be downloaded from the Hugging Face Hub and is not in its cache; check "
                f"the network, or {elsewhere}"
            ) from error
        except EntryNotFoundError as error:
            raise UserError(f"{choice} on the Hugging Face Hub has no {FILE_NAME}; {elsewhere}") from error


def _read(path: Path, choice: str) -> Tokenizer:
    check_file(path, MAX_FILE)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is no {FILE_NAME} of the `tokenizers` library ({error})") from error
    # `encode` truncates and pads, whatever the file configures.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if all(tokenizer.token_to_id(token) is None for token in PADS):
        raise UserError(f"the tokenizer {choice} has no token to pad with; one of {', '.join(PADS)} is needed")
    return tokenizer


def pad_id(tokenizer: Tokenizer) -> int:
    """Return the id used for padding; in JAT the end-of-text id."""
    found = (tokenizer.token_to_id(token) for token in PADS)
    return next(number for number in found if number is not None)


def end_id(tokenizer: Tokenizer) -> int:
    """Return the id that separates texts.

    Raises:
        UserError: the tokenizer has none.
    """
    found = (tokenizer.token_to_id(token) for token in (END_OF_TEXT, "</s>", "[SEP]"))
    end = next((number for number in found if number is not None), None)
    if end is None:
        raise UserError(f"the tokenizer has no {END_OF_TEXT}; take one that has, such as gpt2")
    return end


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def load_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint.

    Args:
        path: its file.
        vocab_size: number of token embeddings of the network; None for no limit.

    Raises:
        UserError: it is missing or damaged, or has more ids than the network.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; get it again")
    tokenizer = _read(path, str(path))
    if vocab_size is not None and _num_ids(tokenizer) > vocab_size:
        raise UserError(
            f"{path} has {_num_ids(tokenizer)} ids, the network embeddings for {vocab_size}: they are not of one "
            "checkpoint; get both again"
        )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str], num_tokens: int) -> np.ndarray:
    """Return ids ``(len(texts), num_tokens)`` int64, truncated or padded at the end."""
    ids = np.full((len(texts), num_tokens), pad_id(tokenizer), np.int64)
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        tokens = encoding.ids[:num_tokens]
        row[: len(tokens)] = tokens
    return ids
