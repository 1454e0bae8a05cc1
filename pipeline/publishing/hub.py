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
# Answers that are not about the repository: a token that is not valid, too many questions, a server that fails.
_FOR_ALL = (401, 429, 500, 502, 503, 504)
_SOURCE = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class HubUnavailableError(UserError):
    """The Hub cannot be reached or fails, and the cache does not have what was asked for."""


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in a local folder.

    Attributes:
        is_from_cache: the Hub gave no answer, so they are what was downloaded before.
    """

    repository: str
    commit: str
    folder: Path
    is_from_cache: bool = False

    @property
    def root(self) -> Path:
        """Cache folder of the repository; the files in ``folder`` are links into it."""
        return self.folder.parents[1]

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def download(
    source: str,
    wanted: Sequence[str],
    unwanted: Sequence[str] = (),
    hint: str = "",
    only_cached: bool = False,
) -> Snapshot:
    """Download selected files of a repository.

    Args:
        source: ``hub:owner/name[@revision]``.
        wanted: globs of the files to download.
        unwanted: globs of files to exclude.
        hint: text to append to the error message if there is no such repository.
        only_cached: use the cache only, without a request to the Hub.

    Raises:
        HubUnavailableError: the Hub cannot be reached or fails, and the cache has nothing of the repository.
        UserError: the source is malformed, or there is no such repository or revision.
    """
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source!r} names no repository; expected hub:owner/name or hub:owner/name@revision")
    repository, revision = match["repository"], match["revision"]
    elsewhere = "download the repository elsewhere and give its folder"
    with readable_errors(repository, revision, elsewhere, hint):
        return _snapshot(repository, revision, wanted, unwanted, only_cached)


@contextmanager
def readable_errors(repository: str, revision: str | None, elsewhere: str, hint: str = "") -> Iterator[None]:
    """Convert errors of the Hub's client while reading to a one-line error with the fix.

    Args:
        repository: repository that is read.
        revision: requested revision, if any.
        elsewhere: fix for the error message if the Hub cannot be reached.
        hint: text to append to the error message if there is no such repository.

    Raises:
        UserError: instead of any error of the network or the Hub; a ``HubUnavailableError`` if another repository
            could not be read either.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
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
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError, but about the network
        raise HubUnavailableError(
            f"{repository} cannot be downloaded from the Hugging Face Hub and is not in its cache; check the network, "
            f"or {elsewhere}"
        ) from error
    except EntryNotFoundError:
        raise  # only the caller can say what the missing file is
    except HfHubHTTPError as error:
        status = error.response.status_code
        kind = HubUnavailableError if status in _FOR_ALL else UserError
        fix = "check or unset HF_TOKEN" if status == 401 else "try again later"
        raise kind(f"the Hugging Face Hub answered {status} for {repository}; {fix}") from error
    except (HTTPError, OSError, ValueError, KeyError) as error:  # the last two: an answer that is not the Hub's
        reason = str(error).partition("\n")[0]
        is_disk = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
        raise (UserError if is_disk else HubUnavailableError)(
            f"{repository} cannot be downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); check "
            f"the network, or {elsewhere}"
        ) from error


def _snapshot(
    repository: str, revision: str | None, wanted: Sequence[str], unwanted: Sequence[str], only_cached: bool
) -> Snapshot:
    """The files of a revision; without a connection, what the Hub's cache holds of it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(is_from_cache: bool) -> Snapshot:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(wanted),
                ignore_patterns=list(unwanted),
                local_files_only=is_from_cache,
            )
        )
        return Snapshot(repository, folder.name, folder, is_from_cache)  # the cache names snapshots by their commits

    if only_cached:
        return fetch(is_from_cache=True)
    try:
        # Only this request accepts a timeout, so it is sent first; if it fails, no other request is made.
        HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:
        raise
    except (HTTPError, OfflineModeIsEnabled) as unreachable:
        try:
            found = fetch(is_from_cache=True)
        except LocalEntryNotFoundError:
            raise unreachable from None
        log.warning(
            "%s: the Hub cannot be reached (%s); commit %s of the cache is taken", repository, unreachable, found.commit
        )
        return found
    return fetch(is_from_cache=False)
