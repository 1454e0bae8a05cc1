"""The store of experts: ``experts/<task>/<revision>/``, below the root of a run and embedded in this package.

Each revision is a folder with these files:

- ``weights.safetensors``: the arrays of a network; absent for rules (scripted, bot, random).
- ``expert.json``: an ``ExpertRecord``, written last, so a folder that contains it is complete.
- ``curve.csv``: one row per report of its training: ``steps,seconds,return``.
- ``measurement.json``: results of 100 or more episodes on the measuring seeds (``pipeline/scoring/measurement.py``).

The embedded store, ``experts/embedded/``, has the same layout and is read-only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.spec import NetworkSpec
from pipeline.errors import UserError
from pipeline.files import digest_of, is_local, read_json, replacing, temporary_beside, write_json
from pipeline.foreign import MIB, check_file
from pipeline.names import check_name, is_one_line
from pipeline.records import RecordError, record_of
from pipeline.run_layout import EMBEDDED, RunLayout

if TYPE_CHECKING:
    from torch import Tensor

RECORD, WEIGHTS, CURVE = "expert.json", "weights.safetensors", "curve.csv"
MAX_RECORD, MAX_WEIGHTS = 4 * MIB, 1024 * MIB
_KIND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class TrainingPoint:
    """One report of a training: environment steps and seconds so far, and the mean return of recent episodes."""

    steps: int
    seconds: float
    mean_return: float

    @property
    def row(self) -> str:
        """The point as a line of ``curve.csv``, without the newline."""
        return f"{self.steps},{self.seconds:.1f},{self.mean_return:.6g}"


@dataclass(frozen=True)
class ExpertRecord:
    """Metadata of one expert of one task.

    Attributes:
        kind: ``ppo``, ``sac``, ``sample-factory``, ``scripted``, ``bot``, ``random``, ...
        revision: name of its folder: the kind, and a digest of spec and weights or the versions that define a rule.
        network: specification of the network; None for rules.
        origin: provenance in one sentence: how it was made, or where it was loaded from.
        training: hyperparameters, seed, steps and seconds of its training; empty if unknown.
        versions: versions of the packages that made it.
    """

    task: str
    kind: str
    revision: str
    network: NetworkSpec | None
    origin: str
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredExpert:
    """A record and the folder it was read from."""

    record: ExpertRecord
    folder: Path


def write_expert(
    out: Path,
    task_name: str,
    kind: str,
    spec: NetworkSpec,
    arrays: Mapping[str, Tensor],
    origin: str,
    training: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    curve: Sequence[TrainingPoint] = (),
) -> StoredExpert:
    """Add a network to the store of ``out``; the same spec and weights give the same revision and are written once.

    If a longer training has the same best network, only the record and the curve are updated. float16 arrays are kept
    as they are, all others are written as float32.
    """
    import torch
    from safetensors.torch import save

    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} is not of small letters, digits and -")
    data = save(
        {
            name: (array if array.dtype == torch.float16 else array.float()).detach().contiguous()
            for name, array in arrays.items()
        }
    )
    revision = f"{kind}-{hashlib.sha256(_digest_of(spec).encode() + data).hexdigest()[:8]}"
    record = ExpertRecord(task_name, kind, revision, spec, origin, dict(training or {}), dict(versions or {}))
    folder = RunLayout(out).expert(task_name, revision)
    lines = "".join(f"{line}\n" for line in ["steps,seconds,return", *(point.row for point in curve)])
    if not (folder / RECORD).exists():
        with _new_folder(folder) as temporary:
            (temporary / WEIGHTS).write_bytes(data)
            (temporary / CURVE).write_text(lines, encoding="utf-8")
            write_json(temporary / RECORD, record)
    elif record.training.get("steps", 0) > read_expert(folder).record.training.get("steps", math.inf):
        with replacing(folder / CURVE) as file:
            file.write_text(lines, encoding="utf-8")
        write_json(folder / RECORD, record)
    return StoredExpert(record, folder)


def ensure_in_store(out: Path, expert: StoredExpert) -> StoredExpert:
    """Ensure that an expert is in the store of ``out``: copy an embedded one, or write the record of a rule.

    Existing experts of ``out`` are not overwritten.
    """
    folder = RunLayout(out).expert(expert.record.task, expert.record.revision)
    if not (folder / RECORD).exists():
        with _new_folder(folder) as temporary:
            if (expert.folder / RECORD).exists():
                shutil.copytree(expert.folder, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile)
            else:
                write_json(temporary / RECORD, expert.record)
    return StoredExpert(expert.record, folder)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder and rename it to ``folder`` at the end, unless another process has already done so."""
    if not is_local(folder):
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
            # The record is written last: a folder without it contains no expert.
            for file in sorted(Path(directory).iterdir(), key=lambda file: file.name == RECORD):
                with replacing(folder / file.name) as target:
                    shutil.copyfile(file, target)
        return
    with temporary_beside(folder) as temporary:
        temporary.mkdir()
        yield temporary
        if not (folder / RECORD).exists():
            shutil.rmtree(folder, ignore_errors=True)  # an incomplete folder
            temporary.rename(folder)


