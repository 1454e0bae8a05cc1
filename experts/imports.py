"""Experts from elsewhere into the store: Sample Factory folders, Stable-Baselines3 zips, this project's own folders.

A source is a local path, or ``hub:owner/name`` (``hub:owner/name@revision``) on the Hugging Face Hub, of which only the
files that matter are downloaded, into the Hub's usual cache. Nothing in a source is executed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from experts.network import build_network
from experts.store import CURVE, RECORD, WEIGHTS, CurvePoint, StoredExpert, read_arrays, read_expert, write_expert
from pipeline.errors import UserError
from pipeline.hub import HUB, download
from pipeline.tasks import Task

# What Sample Factory and Stable-Baselines3 name their files.
_CHECKPOINTS, _CONFIGS = "checkpoint_p0", ("config.json", "cfg.json")
_STATISTICS = "*vec*normalize*.pkl"
_ZOO_CONFIG = "config.yml"
_WANTED = (
    RECORD, WEIGHTS, CURVE, *_CONFIGS, f"{_CHECKPOINTS}/*.pth", "*.zip", _STATISTICS, _ZOO_CONFIG,
)  # fmt: skip
_UNWANTED = ("train_eval_metrics.zip",)

# Of RL Zoo's list of pairs: the observations were normalised, unless it says otherwise.
_IS_NORMALISED = re.compile(r"\bnormalize(?::|\s*\n\s*-)[ ]+(?!false\b)\S", re.IGNORECASE)
_ONLY_REWARDS = re.compile(r"norm_obs\W+false\b", re.IGNORECASE)

_EXPECTED = (
    f"expected a Sample Factory folder ({_CONFIGS[0]} and {_CHECKPOINTS}/), a Stable-Baselines3 .zip with its "
    f"vec_normalize.pkl if it has one, or {RECORD} and {WEIGHTS} of this project's store"
)

# The games whose repository is named otherwise; there is none for surround.
_GAMES = {
    "asteroids": "asteroid",
    "kungfumaster": "kongfumaster",
    "montezumarevenge": "montezuma",
    "privateeye": "privateye",
}


def import_expert(task: Task, source: str, out: Path, sampled: bool = False) -> StoredExpert:
    """Add the expert in ``source`` to the store of ``out``.

    Args:
        task: what it was trained for; sizes and bounds are checked.
        source: a folder, a .zip file, or ``hub:owner/name[@revision]``.
        out: root of a run.
        sampled: store it to act by sampling its distribution; otherwise it acts greedily, or as it was stored.

    Raises:
        UserError: the source is missing, cannot be reached, damaged, of an unknown kind, or for another task.
    """
    if source.startswith(HUB):
        found = download(source, _WANTED, _UNWANTED, _suggestion(task))
        origin = f"{found.repository} on the Hugging Face Hub, commit {found.commit}"
        return _import(task, found.folder, out, sampled, origin)
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source} does not exist; {_EXPECTED}, or hub:owner/name{_suggestion(task)}")
    return _import(task, path, out, sampled, source)


def suggested_repositories(task: Task) -> tuple[str, ...]:
    """Where experts of a task are likely to be found on the Hub; not checked."""
    name = task.name.removeprefix(f"{task.domain}-")
    if task.domain == "atari" and name != "surround":
        return (f"edbeeching/atari_2B_atari_{_GAMES.get(name, name)}_1111",)
    if task.domain == "metaworld":
        return (f"qgallouedec/sample-factory-{name}-v2",)
    if task.domain == "mujoco":
        env = task.env_id.rpartition("-")[0]
        found = [f"qgallouedec/sample-factory-{name}-v2"]
        if name not in ("ant", "humanoid", "standup"):  # gymnasium's v5 of these three observes other things
            found.insert(0, f"farama-minari/{env}-v5-SAC-expert")
        if name in ("halfcheetah", "hopper", "humanoid", "swimmer", "walker"):  # in v3 as in v4
            found.append(f"sb3/sac-{env}-v3")
        return tuple(found)
    return ()


def _suggestion(task: Task) -> str:
    names = suggested_repositories(task)
    return f"; for {task.name} try {' or '.join(HUB + name for name in names)}" if names else ""


def _import(task: Task, path: Path, out: Path, sampled: bool, origin: str) -> StoredExpert:
    """From a local file or folder; ``origin`` names it for messages and the record."""
    if path.is_file():
        if path.suffix != ".zip":
            raise UserError(f"{origin} is a file but no .zip; {_EXPECTED}")
        return _import_archive(task, path, out, sampled, origin)
    if (path / RECORD).is_file():
        return _import_stored(task, path, out, sampled, origin)
    zips = sorted(path.glob("*.zip"))
    if (path / _CHECKPOINTS).is_dir() or (not zips and any((path / name).is_file() for name in _CONFIGS)):
        from experts.sample_factory.checkpoint import load_checkpoint

        spec, arrays = load_checkpoint(path, task, sampled)
        return write_expert(out, task.name, "sample-factory", spec, arrays, f"Loaded from {origin}.")
    if zips:
        archive = _choose(zips, origin)
        return _import_archive(task, archive, out, sampled, f"{archive.name} in {origin}")
    found = ", ".join(sorted(entry.name for entry in path.glob("*"))[:8]) or "nothing of use"
    raise UserError(f"{origin} holds no expert: found {found}; {_EXPECTED}{_suggestion(task)}")


def _choose(zips: Sequence[Path], origin: str) -> Path:
    """The one zip that is a model, or the best of a training's."""
    from experts.stable_baselines.archive import is_archive

    models = [path for path in zips if is_archive(path)] or list(zips)
    best = [path for path in models if path.name == "best_model.zip"]
    if len(models) == 1 or best:
        return (best or models)[0]
    raise UserError(f"{origin} holds {len(models)} zips ({', '.join(path.name for path in models)}); give one of them")


