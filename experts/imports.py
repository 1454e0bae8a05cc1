"""Experts from elsewhere into the store: Sample Factory folders, Stable-Baselines3 zips, this project's own folders.

A source is a local path, or ``hub:owner/name`` (``hub:owner/name@revision``) on the Hugging Face Hub, of which only the
files that matter are downloaded, into the Hub's usual cache. Nothing in a source is executed.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from experts.network import build_network
from experts.store import CURVE, RECORD, WEIGHTS, CurvePoint, StoredExpert, read_arrays, read_expert, write_expert
from pipeline.errors import UserError
from pipeline.tasks import Task

log = logging.getLogger(__name__)

HUB = "hub:"
# Until the Hub has answered the first question.
HUB_TIMEOUT_S = 10.0
_HUB_SOURCE = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

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
        repository, commit, folder = _download(source, task)
        return _import(task, folder, out, sampled, f"{repository} on the Hugging Face Hub, commit {commit}")
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


def _download(source: str, task: Task) -> tuple[str, str, Path]:
    """Repository, commit, and the folder of the files that matter."""
    match = _HUB_SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"{source!r} names no repository; expected hub:owner/name or hub:owner/name@revision")
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, revision = match["repository"], match["revision"]
    try:
        return repository, *_snapshot(repository, revision)
    except HFValidationError as error:
        raise UserError(f"{source!r} names no repository ({error}); expected hub:owner/name") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision}; give a branch, a tag or a commit of it") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no public repository {repository} on the Hugging Face Hub; check its name{_suggestion(task)}. "
            "For a private one, log in with `hf auth login`"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(f"the Hugging Face Hub answered {status} for {repository}; try again later") from error
    except (HTTPError, OSError, ValueError, KeyError) as error:  # the last two: an answer that is not the Hub's
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{repository} cannot be downloaded from the Hugging Face Hub ({type(error).__name__}: {reason}); check "
            "the network, or download the repository elsewhere and give its folder"
        ) from error


def _snapshot(repository: str, revision: str | None) -> tuple[str, Path]:
    """Commit and folder of a revision; without a connection, what the Hub's cache holds of it."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def fetch(local_files_only: bool) -> tuple[str, Path]:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(_UNWANTED),
                local_files_only=local_files_only,
            )
        )
        return folder.name, folder  # the cache names snapshots by their commits

    try:
        # Only this request can be given a limit of time: without an answer to it, no other is made.
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