def read_expert(folder: Path) -> StoredExpert:
    """Read the expert in the folder of a revision.

    Raises:
        UserError: the record is missing, unreadable, or contains an invalid name.
    """
    path = folder / RECORD
    if not path.is_file():
        raise UserError(f"{folder} holds no expert: it has no {RECORD}")
    if is_local(path):
        check_file(path, MAX_RECORD)
    try:
        record = record_of(read_json(path), ExpertRecord)
        check_record(record)
    except (RecordError, UserError) as error:
        raise UserError(f"{path} is not a record of an expert ({error}); remove {folder}, or restore it") from error
    return StoredExpert(record, folder)


def check_record(record: ExpertRecord) -> None:
    """Validate the record's names and texts, because they become folders, columns and parts of pages.

    Raises:
        RecordError: the message names the invalid value.
    """
    check_name("task", record.task)
    if not _KIND.fullmatch(record.kind):
        raise RecordError(f"kind {record.kind[:60]!r} is not of small letters, digits and -")
    check_name("revision", record.revision)
    if not record.revision.startswith(f"{record.kind}-") or "+" in record.revision:
        raise RecordError(f"revision {record.revision!r} is not the kind {record.kind}, a dash and a version")
    for text in (record.origin, *record.versions, *record.versions.values()):
        if not is_one_line(text):
            raise RecordError(f"{text[:60]!r} is not one line of text")
    for name in ("steps", "seconds"):
        value = record.training.get(name, 0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise RecordError(f"training.{name} is {str(value)[:60]!r}, expected a number")


def _digest_of(spec: NetworkSpec) -> str:
    """Digest of a specification; a field that is newer than the first experts counts only where it is used."""
    fields = dataclasses.asdict(spec)
    if not spec.one_hot:
        del fields["one_hot"]
    return digest_of(fields)


def read_arrays(expert: StoredExpert) -> dict[str, Tensor]:
    """Read the weights of a stored network.

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = expert.folder / WEIGHTS
    if is_local(path):
        check_file(path, MAX_WEIGHTS)
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove {expert.folder} and run `jat experts` again"
        ) from error


def stored_experts(out: Path, task_name: str) -> list[StoredExpert]:
    """Return all experts of a task, those of ``out`` before the embedded ones, each revision once.

    Raises:
        UserError: a record cannot be read, or its task and revision differ from its folder's, although they define
            where its files are written.
    """
    found: dict[str, StoredExpert] = {}
    for folder in _folders(out, task_name):
        expert = read_expert(folder)
        if (expert.record.task, expert.record.revision) != (task_name, folder.name):
            raise UserError(
                f"{folder / RECORD} is of {expert.record.revision} of {expert.record.task}; give its folder that "
                "name and place, or remove it"
            )
        found.setdefault(folder.name, expert)
    return list(found.values())


def _folders(out: Path, task_name: str) -> Iterator[Path]:
    for directory in (RunLayout(out).experts_of(task_name), EMBEDDED / task_name):
        yield from (path.parent for path in sorted(directory.glob(f"[!.]*/{RECORD}")))
