"""Publish a dataset to the Hugging Face Hub, to any store that fsspec supports, or to a folder.

    jat publish --out runs/default --to owner/name

Everything below ``OUT/dataset`` is verified against its manifest and uploaded; unchanged files are skipped. A killed
upload resumes when run again, and partial uploads are never visible. Credentials come from ``HF_TOKEN`` or
``hf auth login``; for other stores from the places that their own clients use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import is_local, write_json
from pipeline.publishing.publish import Options, publish
from pipeline.run_layout import RunLayout
from pipeline.runtime.stage import reported
from pipeline.storage.manifest import DatasetManifest


@dataclass(frozen=True)
class PublishDatasetConfig(Options):
    """Publish OUT/dataset."""

    to: str = ""
    """Destination: owner/name or hf://datasets/owner/name on the Hub, optionally with @branch, a URL such as
    s3://bucket/path, or a folder (./name)."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


def publish_dataset(config: PublishDatasetConfig) -> None:
    """Publish the dataset of a run.

    Raises:
        UserError: invalid input, dataset, destination or permission; nothing was published.
        JobsFailedError: the destination failed for longer than the retries last; files already uploaded are kept.
    """
    layout = RunLayout(config.out)
    directory = layout.dataset
    if not is_local(directory):
        raise UserError(f"{directory} is not on this machine; only a local dataset can be published")
    path = directory / DatasetManifest.FILE_NAME
    if not path.is_file():
        raise UserError(f"{directory} holds no finished dataset; run `jat dataset` with the same --out first")
    entries = DatasetManifest.load(path).files
    plan = publish(directory, entries, DatasetManifest.FILE_NAME, config.to, "dataset", layout.publish, config)
    if not config.dry_run and not plan.is_empty:
        write_json(layout.publish_config, config)


def main() -> None:
    config = parse(PublishDatasetConfig)
    with reported("publish", config.out, needs_disk=True):
        publish_dataset(config)


if __name__ == "__main__":
    run("collectors.dataset.publish")
