"""Import third-party experts into the store.

Supported are Sample Factory folders, Stable-Baselines3 zips, folders of this project's store, and policies that are
plain arrays in a file.

A source is a local path, or ``hub:owner/name`` (``hub:owner/name@revision``) on the Hugging Face Hub. From the Hub only
the required files are downloaded, to the Hub's default cache. Sources are untrusted: nothing in them is executed, sizes
are checked before reading, and links out of the source's folder are not followed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experts.choice import BESTS
from experts.importing.published import RELEASED, repository_and_commit, suggested_repositories
from experts.registry import rule_kinds
from experts.spec import NetworkSpec
from experts.store import (
    CURVE,
    MAX_WEIGHTS,
    RECORD,
    WEIGHTS,
    StoredExpert,
    TrainingPoint,
    read_arrays,
    read_expert,
    write_expert,
)
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.foreign import check_file
from pipeline.publishing.hub import HUB, Snapshot, download

if TYPE_CHECKING:
    from torch import Tensor

# File names of Sample Factory and Stable-Baselines3.
_CHECKPOINTS, _CONFIGS = "checkpoint_p0", ("config.json", "cfg.json")
_STATISTICS = "*vec*normalize*.pkl"
_ZOO_CONFIG = "config.yml"
# Single-file formats. A linear policy has no distribution, so its actions cannot be sampled.
_HOMEWORK, _LINEAR = ".pkl", ".npz"
_WANTED = (
    RECORD, WEIGHTS, CURVE, *_CONFIGS, f"{_CHECKPOINTS}/*.pth", "*.zip", _STATISTICS, _ZOO_CONFIG,
)  # fmt: skip
_UNWANTED = ("train_eval_metrics.zip",)

_EXPECTED = (
    f"expected a Sample Factory folder ({_CONFIGS[0]} and {_CHECKPOINTS}/), a Stable-Baselines3 .zip with its "
    f"vec_normalize.pkl if it has one, {RECORD} and {WEIGHTS} of this project's store, a {_HOMEWORK} of cs285's "
    f"homework, or a linear policy in a {_LINEAR}"
)


def import_expert(task: Task, source: str, out: Path, sampled: bool = False) -> StoredExpert:
    """Add the expert in ``source`` to the store of ``out``.

    Args:
        task: task it was trained for; sizes and bounds are checked.
        source: a folder, a file, or ``hub:owner/name[@revision]``.
        out: root of a run.
        sampled: store the expert so that it samples its actions; otherwise it acts greedily, or as it was stored.

    Raises:
        UserError: the source is missing, unreachable, damaged, of an unknown kind, or for another task.
    """
    if source.startswith(HUB):
        return import_snapshot(task, fetch(task, source), out, sampled)
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source} does not exist; {_EXPECTED}, or hub:owner/name{_suggestion(task)}")
    return _Importer(task, out, sampled, source, path if path.is_dir() else path.parent).run(path)


def fetch(task: Task, source: str, only_cached: bool = False) -> Snapshot:
    """Download from the Hub what ``import_snapshot`` reads.

    Raises:
        UserError: as ``pipeline.publishing.hub.download``.
    """
    return download(source, _WANTED, _UNWANTED, _suggestion(task), only_cached)


def import_snapshot(task: Task, found: Snapshot, out: Path, sampled: bool = False) -> StoredExpert:
    """Add the expert in a downloaded repository to the store of ``out``.

    Raises:
        UserError: damaged, of an unknown kind, or for another task.
    """
    origin = repository_and_commit(found.repository, found.commit)
    return _Importer(task, out, sampled, origin, found.root).run(found.folder)


def _suggestion(task: Task) -> str:
    names = suggested_repositories(task)
    return f"; for {task.name} try {' or '.join(HUB + name for name in names)}" if names else ""


@dataclass(frozen=True)
class _Importer:
    """Imports one source.

    Attributes:
        origin: name of the source in messages and in the record.
        root: folder that must contain all its files.
    """

    task: Task
    out: Path
    sampled: bool
    origin: str
    root: Path

    def run(self, path: Path) -> StoredExpert:
        """Import the expert from a local file or folder."""
        if path.is_file():
            return self._file(path, self.origin)
        if (path / RECORD).is_file():
            return self._stored(path)
        zips = sorted(path.glob("*.zip"))
        if (path / _CHECKPOINTS).is_dir() or (not zips and any((path / name).is_file() for name in _CONFIGS)):
            return self._sample_factory(path)
        if zips:
            archive = _choose(zips, self.origin)
            return self._file(archive, f"{archive.name} in {self.origin}")
        found = ", ".join(sorted(entry.name for entry in path.glob("*"))[:8])[:400] or "nothing of use"
        raise UserError(f"{self.origin} holds no expert: found {found}; {_EXPECTED}{_suggestion(self.task)}")

    def _file(self, path: Path, origin: str) -> StoredExpert:
        check_file(path, MAX_WEIGHTS, self.root)
        if path.suffix == ".zip":
            return self._archive(path, origin)
        if path.suffix == _HOMEWORK:
            from experts.importing.plain_files import load_homework

            return self._write("cs285", *load_homework(path, self.task, self.sampled), origin)
        if path.suffix == _LINEAR and not self.sampled:
            from experts.importing.plain_files import load_linear

            return self._write("linear", *load_linear(path, self.task), origin)
        if path.suffix == _LINEAR:
            raise UserError(f"{origin} is deterministic, so its actions cannot be sampled; leave out --sampled")
        raise UserError(f"{origin} is a file but no .zip, {_HOMEWORK} or {_LINEAR}; {_EXPECTED}")

    def _archive(self, path: Path, origin: str) -> StoredExpert:
        from experts.stable_baselines.archive import load_archive
        from experts.stable_baselines.pairing import statistics_of

        statistics = statistics_of(path, origin, self.root)
        kind, spec, arrays = load_archive(path, self.task, self.sampled, statistics)
        beside = f" with {statistics.name}" if statistics else ""
        return self._write(kind, spec, arrays, f"{origin}{beside}")

    def _sample_factory(self, folder: Path) -> StoredExpert:
        from experts.sample_factory.checkpoint import find_checkpoints, load_checkpoint

        for path in [folder / name for name in _CONFIGS] + [file.path for file in find_checkpoints(folder)]:
            check_file(path, MAX_WEIGHTS, self.root)
        spec, arrays = load_checkpoint(folder, self.task, self.sampled)
        return self._write("sample-factory", spec, arrays, self.origin)

    def _write(self, kind: str, spec: NetworkSpec, arrays: Mapping[str, Tensor], origin: str) -> StoredExpert:
        return write_expert(self.out, self.task.name, kind, spec, arrays, f"Loaded from {_as_one_line(origin)}.")

    def _stored(self, folder: Path) -> StoredExpert:
        """Import from a folder with the layout of this project's store."""
        from experts.network import build_network  # imports torch: only once a source is there
        from experts.training import read_curve

        for name in (RECORD, WEIGHTS, CURVE):
            check_file(folder / name, MAX_WEIGHTS, self.root)
        task, origin = self.task, self.origin
        expert = read_expert(folder)
        record = expert.record
        if record.task != task.name:
            raise UserError(f"{origin} is an expert of {record.task}, not of {task.name}; give --task {record.task}")
        if record.network is None:
            raise UserError(f"{origin} is a rule ({record.kind}) without a network; it comes with this package")
        if record.kind in (*rule_kinds(), *BESTS, RELEASED):
            raise UserError(f"{origin} is called {record.kind}, which is not the name of a network; rename its kind")
        record.network.check_fits(task, origin)
        arrays = read_arrays(expert)
        build_network(record.network, arrays, origin)
        spec = dataclasses.replace(record.network, sampled=self.sampled or record.network.sampled)
        curve: list[TrainingPoint] = read_curve(folder / CURVE)
        return write_expert(
            self.out, task.name, record.kind, spec, arrays, record.origin, record.training, record.versions, curve
        )


def _as_one_line(text: str) -> str:
    """Replace unprintable characters of a path by ``?`` and truncate it, as records require."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:1000]


def _choose(zips: Sequence[Path], origin: str) -> Path:
    """Return the only zip that is a model, or ``best_model.zip`` if there are several."""
    from experts.stable_baselines.saved_model import is_archive

    models = [path for path in zips if is_archive(path)] or list(zips)
    best = [path for path in models if path.name == "best_model.zip"]
    if len(models) == 1 or best:
        return (best or models)[0]
    names = ", ".join(path.name for path in models)[:400]
    raise UserError(f"{origin} holds {len(models)} zips ({names}); give one of them")
