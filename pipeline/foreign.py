"""Checks untrusted files for size, type and links before anything reads or unpacks them.

A small file can unpack to gigabytes, a link can point anywhere, and a pipe never ends. Code that reads files from
elsewhere calls these checks first. They do not use the format's library, which would have to read the file first.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

from pipeline.errors import UserError

MIB = 1024 * 1024
MAX_MEMBERS = 10_000


def check_file(path: Path, most_bytes: int, root: Path | None = None) -> None:
    """Check that a file is not too large, is a regular file, and is not a link out of its folder.

    Args:
        path: the file; a missing file passes, as opening it reports the error.
        most_bytes: the largest plausible size.
        root: folder that must contain the file after all links are resolved; None for a file that the user named.

    Raises:
        UserError: a check failed; the message names the file and what is allowed.
    """
    if not path.exists() and not path.is_symlink():
        return
    if root is not None and not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} is a link that leads out of {root}, which is not followed; put the file itself there")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no plain file; give one")
    if path.exists() and path.stat().st_size > most_bytes:
        raise UserError(
            f"{path} has {path.stat().st_size / MIB:,.0f} MiB, at most {most_bytes / MIB:,.0f} MiB are read of such a "
            "file; it is not what it should be"
        )


def leads_out(path: Path, root: Path) -> bool:
    """Whether a path inside a folder resolves to a file outside of it.

    The Hub's cache holds snapshot folders of links to files in a sibling folder: files in the cache of the same
    repository count as inside.
    """
    root = root.resolve()
    of_cache = [folder.parent for folder in root.parents if folder.name == "snapshots"]
    return not path.resolve().is_relative_to(of_cache[0] if of_cache else root)


def check_zip(source: Path | IO[bytes], origin: str, most_bytes: int) -> None:
    """Check the unpacked size of a zip in its list of members; libraries read no more bytes than listed there.

    Args:
        source: the zip; a file that is not a zip passes, as opening it reports the error.
        origin: name of the zip in messages.
        most_bytes: largest total size of all members.

    Raises:
        UserError: the zip is too large; the message names both sizes.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            sizes = [member.file_size for member in archive.infolist()]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return
    finally:
        if not isinstance(source, Path):
            source.seek(0)
    if sum(sizes) > most_bytes or len(sizes) > MAX_MEMBERS:
        raise UserError(
            f"{origin} holds {len(sizes):,} files that unpack to {sum(sizes) / MIB:,.0f} MiB; at most "
            f"{MAX_MEMBERS:,} and {most_bytes / MIB:,.0f} MiB are read; it is not what it should be"
        )
