"""Publish to the Hugging Face Hub: upload large files first, invisible to readers, then publish all in one commit.

Files that the repository already has, by checksum, are skipped. The others are uploaded in batches; before each file
the client checks whether the store has it, so a resumed run uploads only missing files. A single commit follows, with
the compared commit as its parent: if somebody else has committed in the meantime, the Hub rejects it. The Hub allows
25,000 large files per commit, so one commit is always enough here.

With ``hf_xet`` installed the client uploads chunks and skips those that the store has; ``HF_HUB_DISABLE_XET=1`` makes
it upload whole files. Credentials are the client's: ``HF_TOKEN`` or ``hf auth login``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.publishing.hub_calls import ask_hub, set_timeouts
from pipeline.publishing.inventory import CHECKSUMS, Item, Plan, compare, parse_checksums, sum_bytes, write_checksums
from pipeline.runtime.progress import Progress
from pipeline.text import format_count

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_FILES = 25_000
# A resumed run uploads at most one batch a second time: Xet registers chunks when their batch is complete; LFS repeats
# only the files that were being uploaded.
BATCH_FILES, BATCH_BYTES = 64, 2e9


@dataclass(frozen=True)
class HubOptions:
    """Repository to publish to, and how."""

    repo: str
    """``owner/name``."""
    kind: str
    """``dataset`` or ``model``."""
    branch: str = "main"
    """Branch, created from ``main`` if it does not exist."""
    tag: str | None = None
    """Tag for the published commit."""
    public: bool = False
    """Create the repository as public instead of private; required to publish to an existing public one."""
    create: bool = True
    """Create the repository if it does not exist."""
    workers: int = 5
    """Number of parallel uploads."""


class Hub:
    """A Hub repository as a destination.

    Args:
        options: repository to publish to, and how.
        records: local folder for the list of checksums.

    Raises:
        UserError: no credentials, no permission, no network, or the repository does not match the options.
    """

    def __init__(self, options: HubOptions, records: Path) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        self._options, self._records = options, records
        set_timeouts()
        disable_progress_bars()
        self._api = HfApi()
        self._what = f"{options.kind} {options.repo}"
        self._which = {"repo_id": options.repo, "repo_type": options.kind}
        self._check_credentials()
        self._head: str | None = None  # head commit of the branch, or of main if the branch does not exist yet
        self._has_branch = False
        self._tags: dict[str, str] = {}
        self._look()

    def plan(self, items: Sequence[Item]) -> Plan:
        """Plan that makes ``items`` exactly the files published by this project on the branch.

        Raises:
            UserError: too many files for one commit.
        """
        items = [*items, write_checksums(items, self._records)]
        if len(items) > MAX_FILES:
            raise UserError(
                f"{len(items)} files are more than the Hub takes in a commit ({MAX_FILES}); make them larger"
            )
        there = self._tree()
        ours = self._published() if CHECKSUMS in there else set()
        return compare(items, lambda item: _is_same(item, there.get(item.name)), ours & there.keys())

    def check_tag(self, plan: Plan) -> None:
        """Raise UserError if the tag already exists for other content."""
        tag = self._options.tag
        if tag in self._tags and not (plan.is_empty and self._tags[tag] == self._head):
            raise UserError(f"{self._options.repo} has a tag {tag} already, for something else; choose another")

    def apply(self, plan: Plan, items: Sequence[Item], message: str) -> None:
        """Execute the plan: upload, commit, tag. It may be killed at any time and executed again.

        Raises:
            UserError: no permission, no space, or somebody else has committed in the meantime.
            JobsFailedError: the Hub failed and all retries too; uploaded files are kept and skipped the next time.
        """
        options = self._options
        if self._head is None:
            visibility = "public" if options.public else "private"
            self._call(lambda: self._api.create_repo(**self._which, visibility=visibility, exist_ok=True))
            log.info("made the %s repository %s", visibility, options.repo)
            self._look()
        if not plan.is_empty:
            additions = self._upload(plan.upload)
            self._make_branch()
            self._commit(additions, plan, items, message)
            self._check_published(items)
        self._make_branch()
        if options.tag is not None and options.tag not in self._tags:
            self._call(lambda: self._api.create_tag(**self._which, tag=options.tag, revision=self._head, exist_ok=True))
        log.info("published in %s, branch %s, commit %s", options.repo, options.branch, self._head)

    def _check_published(self, items: Sequence[Item]) -> None:
        """Raise UserError if the commit is incomplete: the Hub skips files that a .gitignore matches."""
        missing = [item.name for item in self.plan(items).upload]
        if missing:
            raise UserError(
                f"{self._what} has left out {format_count(len(missing), 'file')} ({', '.join(missing[:3])}); "
                f"take them out of its .gitignore and run the same command again"
            )

    def _call(self, function: Callable[[], T]) -> T:
        return ask_hub(function, self._what)

    def _check_credentials(self) -> None:
        who = ask_hub(self._api.whoami, self._what, is_first=True)
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise UserError(f"the token of {who['name']} may only read; make one that may write and set HF_TOKEN to it")

    def _look(self) -> None:
        """Read the state of the repository: branches, tags and head commit."""
        options = self._options
        about = self._call(self._about)
        if about is None:
            if options.create:
                return
            raise UserError(f"there is no {options.kind} {options.repo} that this token may see; leave --no-create out")
        if about.private and options.public:
            raise UserError(f"{options.repo} is private; make it public on its page, or leave --public out")
        if not about.private and not options.public:
            raise UserError(f"{options.repo} is public: everybody would see this; say --public if that is meant")
        refs = self._call(lambda: self._api.list_repo_refs(**self._which))
        branches = {ref.name: ref.target_commit for ref in refs.branches}
        self._has_branch = options.branch in branches
        self._head = branches.get(options.branch, about.sha)
        self._tags = {ref.name: ref.target_commit for ref in refs.tags}

    def _about(self) -> Any:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._api.repo_info(**self._which)
        except RepositoryNotFoundError:
            return None

    def _tree(self) -> dict[str, Any]:
        from huggingface_hub.hf_api import RepoFile

        if self._head is None:
            return {}
        tree = self._call(
            lambda: list(self._api.list_repo_tree(**self._which, revision=self._head, recursive=True, expand=False))
        )
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def _published(self) -> set[str]:
        """Names of the files of the last publication."""
        with tempfile.TemporaryDirectory() as folder:
            where = {"filename": CHECKSUMS, "revision": self._head, "local_dir": folder}
            path = self._call(lambda: self._api.hf_hub_download(**self._which, **where))
            return set(parse_checksums(Path(path).read_text(encoding="utf-8"))) | {CHECKSUMS}

    def _upload(self, upload: Sequence[Item]) -> list[Any]:
        from huggingface_hub import CommitOperationAdd

        progress = Progress("files uploaded", len(upload))
        additions = []
        for batch in _batches(upload):
            operations = []
            for item in batch:
                item.check_unchanged()
                operations.append(CommitOperationAdd(item.name, item.path))
                operations[-1].upload_info.sha256 = bytes.fromhex(item.sha256)  # avoids hashing the file again
            self._call(partial(self._send, operations))
            for item in batch:
                item.check_unchanged()
            additions += operations
            progress.advance(len(batch), f"{sum_bytes(batch) / 1e6:,.1f} MB")
        return additions

    def _send(self, operations: list[Any]) -> None:
        self._api.preupload_lfs_files(
            **self._which,
            additions=operations,
            revision=self._options.branch if self._has_branch else "main",
            num_threads=self._options.workers,
            free_memory=False,
        )

    def _make_branch(self) -> None:
        if not self._has_branch:
            branch = self._options.branch
            self._call(
                lambda: self._api.create_branch(**self._which, branch=branch, revision=self._head, exist_ok=True)
            )
            self._has_branch = True

    def _commit(self, additions: Sequence[Any], plan: Plan, items: Sequence[Item], message: str) -> None:
        from huggingface_hub import CommitOperationDelete

        operations = [*additions, *(CommitOperationDelete(name, is_folder=False) for name in plan.delete)]
        parent = self._head

        def commit() -> None:
            self._look()
            if self._head != parent:
                # Either the response to an earlier attempt was lost, or somebody else has committed.
                if self.plan(items).is_empty:
                    return
                raise UserError(f"{self._options.repo} has changed while this was uploaded; run the same command again")
            self._head = self._api.create_commit(
                self._options.repo,
                operations,
                commit_message=message,
                repo_type=self._options.kind,
                revision=self._options.branch,
                parent_commit=parent,
                num_threads=self._options.workers,
            ).oid

        self._call(commit)


def _is_same(item: Item, entry: Any) -> bool:
    """Whether a file of the repository equals an item: by SHA-256 if it is an LFS file, else by git's blob hash."""
    from huggingface_hub.utils.sha import git_hash

    if entry is None or entry.size != item.num_bytes:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == item.sha256)
    return bool(entry.blob_id == git_hash(item.path.read_bytes()))


def _batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH_FILES or sum_bytes(batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch
