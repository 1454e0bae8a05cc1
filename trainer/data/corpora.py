"""Selects the corpora that a run trains on in addition to its tasks, and loads their documents as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.files import digest_of
from pipeline.storage.corpora import Corpus, select_corpora
from pipeline.storage.manifest import DatasetManifest, FileEntry
from pipeline.storage.schema import read_documents
from trainer.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from trainer.data.text_data import TextArrays, TokenizedDocument

# Documents of each corpus used to train a tokenizer: more would change few of its tokens.
TOKENIZER_DOCUMENTS = 20_000


def choose_corpora(config: TrainConfig) -> tuple[Corpus, ...]:
    """Return the corpora of the dataset that match ``config.corpora``.

    Raises:
        UserError: a corpus given by its full name is not in the dataset, or the network does not support its texts or
            images.
    """
    if not config.corpora:
        return ()
    wanted = select_corpora(config.corpora)
    manifest = DatasetManifest.load(config.dataset_dir / DatasetManifest.FILE_NAME)
    chosen = tuple(corpus for corpus in wanted if corpus.name in manifest.corpora)
    literal = [part.strip() for part in config.corpora.split(",")]
    absent = ",".join(corpus.name for corpus in wanted if corpus.name in literal and corpus not in chosen)
    if absent:
        raise UserError(
            f"{absent} is not in {config.dataset_dir}; it has: {', '.join(manifest.corpora) or 'no corpora'}. "
            f"Run `jat corpora --task {absent}` and `jat dataset --task {absent}` with the same --out first"
        )
    model = config.model
    if not chosen:
        return ()
    if not isinstance(model, ModelConfig):
        raise UserError("--corpora needs a network that reads texts: take --recipe jat, or leave --corpora out")
    for corpus in chosen:
        if corpus.has_images and not model.picture_size:
            raise UserError(
                f"{corpus.name} has pictures and --model.picture-size is 0; give one, such as 224, or other --corpora"
            )
    return chosen


def sample_texts(config: TrainConfig, manifest: DatasetManifest, corpora: Sequence[Corpus]) -> Iterator[str]:
    """Yield texts to train a tokenizer on."""
    for corpus in corpora:
        documents = _documents(config.dataset_dir, _entries(manifest, corpus, "train"))
        yield from (document.text for document in islice(documents, TOKENIZER_DOCUMENTS))


def load_corpus(
    config: TrainConfig, manifest: DatasetManifest, corpus: Corpus, split: str, tokenizer: Tokenizer, cache: Path
) -> TextArrays:
    """Return one split of a corpus, tokenised into ``cache`` if it is not there yet."""
    from trainer.data.text_data import lay_out

    entries = _entries(manifest, corpus, split)
    content = [[entry.sha256 for entry in entries], digest_of(tokenizer.to_str()), config.text_boundaries]
    directory = cache / f"{corpus.name}-{split}-{digest_of(content)}"
    return lay_out(corpus.name, _documents(config.dataset_dir, entries), tokenizer, config.text_boundaries, directory)


def _entries(manifest: DatasetManifest, corpus: Corpus, split: str) -> tuple[FileEntry, ...]:
    return manifest.corpora[corpus.name].splits[split].data


def _documents(dataset: Path, entries: Sequence[FileEntry]) -> Iterator[TokenizedDocument]:
    from trainer.data.text_data import TokenizedDocument

    for entry in entries:
        for block in read_documents(dataset / entry.name):
            if block.images is None:
                yield from (TokenizedDocument(text.as_py()) for text in block.texts)
            else:
                for text, image in zip(block.texts, block.images, strict=True):
                    yield TokenizedDocument(text.as_py(), image.as_py())
