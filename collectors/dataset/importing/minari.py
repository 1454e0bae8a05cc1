"""Read Minari datasets as episodes, from this machine or downloaded by Minari into its own folder.

A Minari episode has one observation more than actions; the last one goes into the side table. Seeds in its
metadata belong to the original environment and reset procedure. They do not reproduce the episode here, so they are
not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from collectors.dataset.importing.rows import Ended, RawSteps, UnfitError, checked_episode, unfit_episode
from collectors.documents.sources import tail_digest
from pipeline.envs.episode import Episode
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Task
from pipeline.errors import UserError, first_line
from pipeline.files import digest_of
from pipeline.foreign import check_file
from pipeline.runtime.heartbeat import WORKER_PROGRESS

MINARI = "minari:"
METADATA = "metadata.json"
ENVIRONMENT = "jat_environment"  # in the metadata that `jat dataset export` writes
HDF5 = (".hdf5", ".h5")
MAX_FILE_BYTES, MAX_METADATA_BYTES = 2**42, 2**28
WRONG = (ValueError, KeyError, TypeError, AttributeError, IndexError)  # raised for arrays of other types or shapes
OTHER_ARRAYS = "arrays of other types or shapes"
MAX_ARRAY_BYTES = 2**31  # of one column of an episode
# The keys of a grid world's observation, which is a dictionary in Minari.
DIRECTION, VIEW, MISSION = "direction", "image", "mission"


def data_folder(folder: Path) -> Path | None:
    """The folder with Minari's metadata in or below ``folder``, or None if there is no Minari dataset."""
    for path in (folder, folder / "data"):
        if not (path / METADATA).is_file():
            continue
        check_file(path / METADATA, MAX_METADATA_BYTES, folder)
        if '"data_format"' in (path / METADATA).read_text(encoding="utf-8", errors="replace"):
            return path
    return None


@dataclass(frozen=True)
class MinariRows:
    """Episodes of a Minari dataset.

    Attributes:
        folder: the folder with its metadata.
        begin: index of the first episode of this split.
        num_rows: number of episodes.
    """

    folder: str
    begin: int
    num_rows: int

    def read(self, task: Task, first: int, count: int) -> Iterator[Episode]:
        """See ``Rows``."""
        from minari.dataset.minari_storage import MinariStorage

        storage = MinariStorage.read(self.folder)
        indices = range(self.begin + first, self.begin + first + count)
        episodes = iter(storage.get_episodes(indices))
        for number in range(first, first + count):
            WORKER_PROGRESS.beats += 1
            try:
                raw = next(episodes)
            except StopIteration:
                return
            except (OSError, *WRONG) as error:
                raise UserError(f"{self.folder}: episode {number} cannot be read ({first_line(error)})") from error
            try:
                episode = checked_episode(task, number, _steps(task, raw), _ended(raw))
                yield replace(episode, success=_success(task, storage, self.begin + number, episode.success))
            except UnfitError as error:
                yield unfit_episode(task, number, str(error))
            except WRONG:
                yield unfit_episode(task, number, OTHER_ARRAYS)


def find_minari(name: str) -> Path:
    """The folder of a Minari dataset, downloaded by Minari if it is not on this machine.

    Args:
        name: such as ``mujoco/hopper/expert-v0``.

    Raises:
        UserError: there is no such dataset, no network, or minari is not installed.
    """
    minari = _import_minari()
    from huggingface_hub.errors import HTTPError
    from minari.storage.datasets_root_dir import get_dataset_path

    folder: Path = get_dataset_path(name) / "data"
    if not folder.exists():
        try:
            minari.download_dataset(name)
        except (ValueError, OSError, RuntimeError, HTTPError) as error:
            there = ", ".join(minari.list_local_datasets()) or "none"
            raise UserError(
                f"{MINARI}{name} is not in {get_dataset_path()} (there: {there}) and cannot be downloaded "
                f"({type(error).__name__}: {first_line(error)}); check the name and the network, or give a folder"
            ) from error
    return folder


def _import_minari() -> Any:
    try:
        import h5py  # noqa: F401  the format of nearly all of its datasets
        import minari
    except ImportError as error:
        raise UserError(
            f"reading Minari's datasets needs a package that is missing ({error}); install jat-pipeline[minari]"
        ) from error
    return minari


@dataclass(frozen=True)
class MinariInfo:
    """The metadata of a dataset: a digest of its content, its environment or None, and its number of episodes."""

    digest: str
    environment: str | None
    num_episodes: int


