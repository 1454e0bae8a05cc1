"""Files that strangers made: how much they hold is looked at before anything is read or built of it.

A small file can unpack to gigabytes, a link can lead anywhere, a pipe never ends. Whoever reads files from elsewhere
asks here first. None of it depends on the format's library, which would have to read the file to say so.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

from pipeline.errors import UserError

MIB = 1024 * 1024
MAX_MEMBERS = 10_000


def check_file(path: Path, most_bytes: int, root: Path | None = None) -> None:
    """Refuse a file that is too large, no plain file, or a link out of the folder that it came in.

    Args:
        path: of the file, which may be missing: that is for who opens it.
        most_bytes: size that is still plausible.
        root: the folder that it must lie in when all links are followed; None for a file that the user named.

    Raises:
        UserError: names the file, and what was allowed.
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
    """Whether a file of a folder is a link to one outside.

    The Hub's cache is a folder of links to its files, beside it: what lies in the same repository's cache is inside.
    """
    root = root.resolve()
    of_cache = [folder.parent for folder in root.parents if folder.name == "snapshots"]
    return not path.resolve().is_relative_to(of_cache[0] if of_cache else root)


def check_zip(source: Path | IO[bytes], origin: str, most_bytes: int) -> None:
    """Refuse a zip that would unpack to too much, as its own list of members says; no library reads more of one.

    Args:
        source: the zip; where it is none, that is for who opens it.
        origin: what to call it in messages.
        most_bytes: of all members together.

    Raises:
        UserError: names both sizes.
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
