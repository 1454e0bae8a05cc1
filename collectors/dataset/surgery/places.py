"""Where a changed dataset goes: beside the old one, or in its place until that is confirmed or undone.

A dataset is written under a temporary name and renamed when it is complete, so a kill at any time loses nothing. In
place, the old dataset is kept as ``.NAME.undo`` beside the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import NO_SPACE, exclusive, is_local, sync_folder, temporary_beside
from pipeline.storage.manifest import DatasetManifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewPlace:
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


def _folder(dataset: Path) -> Path:
    """The folder of a dataset itself, where the given path is a link to it."""
    return dataset.resolve() if is_local(dataset) else dataset


def recover(dataset: Path) -> None:
    """Bring a dataset back whose change was killed between its two renames."""
    dataset = _folder(dataset)
    if not dataset.exists() and undo_folder(dataset).exists():
        with _one_at_a_time(dataset):
            _recover(dataset)


def _recover(dataset: Path) -> None:
    if not dataset.exists() and undo_folder(dataset).exists():
        undo_folder(dataset).rename(dataset)


@contextmanager
def new_folder(place: NewPlace, command: str) -> Iterator[Path]:
    """Yield a path to write a dataset to; without an exception it then goes where ``place`` says.

    Raises:
        UserError: the place is taken, not on this machine, or full; an earlier change in place is not confirmed.
    """
    if not is_local(place.dataset) or (place.to is not None and not is_local(place.to)):
        raise UserError(f"{place.dataset}: only a dataset on a disk can be changed; copy it to one first")
    dataset = _folder(place.dataset)
    if place.in_place:
        if place.to is not None:
            raise UserError(f"--to {place.to} and --in-place contradict each other; give one of them")
        with _one_at_a_time(dataset):
            _check_no_undo(dataset)
            with _written(dataset) as temporary:
                yield temporary
                sync_folder(temporary)
                dataset.rename(undo_folder(dataset))
                temporary.rename(dataset)
        log.info("%s is changed; `jat dataset undo` brings it back, `jat dataset confirm` makes it final", dataset)
        return
    target = (place.to or dataset.with_name(f"{dataset.name}-{command}")).absolute()
    _check_outside(target)
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


def _check_outside(target: Path) -> None:
    """Raises UserError if a folder to write to is within a dataset, which has to stay as it is."""
    for folder in target.resolve().parents:
        if (folder / DatasetManifest.FILE_NAME).is_file() and (folder / "data").is_dir():
            raise UserError(f"--to {target} is within the dataset {folder}; name a folder outside of it")


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
    dataset = _folder(dataset)
    _kept(dataset)
    with _one_at_a_time(dataset):
        _recover(dataset)
        kept = _kept(dataset)
        with temporary_beside(dataset) as changed:
            dataset.rename(changed)
            kept.rename(dataset)
    log.info("%s is as it was before the change", dataset)


def confirm(dataset: Path) -> None:
    """Delete the dataset from before the last change in place.

    Raises:
        UserError: there is no change that is not confirmed, or its result is not there.
    """
    dataset = _folder(dataset)
    _kept(dataset)
    with _one_at_a_time(dataset):
        _recover(dataset)
        kept = _kept(dataset)
        DatasetManifest.load(dataset / DatasetManifest.FILE_NAME)
        with temporary_beside(kept) as rest:
            kept.rename(rest)  # a kill while it is deleted must not leave half a dataset that `undo` brings back
    log.info("%s is final", dataset)


def _one_at_a_time(dataset: Path) -> AbstractContextManager[None]:
    return exclusive(dataset.with_name(f".{dataset.name}.lock"), "wait until it is done")


def _kept(dataset: Path) -> Path:
    kept = undo_folder(dataset)
    if not kept.exists():
        raise UserError(
            f"{dataset} has no change in place that is not confirmed, so there is nothing to undo or confirm"
        )
    return kept
