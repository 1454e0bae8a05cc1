"""Publishes a trained network, with a card, to the Hugging Face Hub, to any store that fsspec supports, or to a folder.

    jat agent publish --out runs/default --to owner/name

Loading it executes none of its content: ``trainer.pretrained.load.from_pretrained("owner/name")``. The same command
resumes after a kill, and a partial upload is never visible. Credentials come from ``HF_TOKEN`` or ``hf auth login``.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import parse, run
from pipeline.files import sha256_of, write_json
from pipeline.publishing.inventory import Plan
from pipeline.publishing.publish import Options, publish
from pipeline.run_layout import VIDEOS, RunLayout
from pipeline.storage.manifest import FileEntry
from trainer.evaluation.results import Evaluation, find_evaluation
from trainer.pretrained.folders import CONFIG, checkpoint_folder

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

log = logging.getLogger(__name__)

MAX_REPLAYED_TASKS, MAX_REPLAY_BYTES = 12, 8_000_000


@dataclass(frozen=True)
class PublishAgentConfig(Options):
    """Publish a trained network."""

    to: str = ""
    """Destination: owner/name or hf://models/owner/name on the Hub (@branch may follow), a URL such as
    s3://bucket/path, or a folder (./name)."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    checkpoint: Path | None = None
    """Checkpoint folder; default is the final checkpoint of `jat train`."""
    half: bool = False
    """Store the weights in float16, half the size. Publish what you have evaluated: the scores may differ a little."""


def publish_network(config: PublishAgentConfig) -> Plan:
    """Publish a checkpoint of a run with a card that has its scores, as far as it is evaluated, and a video of it.

    Raises:
        UserError: bad input, or an invalid checkpoint or destination, or missing permission; nothing was published.
        JobsFailedError: the destination failed for longer than the retries last; uploaded files are kept.
    """
    folder = checkpoint_folder(config.out, config.checkpoint)
    from trainer.pretrained.load import from_pretrained

    records = RunLayout(config.out).publish_network
    name, evaluation = find_evaluation(config.out, folder) or ("", None)
    replay = make_replay(config.out, name, evaluation, records / VIDEOS) if evaluation else None
    return push_to_hub(from_pretrained(folder), config.to, records, evaluation, replay, config, config.half)


def make_replay(out: Path, name: str, evaluation: Evaluation, directory: Path) -> Path | None:
    """Make a video of the agent in several tasks at once; None if no task has a video.

    Args:
        out: root of the run.
        name: name of the evaluation.
        evaluation: the evaluation whose videos are shown.
        directory: folder to write the video to.
    """
    from trainer.reporting.videos import find_pairs, make_grids

    revision = evaluation.settings.revision
    found = {s.task: find_pairs(out, s.task, revision, (), name) for s in evaluation.tasks}
    filmed = {task: pairs[0] for task, pairs in found.items() if pairs}
    stride = -(-len(filmed) // MAX_REPLAYED_TASKS)
    shown = {task: filmed[task] for task in list(filmed)[:: stride or 1]}
    return make_grids(directory, {"replay": shown}, MAX_REPLAY_BYTES).get("replay") if shown else None


def push_to_hub(
    checkpoint: Checkpoint,
    to: str,
    records: Path,
    evaluation: Evaluation | None = None,
    replay: Path | None = None,
    options: Options | None = None,
    is_half: bool = False,
) -> Plan:
    """Save a network with its card and publish it.

    Args:
        checkpoint: what to publish.
        to: ``owner/name``, a URL, or a folder.
        records: local folder for the saved network and the state needed to resume.
        evaluation: evaluation of this checkpoint, for the card.
        replay: a video of it, which the Hub shows if it is called ``replay.mp4``.
        options: publishing options; if None, a private repository is created.
        is_half: whether the weights are stored in float16.

    Raises:
        UserError: see ``publish_network``.
        JobsFailedError: see ``publish_network``.
    """
    from trainer.pretrained.load import save_pretrained
    from trainer.reporting.model_card import model_card

    folder = records / "files"
    shutil.rmtree(folder, ignore_errors=True)
    name = to.removeprefix("hf://").removeprefix("models/").partition("@")[0]
    save_pretrained(checkpoint, folder, model_card(checkpoint, name, evaluation), is_half)
    if replay:
        shutil.copyfile(replay, folder / "replay.mp4")
    entries = [
        FileEntry(path.name, path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != CONFIG
    ]
    plan = publish(folder, entries, CONFIG, to, "model", records, options or Options())
    if options is None or not options.dry_run:
        (weights,) = (entry.sha256 for entry in entries if entry.name == "model.safetensors")
        write_json(records / "published.json", {"to": to, "weights": weights})
    return plan


def main() -> None:
    publish_network(parse(PublishAgentConfig))


if __name__ == "__main__":
    run("trainer.publish")
