"""Publish a finished directory to the Hugging Face Hub, to any store that fsspec supports, or to a folder.

For every destination: unchanged files are skipped, readers never see a partial publication, a killed run resumes when
it is started again, and only files of an earlier publication are ever deleted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import check_at_least_one
from pipeline.errors import UserError
from pipeline.files import exclusive, is_local, location
from pipeline.publishing.inventory import Item, Plan, sum_bytes, take_inventory
from pipeline.publishing.publish_files import Place
from pipeline.publishing.publish_hub import Hub, HubOptions
from pipeline.secrets import redacted, secrets_kept_from_logs
from pipeline.storage.manifest import FileEntry
from pipeline.tables import Column, Table, print_table
from pipeline.text import format_count

log = logging.getLogger(__name__)

_HUB = re.compile(
    r"hf://(?P<kind>datasets/|models/)?(?P<repo>(?!datasets/|models/)[\w.-]+/[\w.-]+)(@(?P<branch>[\w./-]+))?", re.ASCII
)
_SHORT = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<branch>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Options:
    """Options of publishing; those for the Hub are an error elsewhere. Commands add the source and the destination."""

    branch: str | None = None
    """Branch of the Hub repository, created from main if it does not exist; main if not given."""
    tag: str | None = None
    """Tag for the published commit on the Hub."""
    public: bool = False
    """Create the Hub repository as public instead of private; required to publish to an existing public one."""
    create: bool = True
    """Create the Hub repository if it does not exist."""
    dry_run: bool = False
    """Only print what would be uploaded and deleted."""
    workers: int = 5
    """Number of parallel uploads to the Hub."""


def publish(
    directory: Path, entries: Sequence[FileEntry], last: str, to: str, kind: str, records: Path, options: Options
) -> Plan:
    """Publish the files of a finished directory.

    Args:
        directory: a local folder.
        entries: file entries of its manifest; checksums are verified before anything is uploaded.
        last: name of the manifest, whose existence means that the directory is complete.
        to: ``hf://datasets/owner/name[@branch]``, ``owner/name[@branch]``, a URL, or a folder.
        kind: kind of the Hub repository, ``dataset`` or ``model``.
        records: local folder for state that is needed to resume.
        options: options of publishing.

    Returns:
        The actions that were done, or with ``dry_run`` would be done.

    Raises:
        UserError: invalid input, directory or destination, or no permission; nothing was published.
        JobsFailedError: the destination failed and all retries too; uploaded files are kept.
    """
    check_at_least_one(options, "workers")
    target = parse_target(to, kind, options)
    records.mkdir(parents=True, exist_ok=True)
    with secrets_kept_from_logs(), exclusive(records / "lock", "wait for it to end"):
        if isinstance(target, Path):
            _check_apart(directory, target)
        items = take_inventory(directory, entries, last, records)
        if isinstance(target, HubOptions):
            return _publish_to_hub(target, items, records, options)
        place = Place(target, records)
        plan = place.plan(items)
        _announce(plan, to, options.dry_run)
        if not plan.is_empty and not options.dry_run:
            place.apply(plan)
        return plan


def _publish_to_hub(target: HubOptions, items: Sequence[Item], records: Path, options: Options) -> Plan:
    hub = Hub(target, records)
    plan = hub.plan(items)
    hub.check_tag(plan)
    _announce(plan, f"{target.kind} {target.repo}, branch {target.branch}", options.dry_run)
    if not options.dry_run:
        hub.apply(plan, items, f"Publish {format_count(len(items), 'file')}, {sum_bytes(items) / 1e6:,.1f} MB")
    return plan


def parse_target(to: str, kind: str, options: Options) -> HubOptions | Path:
    """Parse the destination ``to``.

    Raises:
        UserError: it is malformed or ambiguous, or an option does not apply to it.
    """
    short = None if Path(to).expanduser().is_absolute() else _SHORT.fullmatch(to)
    if to.startswith("hf://"):
        match = _HUB.fullmatch(to)
        if match is None:
            raise UserError(f"{to!r} names no repository; write hf://datasets/owner/name or add @branch to it")
        named = "dataset" if match["kind"] == "datasets/" else "model"
        if named != kind:
            raise UserError(f"{to} is a {named}, this is a {kind}; write hf://{kind}s/{match['repo']}")
        return _hub_options(match, kind, options)
    if short is not None:
        if Path(to).exists():
            raise UserError(f"{to} is a folder and could be a repository; write ./{to} or hf://{kind}s/{to}")
        return _hub_options(short, kind, options)
    given = {"--branch": options.branch, "--tag": options.tag, "--public": options.public}
    unwanted = [name for name, value in given.items() if value] + ([] if options.create else ["--no-create"])
    if not to:
        raise UserError("nowhere to publish to; give owner/name, hf://datasets/owner/name, a URL or a folder")
    if redacted(to) != to:
        raise UserError(f"{redacted(to)} carries credentials; leave them to the environment")
    if unwanted:
        raise UserError(f"{', '.join(unwanted)} is about the Hugging Face Hub, and {to} is elsewhere")
    return location(to) if "://" in to else Path(to).expanduser()


def _hub_options(match: re.Match[str], kind: str, options: Options) -> HubOptions:
    if match["branch"] and options.branch:
        raise UserError(f"two branches, {match['branch']} and {options.branch}; give one")
    branch = match["branch"] or options.branch or "main"
    return HubOptions(match["repo"], kind, branch, options.tag, options.public, options.create, options.workers)


def _check_apart(directory: Path, target: Path) -> None:
    if not is_local(target) or not is_local(directory):
        return
    here, there = directory.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{target} and {directory} lie in one another; publish to a folder apart")


def _announce(plan: Plan, where: str, is_dry: bool) -> None:
    log.info("%s: %s", redacted(where), plan)
    if is_dry:
        print_table(_table(plan))


def _table(plan: Plan) -> Table:
    """Table of files and bytes by folder and by action."""
    table = Table("what", "folder", "files", Column("MB", ",.2f"))
    for what, items in (("upload", plan.upload), ("already there", plan.same)):
        by_folder: dict[str, list[Item]] = {}
        for item in items:
            by_folder.setdefault(item.name.split("/")[0] if "/" in item.name else ".", []).append(item)
        for folder, here in sorted(by_folder.items()):
            table.add_row(what, folder, len(here), sum_bytes(here) / 1e6)
    for name in plan.delete:
        table.add_row("delete", name, 1, None)
    return table
