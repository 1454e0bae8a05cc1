"""Download selected files of a Hugging Face Hub repository into the Hub's usual cache.

A source is ``hub:owner/name`` or ``hub:owner/name@revision``. Without a connection, the cached files are used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

log = logging.getLogger(__name__)

HUB = "hub:"
# Timeout of the first request to the Hub.
HUB_TIMEOUT_S = 10.0
_SOURCE = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in a local folder."""

    repository: str
    commit: str
    folder: Path

    @property
    def root(self) -> Path:
        """Cache folder of the repository; the files in ``folder`` are links into it."""
        return self.folder.parents[1]


def download(source: str, wanted: Sequence[str], unwanted: Sequence[str] = (), hint: str = "") -> Snapshot:
    """Download selected files of a repository.

    Args:
        source: ``hub:owner/name[@revision]``.
        wanted: globs of the files to download.
        unwanted: globs of files to exclude.
        hint: text to append to the error message if there is no such repository.

    Raises:
        UserError: the source is malformed, there is no such repository or revision, or the Hub cannot be reached and
            the cache has nothing of the repository.
    """
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source!r} names no repository; expected hub:owner/name or hub:owner/name@revision")
    repository, revision = match["repository"], match["revision"]
    elsewhere = "download the repository elsewhere and give its folder"
    with readable_errors(repository, revision, elsewhere, hint):
        return Snapshot(repository, *_snapshot(repository, revision, list(wanted), list(unwanted)))


@contextmanager
def readable_errors(repository: str, revision: str | None, elsewhere: str, hint: str = "") -> Iterator[None]:
    """Convert errors of the Hub's client while reading to a one-line error with the fix.

    Args:
        repository: repository that is read.
        revision: requested revision, if any.
        elsewhere: fix for the error message if the Hub cannot be reached.
        hint: text to append to the error message if there is no such repository.

    Raises:
        UserError: replaces any error of the network or the Hub.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"{repository!r} names no repository ({error}); expected hub:owner/name") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision}; give a branch, a tag or a commit of it") from error
    except GatedRepoError as error:
        raise UserError(
            f"{repository} on the Hugging Face Hub asks for consent: give it on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no public repository {repository} on the Hugging Face Hub; check its name{hint}. "
            "For a private one, log in with `hf auth login`"
        ) from error
    except EntryNotFoundError:
        raise  # only the caller can say what the missing file is
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"the Hugging Face Hub answered {status} for {repository}; try again later") from error
    except (HTTPError, OSError, ValueError, KeyError) as error:  # the last two: the response is not from a Hub
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{repository} cannot be downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); check "
            f"the network, or {elsewhere}"
        ) from error


def _snapshot(repository: str, revision: str | None, wanted: list[str], unwanted: list[str]) -> tuple[str, Path]:
    """Commit and folder of a revision; without a connection, the cached files of it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(local_files_only: bool) -> tuple[str, Path]:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=unwanted,
                local_files_only=local_files_only,
            )
        )
        return folder.name, folder  # the cache names snapshots by their commits

    try:
        # Only this request accepts a timeout, so it is sent first; if it fails, no other request is made.
        HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        raise
    except (HTTPError, OfflineModeIsEnabled) as unreachable:
        try:
            commit, folder = fetch(local_files_only=True)
        except LocalEntryNotFoundError:
            raise unreachable from None
        log.warning(
            "%s: the Hub cannot be reached (%s); commit %s of the cache is taken", repository, unreachable, commit
        )
        return commit, folder
    return fetch(local_files_only=False)