def _import_archive(task: Task, path: Path, out: Path, sampled: bool, origin: str) -> StoredExpert:
    from experts.stable_baselines.archive import load_archive

    statistics = _statistics_of(path, origin)
    kind, spec, arrays = load_archive(path, task, sampled, statistics)
    beside = f" with {statistics.name}" if statistics else ""
    return write_expert(out, task.name, kind, spec, arrays, f"Loaded from {origin}{beside}.")


def _statistics_of(path: Path, origin: str) -> Path | None:
    """The statistics of observations that belong to a model, beside it or where RL Zoo keeps them.

    Raises:
        UserError: there are several, or none though it was trained with some.
    """
    folder = path.parent
    found = sorted(folder.glob(_STATISTICS)) or sorted(folder.glob(f"*/{_STATISTICS}"))
    if len(found) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in found)
        raise UserError(
            f"{origin} has several statistics of observations beside it ({names}); keep the right one there"
        )
    if found:
        return found[0]
    config = folder / _ZOO_CONFIG
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    if _IS_NORMALISED.search(text) and not _ONLY_REWARDS.search(text):
        raise UserError(
            f"{origin} was trained on normalised observations, as {_ZOO_CONFIG} says, but without their statistics; "
            "put its vec_normalize.pkl beside it"
        )
    return None


def _import_stored(task: Task, folder: Path, out: Path, sampled: bool, origin: str) -> StoredExpert:
    """From a folder with the layout of this project's store."""
    from experts.training import read_curve

    expert = read_expert(folder)
    record = expert.record
    if record.task != task.name:
        raise UserError(f"{origin} is an expert of {record.task}, not of {task.name}; give --task {record.task}")
    if record.network is None:
        raise UserError(f"{origin} is a rule ({record.kind}) without a network; it comes with this package")
    record.network.check_fits(task, origin)
    arrays = read_arrays(expert)
    build_network(record.network, arrays, origin)
    spec = dataclasses.replace(record.network, sampled=sampled or record.network.sampled)
    curve: list[CurvePoint] = read_curve(folder / CURVE)
    return write_expert(
        out, task.name, record.kind, spec, arrays, record.origin, record.training, record.versions, curve
    )
