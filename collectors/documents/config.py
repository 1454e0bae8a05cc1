"""The options of collecting documents, and its recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import check_at_least_one
from pipeline.errors import UserError
from pipeline.storage.corpora import CORPORA, Corpus
from pipeline.text import parse_count

ALL = "all"


@dataclass(frozen=True)
class CorporaConfig:
    """Collect documents of text and image corpora into shards."""

    task: str = "*"
    """Corpora: wikipedia, oscar, ok-vqa, conceptual-captions; a glob, or a comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: str = "1000"
    """Training documents per corpus: a number or `all`, or these by corpus such as `1000,ok-vqa=all`. A tenth more go
    to the test split."""
    source: str = ""
    """Source of a corpus instead of its default, such as `wikipedia=hub:owner/name@revision/folder` or
    `oscar=/data/oscar`, a comma list of these: a dataset on the Hub, or a folder, file or glob of Parquet or JSON
    lines."""
    test_share: float = 0.1
    """Test documents as a share of the training documents, where the source has a test split; at least one. In other
    sources every tenth row is a test document."""
    shard_documents: int = 10_000
    """Rows of the source per shard, the unit of work that a kill can lose."""
    workers: int = 2
    """Worker processes; each reads one split of one corpus at a time."""
    image_size: int = 352
    """Maximum length of an image's longer side in pixels; JAT uses 352."""
    downloads: int = 32
    """Number of concurrent image downloads per worker, where the source contains addresses."""
    download_s: float = 10.0
    """Time limit of an image download in seconds; a document whose image times out is rejected."""
    allow_private: bool = False
    """Also download images from addresses of this machine and its network. Sources can name any address, so only public
    ones are allowed by default."""
    max_rejected: float = 0.5
    """Share of a shard's documents that may be rejected; above it the shard is not written and the command fails, so
    that a network failure is not recorded as broken documents."""
    stall_s: float = 300.0
    """Seconds without a single row or piece of an image after which a worker is considered hung and replaced."""

    def __post_init__(self) -> None:
        _parse_by_name("--source", self.source)
        self.num_documents("")
        check_at_least_one(self, "shard_documents", "workers", "image_size", "downloads")
        for name in ("download_s", "stall_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be above 0")
        for name in ("max_rejected", "test_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be above 0, at most 1")

    def num_documents(self, name: str) -> int | None:
        """Number of training documents requested of a corpus; None for all of them."""
        amounts: dict[str, int | None] = {"": 1000}
        for part in self.episodes.split(","):
            corpus, _, amount = part.strip().rpartition("=")
            _check_name("--episodes", self.episodes, corpus, "")
            amounts[corpus] = None if amount == ALL else self._parse_amount(part, amount)
        return amounts.get(name, amounts[""])

    def _parse_amount(self, part: str, amount: str) -> int:
        try:
            count = parse_count(amount)
        except ValueError:
            count = 0
        if count < 1:
            raise UserError(
                f"--episodes {self.episodes!r}: {part!r} is no number of at least 1, such as 1000 or 1e3, nor {ALL!r}"
            )
        return count

    def source_of(self, corpus: Corpus) -> str:
        return _parse_by_name("--source", self.source).get(corpus.name, corpus.source)


def _parse_by_name(flag: str, text: str) -> dict[str, str]:
    """Parse ``wikipedia=folder,oscar=other`` to values by corpus."""
    values = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        _check_name(flag, text, name)
        if not value:
            raise UserError(f"{flag} {text!r}: {part!r} is not corpus=source")
        values[name] = value
    return values


def _check_name(flag: str, text: str, name: str, *also: str) -> None:
    names = [corpus.name for corpus in CORPORA]
    if name not in (*names, *also):
        raise UserError(f"{flag} {text!r}: {name!r} is no corpus; there are {', '.join(names)}")


def jat() -> CorporaConfig:
    """JAT's training data: a million documents of OSCAR, all documents of the other corpora."""
    return CorporaConfig(episodes=f"{ALL},oscar=1000000")


RECIPES = {"jat": jat}
