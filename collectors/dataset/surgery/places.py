"""Where a changed dataset goes: beside the old one, or in its place until that is confirmed or undone.

A dataset is written under a temporary name and renamed when it is complete, so a kill at any time loses nothing. In
place, the old dataset is kept as ``.NAME.undo`` beside the new one.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import NO_SPACE, exclusive, is_local, sync_folder, temporary_beside
from pipeline.storage.manifest import DatasetManifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Which dataset to change, and where the result goes."""

    dataset: Path = Path("runs/default/dataset")
    """Folder of the dataset."""
    to: Path | None = None
    """Folder of the new dataset, not there yet; beside the old one, with the command in its name, if not given."""
    in_place: bool = False
    """Replace the dataset; `jat dataset undo` brings it back, until `jat dataset confirm` deletes it."""


def undo_folder(dataset: Path) -> Path:
    """Where the dataset from before an unconfirmed change is."""
    return dataset.with_name(f".{dataset.name}.undo")


def recover(dataset: Path) -> None:
    """Bring a dataset back whose change was killed between its two renames."""
    undo = undo_folder(dataset)
    if not dataset.exists() and undo.exists():
        undo.rename(dataset)


@contextmanager
def new_folder(place: Place, command: str) -> Iterator[Path]:
    """Yield a path to write a dataset to; without an exception it then goes where ``place`` says.

    Raises:
        UserError: the place is taken, not on this machine, or full; an earlier change in place is not confirmed.
    """
    if not is_local(place.dataset) or (place.to is not None and not is_local(place.to)):
        raise UserError(f"{place.dataset}: only a dataset on a disk can be changed; copy it to one first")
    dataset = place.dataset.absolute()
    if place.in_place:
        if place.to is not None:
            raise UserError(f"--to {place.to} and --in-place contradict each other; give one of them")
        with exclusive(dataset.with_name(f".{dataset.name}.lock"), "wait until it is done"):
            _check_no_undo(dataset)
            with _written(dataset) as temporary:
                yield temporary
                sync_folder(temporary)
                dataset.rename(undo_folder(dataset))
                temporary.rename(dataset)
        log.info("%s is changed; `jat dataset undo` brings it back, `jat dataset confirm` makes it final", dataset)
        return
    target = (place.to or dataset.with_name(f"{dataset.name}-{command}")).absolute()
    check_empty(target)
    with _written(target) as temporary:
        yield temporary
        sync_folder(temporary)
        if target.exists():
            target.rmdir()  # empty
        temporary.rename(target)
    log.info("%s is made; %s is as it was", target, place.dataset)


def check_empty(target: Path) -> None:
    """Raises UserError if a folder to write to is there and not empty."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--to {target} is there and not empty; name another, or remove it first")


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; a full disk is a UserError."""
    try:
        with temporary_beside(target) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise UserError(
            f"{target.parent} takes no more data ({error.strerror}); nothing was changed: free some space"
        ) from error


def _check_no_undo(dataset: Path) -> None:
    if undo_folder(dataset).exists():
        raise UserError(
            f"{dataset} has a change that is not confirmed; run `jat dataset confirm --dataset {dataset}` or "
            f"`jat dataset undo --dataset {dataset}` first"
        )


def undo(dataset: Path) -> None:
    """Bring back the dataset from before the last change in place.

    Raises:
        UserError: there is no change that is not confirmed.
    """
    dataset = dataset.absolute()
    recover(dataset)
    kept = _kept(dataset)
    with exclusive(dataset.with_name(f".{dataset.name}.lock"), "wait until it is done"):
        with temporary_beside(dataset) as changed:
            dataset.rename(changed)
            kept.rename(dataset)


def confirm(dataset: Path) -> None:
    """Delete the dataset from before the last change in place.

    Raises:
        UserError: there is no change that is not confirmed, or its result is not there.
    """
    dataset = dataset.absolute()
    recover(dataset)
    kept = _kept(dataset)
    DatasetManifest.load(dataset / DatasetManifest.FILE_NAME)
    shutil.rmtree(kept)


def _kept(dataset: Path) -> Path:
    kept = undo_folder(dataset)
    if not kept.exists():
        raise UserError(
            f"{dataset} has no change in place that is not confirmed, so there is nothing to undo or confirm"
        )
    return kept