def describe_minari(folder: Path, task: Task) -> MinariInfo:
    """Read the metadata of a dataset and check that it fits the task.

    Raises:
        UserError: it cannot be read, or its environment or sizes are not the task's.
    """
    minari = _import_minari()
    _check_files(folder)
    try:
        dataset = minari.MinariDataset(folder)
    except (*WRONG, AssertionError, ImportError, OSError, RecursionError) as error:
        raise UserError(f"{folder} cannot be read as a Minari dataset ({first_line(error)})") from error
    environment = dataset.env_spec.id if dataset.env_spec else dataset.storage.metadata.get(ENVIRONMENT)
    if environment and _without_version(environment) != _without_version(task.env_id):
        raise UserError(f"{folder} is of the environment {environment}; {task.name} is {task.env_id}")
    _check_spaces(folder, task, environment, dataset.observation_space, dataset.action_space)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = digest_of([(str(f.relative_to(folder)), f.stat().st_size, tail_digest(f)) for f in files])
    return MinariInfo(digest, environment, int(dataset.total_episodes))


def _check_files(folder: Path) -> None:
    """Refuse a dataset that refers to files outside its folder, or that declares implausible sizes.

    HDF5 can link to other files, and can declare any file of this machine as the content of an array.

    Raises:
        UserError: names the file and the offending entry.
    """
    import h5py

    for path in sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink()):
        check_file(path, MAX_FILE_BYTES if path.suffix in HDF5 else MAX_METADATA_BYTES, folder)
        if path.suffix not in HDF5:
            continue
        try:
            with h5py.File(path, "r") as file:
                _check_group(path, file)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} cannot be read ({first_line(error)})") from error


def _check_group(path: Path, group: Any) -> None:
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {group.name}/{name} is a link, which is not followed; put the data itself there")
        member = group[name]
        if isinstance(member, h5py.Group):
            _check_group(path, member)
        elif member.external or member.is_virtual:
            raise UserError(f"{path}: {member.name} is kept in other files, which are not read")
        elif member.nbytes > MAX_ARRAY_BYTES:
            raise UserError(
                f"{path}: {member.name} has {member.nbytes / 2**30:,.1f} GiB, at most {MAX_ARRAY_BYTES / 2**30:g} are "
                f"read of an episode's column"
            )


def _without_version(env_id: str) -> str:
    return re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1])


def _check_spaces(folder: Path, task: Task, environment: str | None, observation: Any, action: Any) -> None:
    if task.observation == DISCRETE and task.has_text and isinstance(observation, gym.spaces.Dict):
        parts = {name: space.shape for name, space in observation.spaces.items()}
        fits = parts.get(VIEW) == (7, 7, 3) and {DIRECTION, MISSION} <= parts.keys()
    else:
        fits = task.observation != DISCRETE and observation.shape == task.observation_shape
        fits = fits and (observation.dtype == np.uint8) == (task.observation == IMAGE)
    if task.action.kind == "discrete":
        fits &= isinstance(action, gym.spaces.Discrete) and int(action.n) == task.action.size
    else:
        fits &= isinstance(action, gym.spaces.Box) and action.shape == (task.action.size,)
    if not fits:
        raise UserError(
            f"{folder} ({environment or 'environment not said'}) has observations {observation} and actions {action}; "
            f"{task.name} ({task.env_id}) has observations of shape {task.observation_shape} and "
            f"{task.action.size} {'choices' if task.action.kind == 'discrete' else 'numbers'} per action. Another "
            f"version of an environment may have other sizes"
        )


def _steps(task: Task, raw: dict[str, Any]) -> RawSteps:
    num_steps = len(raw["rewards"])
    observations = raw["observations"]
    texts = None
    if isinstance(observations, dict):
        texts = tuple(map(str, observations[MISSION]))[:num_steps]
        view = np.asarray(observations[VIEW]).reshape(len(observations[VIEW]), -1)
        observations = np.concatenate([np.asarray(observations[DIRECTION]).reshape(-1, 1), view], axis=1)
    dtype: Any = {CONTINUOUS: np.float32, IMAGE: np.uint8}.get(task.observation, np.int64)
    discrete = task.action.kind == "discrete"
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite float32 values are found by later checks
        values = np.asarray(observations).astype(dtype)
        steps = RawSteps(
            observations=values[:num_steps],
            texts=texts,
            actions=np.asarray(raw["actions"]).astype(np.int64 if discrete else np.float32),
            rewards=np.asarray(raw["rewards"]).astype(np.float32),
            final_observation=values[num_steps] if len(values) == num_steps + 1 else None,
        )
    shapes = (steps.observations.shape[1:], steps.actions.shape[1:], steps.rewards.shape[1:])
    if shapes != (task.observation_shape, () if discrete else (task.action.size,), ()):
        raise UnfitError(OTHER_ARRAYS)
    return steps


def _success(task: Task, storage: Any, index: int, otherwise: bool | None) -> bool | None:
    """Success of an episode as its metadata says it, which ``jat dataset export`` writes."""
    (metadata,) = storage.get_episode_metadata([index])
    said = metadata.get("success")
    return bool(said) if task.success is not None and isinstance(said, bool | np.bool_) else otherwise


def _ended(raw: dict[str, Any]) -> Ended:
    if len(raw["terminations"]) and raw["terminations"][-1]:
        return "terminated"
    return "truncated" if len(raw["truncations"]) and raw["truncations"][-1] else "unknown"
