"""Publish a trained network, with a card, to the Hugging Face Hub, to any store that fsspec knows, or to a folder.

    python -m trainer.publish --out runs/default --to owner/name

Whoever loads it runs none of its content: ``trainer.pretrained.from_pretrained("owner/name")``. Killed and started
again it goes on, and nothing is seen half-uploaded. Credentials come from ``HF_TOKEN`` or ``hf auth login``.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import parse, run
from pipeline.files import sha256_of, write_json
from pipeline.inventory import Plan
from pipeline.manifest import FileEntry
from pipeline.publish import Options, publish
from trainer.results import TaskScore, scores_of

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CONFIG = "config.json"  # the file that says that a folder is complete


@dataclass(frozen=True)
class PublishConfig:
    """Publish a trained network."""

    to: str = ""
    """Where: owner/name or hf://models/owner/name on the Hub (@branch may follow), a URL such as s3://bucket/path, or a
    folder (./name)."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    checkpoint: Path | None = None
    """Checkpoint folder; the one `make train` finished with if not given."""
    branch: str | None = None
    """Branch of the repository, made from main if it is not there; main if not given."""
    tag: str | None = None
    """Tag to put on what is published."""
    public: bool = False
    """Everybody may see a repository that is made; otherwise it is private."""
    create: bool = True
    """Make the repository if there is none."""
    dry_run: bool = False
    """Only say what would move."""
    workers: int = 5
    """Files that go up to the Hub at the same time."""


def publish_network(config: PublishConfig) -> Plan:
    """Publish a checkpoint of a run with a card that has its scores, as far as it is evaluated.

    Raises:
        UserError: bad input, or a checkpoint, place or right that is not as it must be; nothing was published.
        JobsFailedError: the place failed for longer than retries last; what arrived stays.
    """
    from trainer.pretrained import checkpoint_folder, from_pretrained

    folder = checkpoint_folder(config.out, config.checkpoint)
    options = Options(config.branch, config.tag, config.public, config.create, config.dry_run, config.workers)
    return push_to_hub(
        from_pretrained(folder), config.to, config.out / "publish" / "network", scores_of(config.out, folder), options
    )


def push_to_hub(
    checkpoint: Checkpoint, to: str, records: Path, scores: Sequence[TaskScore] = (), options: Options | None = None
) -> Plan:
    """Save a network with its card and publish it.

    Args:
        checkpoint: what to publish.
        to: ``owner/name``, a URL, or a folder.
        records: local folder for the saved network and what must outlive this process.
        scores: of this checkpoint, for the card.
        options: how; a private repository is made if None.

    Raises:
        UserError: as ``publish_network``.
        JobsFailedError: likewise.
    """
    from trainer.model_card import model_card
    from trainer.pretrained import save_pretrained

    folder = records / "files"
    shutil.rmtree(folder, ignore_errors=True)
    name = to.removeprefix("hf://").removeprefix("models/").partition("@")[0]
    save_pretrained(checkpoint, folder, model_card(checkpoint, name, scores))
    entries = [
        FileEntry(path.name, path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != CONFIG
    ]
    plan = publish(folder, entries, CONFIG, to, "model", records, options or Options())
    if options is None or not options.dry_run:
        write_json(records / "published.json", {"to": to, "weights": sha256_of(folder / "model.safetensors")})
    return plan


def main() -> None:
    publish_network(parse(PublishConfig))


if __name__ == "__main__":
    run("trainer.publish")
